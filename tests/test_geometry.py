# SPDX-License-Identifier: Apache-2.0
"""Box arithmetic against second derivations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echo_plugin.geometry import box_areas, box_corners, box_iou, clip_boxes, enclosing_boxes, transform_boxes

coordinate = st.floats(-500, 500, allow_nan=False, width=32)
extent = st.floats(0.5, 300, allow_nan=False, width=32)


@st.composite
def boxes(draw: st.DrawFn) -> np.ndarray:
    x1, y1 = draw(coordinate), draw(coordinate)
    return np.array([[x1, y1, x1 + draw(extent), y1 + draw(extent)]], dtype=np.float64)


def test_iou_of_hand_computed_boxes() -> None:
    iou = box_iou(np.array([[0, 0, 2, 2]]), np.array([[1, 1, 3, 3], [0, 0, 2, 2], [5, 5, 6, 6]]))

    np.testing.assert_allclose(iou, [[1 / 7, 1.0, 0.0]])


def test_iou_agrees_with_counting_pixels() -> None:
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 20, (30, 2, 2))
    whole = np.concatenate([corners.min(axis=1), corners.max(axis=1) + 1], axis=1).astype(float)
    grid_y, grid_x = np.mgrid[0:22, 0:22] + 0.5

    masks = [(grid_x > b[0]) & (grid_x < b[2]) & (grid_y > b[1]) & (grid_y < b[3]) for b in whole]
    counted = [[(m & n).sum() / (m | n).sum() for n in masks] for m in masks]

    np.testing.assert_allclose(box_iou(whole, whole), counted)


@given(boxes(), boxes())
def test_iou_is_symmetric_and_bounded(one: np.ndarray, other: np.ndarray) -> None:
    iou = box_iou(one, other)

    assert 0.0 <= iou[0, 0] <= 1.0 + 1e-12
    np.testing.assert_allclose(iou, box_iou(other, one).T)


def test_no_boxes_give_empty_answers() -> None:
    none = np.zeros((0, 4))

    assert box_iou(none, none).shape == (0, 0)
    assert box_areas(none).shape == (0,)
    assert transform_boxes(none, np.eye(3)).shape == (0, 4)
    assert clip_boxes(none, 10, 10).shape == (0, 4)


@given(boxes(), st.floats(-np.pi, np.pi), st.floats(0.5, 2.0), coordinate, coordinate)
def test_transformed_box_contains_every_transformed_inner_point(
    box: np.ndarray, angle_rad: float, scale: float, dx: float, dy: float
) -> None:
    c, s = scale * np.cos(angle_rad), scale * np.sin(angle_rad)
    affine = np.array([[c, -s, dx], [s, c, dy]])
    u, v = np.meshgrid(np.linspace(0, 1, 5), np.linspace(0, 1, 5))
    inner = np.stack([box[0, 0] + u * (box[0, 2] - box[0, 0]), box[0, 1] + v * (box[0, 3] - box[0, 1])], axis=-1)

    hull = transform_boxes(box, affine)[0]
    moved = inner.reshape(-1, 2) @ affine[:, :2].T + affine[:, 2]

    assert (moved >= hull[:2] - 1e-6).all()
    assert (moved <= hull[2:] + 1e-6).all()


@given(boxes())
def test_a_right_angle_turn_there_and_back_is_exact(box: np.ndarray) -> None:
    turn = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]])
    back = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])

    np.testing.assert_allclose(transform_boxes(transform_boxes(box, turn), back), box, atol=1e-9)


def test_corners_run_round_the_perimeter() -> None:
    corners = box_corners(np.array([[1.0, 2.0, 5.0, 8.0]]))[0]

    np.testing.assert_array_equal(corners, [[1, 2], [5, 2], [5, 8], [1, 8]])
    np.testing.assert_array_equal(enclosing_boxes(corners[None]), [[1, 2, 5, 8]])


@pytest.mark.parametrize("box", [[-5, -5, 3, 4], [2, 3, 40, 40]])
def test_clipped_box_stays_in_the_picture(box: list[float]) -> None:
    x1, y1, x2, y2 = clip_boxes(np.array([box], dtype=float), 10, 12)[0]

    assert 0 <= x1 <= x2 <= 10
    assert 0 <= y1 <= y2 <= 12
