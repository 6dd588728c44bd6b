# SPDX-License-Identifier: Apache-2.0
"""Anchors of the sizes and shapes that the boxes of a training have: k-means under the distance 1 - IoU.

As Redmon and Farhadi 2017 (arXiv 1612.08242, sec. 2, "Dimension clusters"), with one thing more: an anchor stands on
the grid of its level, a box anywhere, so their IoU is the mean over the places of the box between the points of that
grid. Without it a coarse level is given the shapes of thin walls, which it meets only by chance.
"""

from __future__ import annotations

import numpy as np

from echo_plugin.geometry import FloatArray
from echo_plugin.models.septal_detector import ANCHOR_RATIOS, ANCHOR_SIDES, ANCHORS_PER_LEVEL, STRIDES_PX

ROUNDS = 50
"""Of k-means; it settles in about twenty."""

PLACES = (np.arange(4) + 0.5) / 8
"""How far a box may be from the nearest point of a grid, in its steps, along one axis."""


def placed_iou(shapes: FloatArray, anchors: FloatArray, strides_px: FloatArray) -> FloatArray:
    """Return (N, M) the mean IoU of boxes anywhere, (N, 2) px wide and high, with the nearest anchors of (M, 2) px.

    ``strides_px`` : (M,) steps of the grids on which the anchors stand.
    """
    offsets = PLACES[None, None, :] * strides_px[None, :, None]  # (1, M, P)
    widths, heights = (
        np.clip(
            np.minimum(
                (shapes[:, None, axis] + anchors[None, :, axis])[..., None] / 2 - offsets,
                np.minimum(shapes[:, None, axis], anchors[None, :, axis])[..., None],
            ),
            0,
            None,
        )
        for axis in (0, 1)
    )
    common = widths[:, :, :, None] * heights[:, :, None, :]  # (N, M, P, P)
    union = (shapes.prod(axis=1)[:, None] + anchors.prod(axis=1)[None])[:, :, None, None] - common
    mean: FloatArray = (common / union).mean(axis=(2, 3))
    return mean


def fixed_shapes() -> FloatArray:
    """Return (M, 2) widths and heights of the fixed family, as parts of the input side, finest level first."""
    return np.array(
        [(side / ratio**0.5, side * ratio**0.5) for level in ANCHOR_SIDES for ratio in ANCHOR_RATIOS for side in level]
    )


def fit_anchors(boxes: FloatArray, side_px: float) -> tuple[float, ...]:
    """Return ``DetectorConfig.anchor_shapes`` for (N, 4) XYXY boxes, px of a square of ``side_px``.

    Begins with the fixed family and never ends below it: an anchor that no box is nearest to stays where it was.
    """
    shapes = boxes[:, 2:] - boxes[:, :2]
    strides = np.repeat(np.array(STRIDES_PX, dtype=float), ANCHORS_PER_LEVEL)
    anchors = fixed_shapes() * side_px
    best, best_iou = anchors, -1.0
    for _ in range(ROUNDS if len(shapes) else 0):
        overlaps = placed_iou(shapes, anchors, strides)
        owner, mean_iou = overlaps.argmax(axis=1), overlaps.max(axis=1).mean()
        if mean_iou <= best_iou:
            break
        best, best_iou = anchors, mean_iou
        anchors = anchors.copy()
        for index in np.unique(owner):
            anchors[index] = np.median(shapes[owner == index], axis=0)
    return tuple(float(part) for part in (best / side_px).ravel())
