# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from echo_plugin.geometry import transform_boxes
from echo_plugin.training.augment import (
    DETECTOR_MOTION,
    VIEW_MOTION,
    Motion,
    centre_affines,
    change_appearance,
    compose,
    move_boxes,
    random_affines,
    visible_boxes,
    warp,
)

torch.set_num_threads(1)
STILL = Motion(0, 0, 0, 0, 0)


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _ellipse(box, side):
    """1 inside the ellipse that a box holds."""
    y, x = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")
    x1, y1, x2, y2 = box
    inside = ((x - (x1 + x2) / 2) / ((x2 - x1) / 2)) ** 2 + ((y - (y1 + y2) / 2) / ((y2 - y1) / 2)) ** 2 <= 1
    return inside.float()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(20, 50), st.floats(20, 50), st.floats(8, 25), st.floats(8, 40))
def test_moved_box_contains_the_moved_wall_and_is_tight_around_it(seed, x1, y1, width, height):
    side, box = 96, (x1, y1, x1 + width, y1 + height)
    affines = random_affines(1, side, Motion(20, 0.2, 0.1, 0.05, 0.5), _generator(seed))

    moved = warp(_ellipse(box, side)[None, None], affines, side)[0, 0] > 0.5
    x1, y1, x2, y2 = move_boxes(torch.tensor([[box]]), affines)[0, 0].tolist()
    rows, columns = (where.float() + 0.5 for where in torch.where(moved))

    assert columns.min() >= x1 - 0.6 and columns.max() <= x2 + 0.6
    assert rows.min() >= y1 - 0.6 and rows.max() <= y2 + 0.6
    if x1 > 1 and y1 > 1 and x2 < side - 1 and y2 < side - 1:
        assert columns.min() - x1 < 3 and x2 - columns.max() < 3
        assert rows.min() - y1 < 3 and y2 - rows.max() < 3


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_moved_box_lies_in_the_hull_of_the_moved_corners(seed):
    box = torch.tensor([[[30.0, 20.0, 50.0, 80.0]]])
    affines = random_affines(1, 100, DETECTOR_MOTION, _generator(seed))

    ours = move_boxes(box, affines)[0, 0].numpy()
    hull = transform_boxes(box[0].numpy(), affines[0].numpy())[0]

    assert np.all(ours[:2] >= hull[:2] - 1e-3) and np.all(ours[2:] <= hull[2:] + 1e-3)
    assert (ours[:2] + ours[2:]) == pytest.approx(hull[:2] + hull[2:], abs=1e-2)


def test_no_motion_changes_nothing():
    frames = torch.rand(2, 3, 32, 32, generator=_generator())
    affines = random_affines(2, 32, STILL, _generator())

    assert torch.allclose(warp(frames, affines, 32), frames, atol=1e-5)
    assert torch.allclose(move_boxes(torch.tensor([[[1.0, 2, 5, 9]]] * 2), affines)[0, 0], torch.tensor([1.0, 2, 5, 9]))


def test_mirror_reflects_pixels_and_boxes_alike():
    frames = torch.zeros(1, 1, 16, 16)
    frames[0, 0, 3:8, 1:4] = 1
    affines = random_affines(1, 16, Motion(0, 0, 0, 0, mirror=1.0), _generator())

    assert torch.allclose(warp(frames, affines, 16), frames.flip(3), atol=1e-5)
    assert move_boxes(torch.tensor([[[1.0, 3, 4, 8]]]), affines).tolist() == [[[12.0, 3.0, 15.0, 8.0]]]


def test_views_are_never_mirrored():
    affines = random_affines(500, 100, VIEW_MOTION, _generator())

    assert torch.linalg.det(affines[:, :, :2]).min() > 0
    assert torch.linalg.det(random_affines(500, 100, DETECTOR_MOTION, _generator())[:, :, :2]).min() < 0


def test_all_frames_of_a_clip_move_alike():
    clip = torch.rand(1, 1, 32, 32, generator=_generator()).expand(1, 4, 32, 32)

    moved = warp(clip, random_affines(1, 32, VIEW_MOTION, _generator(3)), 32)

    assert torch.equal(moved[:, 0], moved[:, 3])
    assert not torch.allclose(moved, clip)


def test_composed_affines_do_one_after_the_other():
    first, second = (random_affines(2, 64, DETECTOR_MOTION, _generator(i)) for i in (1, 2))
    point = torch.tensor([10.0, 20.0])

    once = (first[:, :, :2] @ point[:, None])[:, :, 0] + first[:, :, 2]
    twice = (second[:, :, :2] @ once[:, :, None])[:, :, 0] + second[:, :, 2]
    both = compose(second, first)

    assert torch.allclose((both[:, :, :2] @ point[:, None])[:, :, 0] + both[:, :, 2], twice, atol=1e-4)


def test_centre_affine_cuts_the_middle():
    frames = torch.rand(1, 1, 20, 20, generator=_generator())

    assert torch.allclose(warp(frames, centre_affines(1, 20, 12), 12), frames[:, :, 4:16, 4:16], atol=1e-5)


def test_box_that_leaves_the_picture_is_dropped_and_one_that_mostly_stays_is_cut():
    boxes = torch.tensor([[[-8.0, 0, 2, 10], [-2.0, 0, 8, 10], [torch.nan] * 4]])

    kept = visible_boxes(boxes, 32)

    assert torch.isnan(kept[0, 0]).all() and torch.isnan(kept[0, 2]).all()
    assert kept[0, 1].tolist() == [0.0, 0.0, 8.0, 10.0]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_appearance_stays_in_range_and_depends_on_the_seed_alone(seed):
    frames = torch.rand(3, 2, 48, 48, generator=_generator(seed))
    before = frames.clone()

    once, again = (change_appearance(frames, _generator(seed)) for _ in range(2))

    assert torch.equal(once, again) and torch.equal(frames, before)
    assert torch.isfinite(once).all() and once.min() >= 0 and once.max() <= 1
    assert not torch.equal(once, change_appearance(frames, _generator(seed + 1)))


def test_appearance_covers_pictures_as_dark_as_real_ones():
    frames = torch.full((64, 1, 48, 48), 0.35)

    means = change_appearance(frames, _generator()).mean((1, 2, 3))

    assert means.min() < 0.06
    assert means.max() > 0.35
