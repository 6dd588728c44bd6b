# SPDX-License-Identifier: Apache-2.0
"""Anchors fitted to boxes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection.image_list import ImageList

from echo_plugin.geometry import box_iou
from echo_plugin.models.septal_detector import ExactAnchors
from echo_plugin.network_config import ANCHORS_PER_LEVEL, STRIDES_PX, DetectorConfig
from echo_plugin.training.detector_recipes import fit_anchors, fixed_shapes, placed_iou

SIDE = 192
STRIDES = np.repeat(np.array(STRIDES_PX, dtype=float), ANCHORS_PER_LEVEL)


def _grid(shapes):
    """Every anchor of a detector on its frame, (N, 4) px."""
    generator = ExactAnchors(DetectorConfig(input_size_px=SIDE, anchor_shapes=shapes))
    features = [torch.zeros(1, 1, SIDE // stride, SIDE // stride) for stride in STRIDES_PX]
    return generator(ImageList(torch.zeros(1, 1, SIDE, SIDE), [(SIDE, SIDE)]), features)[0].double().numpy()


def _boxes(rng, count, widths, heights):
    x, y = rng.uniform(60, 130, (2, count))
    w, h = rng.uniform(*widths, count), rng.uniform(*heights, count)
    return np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], axis=1)


def test_the_family_without_a_fit_is_the_one_that_starter_cards_mean():
    assert fixed_shapes().shape == (24, 2)
    fixed, named = _grid(()), _grid(tuple(fixed_shapes().ravel()))

    for anchor in fixed[:: len(fixed) // 50]:
        assert box_iou(anchor[None], named).max() > 0.9  # torchvision rounds the sides of its own to whole pixels


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(4, 60), st.floats(4, 60))
def test_a_fit_is_never_worse_than_the_fixed_family(seed, width, height):
    boxes = _boxes(np.random.default_rng(seed), 60, (width, 2 * width), (height, 2 * height))
    shapes = boxes[:, 2:] - boxes[:, :2]

    fitted = np.array(fit_anchors(boxes, SIDE)).reshape(-1, 2) * SIDE

    ours, fixed = (placed_iou(shapes, a, STRIDES).max(axis=1).mean() for a in (fitted, fixed_shapes() * SIDE))
    assert ours >= fixed - 1e-9


def test_boxes_of_one_shape_have_an_anchor_of_that_shape():
    boxes = np.array([[10.0, 20.0, 31.0, 95.0]] * 5)

    fitted = np.array(fit_anchors(boxes, SIDE)).reshape(-1, 2) * SIDE

    assert np.abs(fitted - [21.0, 75.0]).sum(axis=1).min() < 1e-6


def test_a_fit_depends_on_shapes_alone_and_not_on_places_or_order():
    boxes = _boxes(np.random.default_rng(1), 80, (8, 25), (20, 70))

    assert fit_anchors(boxes, SIDE) == pytest.approx(fit_anchors(boxes[::-1] + 17, SIDE))


def test_placed_iou_is_the_mean_over_the_places_of_a_box():
    rng = np.random.default_rng(0)
    shape, anchor, stride = np.array([20.0, 50.0]), np.array([24.0, 40.0]), 16.0
    middles = rng.uniform(-stride / 2, stride / 2, (4000, 2))
    boxes = np.concatenate([middles - shape / 2, middles + shape / 2], axis=1)

    counted = box_iou(boxes, np.concatenate([-anchor / 2, anchor / 2])[None]).mean()

    assert placed_iou(shape[None], anchor[None], np.array([stride]))[0, 0] == pytest.approx(counted, abs=0.01)


@pytest.mark.heavy
def test_boxes_unlike_any_septum_are_met_better_on_the_grid_itself():
    boxes = _boxes(np.random.default_rng(2), 300, (90, 130), (12, 18))

    fixed, fitted = (box_iou(boxes, _grid(shapes)).max(axis=1).mean() for shapes in ((), fit_anchors(boxes, SIDE)))

    assert fitted > fixed + 0.02


def test_no_boxes_leave_the_fixed_family():
    assert fit_anchors(np.zeros((0, 4)), SIDE) == pytest.approx(tuple(fixed_shapes().ravel()))


@pytest.mark.parametrize("shapes", [(0.1,) * 47, (0.1,) * 47 + (0.0,)])
def test_anchors_that_are_too_few_or_empty_are_refused(shapes):
    with pytest.raises(ValueError, match=r"anchor_shapes are 4[78] numbers; none, or 48 between 0 and 4"):
        DetectorConfig(anchor_shapes=shapes)
