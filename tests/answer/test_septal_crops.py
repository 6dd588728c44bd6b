# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from echo_plugin.anatomy import DEFECT_SEPTA, DETECTED_SEPTA, Defect, Septum, View
from echo_plugin.annotations import SeptalBox
from echo_plugin.answer.defects import can_show, choose_crops, cut_crops, imaged_septa, shown_classes, whole_frames
from echo_plugin.cine import Cine, FramesInMemory, UltrasoundRegion

REGION = UltrasoundRegion(0, 0, 40, 40)
ATRIAL, VENTRICULAR = DETECTED_SEPTA


def box(x1: float, y1: float, x2: float, y2: float, septum: Septum = ATRIAL, score: float | None = 0.5, frame: int = 0):
    return SeptalBox(frame, x1, y1, x2, y2, septum, score)


def cine_of(pixels: np.ndarray) -> Cine:
    return Cine("a4c_007", FramesInMemory(pixels), np.arange(len(pixels)) * 40.0, (REGION,), "p1")


def test_each_wall_has_a_square_of_its_own_round_its_box() -> None:
    boxes = {3: [box(10, 20, 14, 30), box(10, 0, 16, 20, VENTRICULAR, 0.9)]}

    atrial, ventricular = choose_crops(boxes, [3], 10, cropping="walls", margin=0.25)

    assert atrial.square == (4.5, 17.5, 19.5, 32.5)  # 10 px and a quarter of them on either side
    assert ventricular.square == (-2.0, -5.0, 28.0, 25.0)
    assert [(c.septum, c.score, c.frame_index) for c in (atrial, ventricular)] == [
        (ATRIAL, 0.5, 3),
        (VENTRICULAR, 0.9, 3),
    ]


def test_the_papers_crop_is_one_square_round_both_septa() -> None:
    boxes = {0: [box(10, 20, 14, 30), box(10, 0, 16, 20, VENTRICULAR, 0.9)]}

    (crop,) = choose_crops(boxes, [0], 10, cropping="union", margin=0.0)

    assert crop.square == (-2.0, 0.0, 28.0, 30.0)
    assert (crop.septum, crop.score, crop.box.septum) == (None, 0.9, Septum.UNSPECIFIED)


def test_at_most_so_many_frames_of_each_wall_are_taken_the_best_of_each_part() -> None:
    boxes = {f: [box(0, 0, 4, 4, score=0.9 if f in (2, 7) else 0.4, frame=f)] for f in range(8)}
    boxes[5].append(box(0, 0, 4, 4, VENTRICULAR, frame=5))

    crops = choose_crops(boxes, list(range(8)), 2, cropping="walls")

    assert [(c.frame_index, c.septum) for c in crops] == [(2, ATRIAL), (5, VENTRICULAR), (7, ATRIAL)]


def test_without_a_named_septum_there_is_no_crop_of_a_wall() -> None:
    unnamed = {0: [box(0, 0, 4, 4, Septum.UNSPECIFIED)]}

    assert choose_crops({}, [0], 3, cropping="walls") == []
    assert choose_crops({}, [0], 3, cropping="union") == []
    assert choose_crops(unnamed, [0], 3, cropping="walls") == []


def test_crops_are_cut_from_their_own_frames() -> None:
    pixels = np.zeros((3, 40, 40, 1), dtype=np.uint8)
    pixels[2] = 120
    crops = choose_crops(
        {1: [box(8, 8, 20, 20, frame=1)], 2: [box(8, 8, 20, 20, frame=2)]}, [1, 2], 5, cropping="walls"
    )

    cut = cut_crops(cine_of(pixels), crops[::-1], 32, region=REGION)

    assert cut.shape == (2, 32, 32)
    assert cut.dtype == torch.uint8
    assert (cut[0].max(), cut[1].max()) == (120, 0)
    assert cut_crops(cine_of(pixels), [], 32, region=REGION).shape == (0, 32, 32)


def test_whole_frames_stand_in_where_no_septum_is_found() -> None:
    crops = whole_frames(cine_of(np.zeros((9, 40, 40, 1), dtype=np.uint8)), REGION, range(9), 3)

    assert [crop.frame_index for crop in crops] == [1, 4, 7]
    assert all(crop.is_whole_frame and crop.square == (0, 0, 40, 40) for crop in crops)


@pytest.mark.parametrize(
    ("septum", "defects"),
    [
        (ATRIAL, {Defect.NORMAL, Defect.ASD, Defect.AVSD, Defect.PFO}),
        (VENTRICULAR, {Defect.NORMAL, Defect.VSD, Defect.AVSD, Defect.TOF}),
        (None, set(Defect)),
    ],
)
def test_a_wall_can_show_the_holes_it_can_have(septum: Septum | None, defects: set[Defect]) -> None:
    assert {defect for defect in Defect if can_show(septum, defect)} == defects


def test_every_defect_has_a_wall() -> None:
    assert set(DEFECT_SEPTA) == set(Defect) - {Defect.NORMAL}


def test_shown_classes_follow_the_classes_of_the_card() -> None:
    crops = choose_crops({0: [box(0, 0, 4, 4), box(0, 0, 4, 4, VENTRICULAR)]}, [0], 1, cropping="walls")

    assert shown_classes(crops, [Defect.NORMAL, Defect.ASD, Defect.VSD, Defect.AVSD]).tolist() == [
        [True, True, False, True],
        [True, False, True, True],
    ]


def test_walls_count_in_the_views_that_image_them() -> None:
    both = [ATRIAL, VENTRICULAR, Septum.UNSPECIFIED]

    assert imaged_septa(both, View.A4C) == DETECTED_SEPTA
    assert imaged_septa(both, View.PLAX_LV) == (VENTRICULAR,)
    assert imaged_septa(both, View.SUPRASTERNAL_ARCH) == ()
    assert imaged_septa(both, None) == DETECTED_SEPTA
    assert imaged_septa([], View.A4C) == ()
