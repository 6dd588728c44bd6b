# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from echo_plugin.anatomy import Septum
from echo_plugin.io.datasets.weak_boxes import septa_between_chambers, septum_left_of_ventricle, septum_of_myocardium

CHAMBERS = {"lv": 1, "la": 2, "ra": 3, "rv": 4}
LEFT_HEART = {"ventricle": 1, "myocardium": 2, "atrium": 3}


def test_septa_lie_between_their_chambers(masks) -> None:
    weak = septa_between_chambers(masks["four chambers"], **CHAMBERS)

    assert weak.problem is None and not weak.is_transposed
    assert [(box.frame_index, box.septum) for box in weak.boxes] == [
        (frame, septum) for frame in (0, 1) for septum in (Septum.INTERATRIAL, Septum.INTERVENTRICULAR)
    ]
    atrial, ventricular = (box.xyxy for box in weak.boxes[:2])
    np.testing.assert_allclose(atrial, [28, 34, 32, 54], atol=3)  # the wall is columns 28 to 32
    np.testing.assert_allclose(ventricular, [28, 6, 32, 30], atol=3)


def test_a_transposed_mask_gives_the_boxes_of_the_upright_one(masks) -> None:
    upright = septa_between_chambers(masks["four chambers"], **CHAMBERS)

    turned = septa_between_chambers(masks["four chambers"].swapaxes(1, 2), **CHAMBERS)

    assert turned.is_transposed
    assert turned.boxes == upright.boxes


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda mask: mask[:, ::-1], "atria above ventricles"),
        (lambda mask: mask[:, :, ::-1], "left heart on the left"),
        (lambda mask: np.where(mask == 3, 0, mask), "no frame has all four chambers"),
    ],
)
def test_a_mask_of_another_display_gives_no_boxes(masks, change, problem: str) -> None:
    weak = septa_between_chambers(change(masks["four chambers"]), **CHAMBERS)

    assert weak.boxes == ()
    assert problem in weak.problem


def test_chambers_far_apart_have_no_wall_in_common() -> None:
    mask = np.zeros((1, 100, 100), np.uint8)
    mask[:, 10:40, 80:95], mask[:, 50:90, 80:95], mask[:, 10:40, 5:20], mask[:, 50:90, 5:20] = 1, 2, 4, 3

    assert septa_between_chambers(mask, **CHAMBERS).boxes == ()


def test_septum_of_the_myocardium_is_left_of_the_cavity(masks) -> None:
    weak = septum_of_myocardium(masks["left heart"], **LEFT_HEART)

    np.testing.assert_allclose(weak.boxes[0].xyxy, [20, 8, 32, 36], atol=1)  # left half, the apex included
    assert {box.septum for box in weak.boxes} == {Septum.INTERVENTRICULAR}
    assert {box.score for box in weak.boxes} == {0.5}


def test_a_ventricle_below_its_atrium_gives_no_box(masks) -> None:
    weak = septum_of_myocardium(masks["left heart"][:, ::-1], **LEFT_HEART)

    assert weak.boxes == ()
    assert weak.problem == "the left atrium is not below the left ventricle"


def test_traced_ventricle_has_its_septum_on_its_left_border() -> None:
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    ellipse = np.stack([60 + 15 * np.cos(angles), 50 + 30 * np.sin(angles)], axis=1)

    box = septum_left_of_ventricle(ellipse, 7)

    assert box.frame_index == 7
    np.testing.assert_allclose([box.x1, box.y1, box.x2, box.y2], [45 - 7.2, 20 - 7.2, 60, 80], atol=0.5)


@pytest.mark.parametrize("points", [np.zeros((2, 2)), np.zeros((5, 2)), np.array([[0, 0], [1, np.nan], [9, 9.0]])])
def test_a_tracing_without_extent_is_refused(points) -> None:
    with pytest.raises(ValueError, match="tracing of frame 3 has"):
        septum_left_of_ventricle(points, 3)
