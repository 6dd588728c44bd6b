# SPDX-License-Identifier: Apache-2.0
"""Arithmetic of axis-aligned boxes in continuous pixel coordinates.

x = column, y = row, origin at the OUTER corner of the top-left pixel, so that pixel (0, 0) spans 0..1
(DICOM SCOORD, PS3.3 C.18.6.1; torchvision's XYXY). Arrays of boxes are (N, 4) float, XYXY px, x1 < x2 and y1 < y2.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def box_areas(boxes: FloatArray) -> FloatArray:
    """Return the (N,) areas in px² of (N, 4) boxes."""
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    areas: FloatArray = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return areas


def box_iou(boxes: FloatArray, others: FloatArray) -> FloatArray:
    """Return the (N, M) intersection over union of every box with every other; empty in, empty out."""
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    others = np.asarray(others, dtype=np.float64).reshape(-1, 4)
    top_left = np.maximum(boxes[:, None, :2], others[None, :, :2])
    bottom_right = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    overlap = np.clip(bottom_right - top_left, 0.0, None).prod(axis=2)
    union = box_areas(boxes)[:, None] + box_areas(others)[None, :] - overlap
    iou: FloatArray = overlap / np.maximum(union, np.finfo(np.float64).tiny)
    return iou


def box_corners(boxes: FloatArray) -> FloatArray:
    """Return the (N, 4, 2) corners (x, y) of (N, 4) boxes in perimeter order TL, TR, BR, BL."""
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    return boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]]


def enclosing_boxes(points: FloatArray) -> FloatArray:
    """Return the (N, 4) smallest boxes around (N, P, 2) points, P >= 1."""
    points = np.asarray(points, dtype=np.float64)
    return np.concatenate([points.min(axis=1), points.max(axis=1)], axis=1)


def transform_boxes(boxes: FloatArray, affine: FloatArray) -> FloatArray:
    """Return the (N, 4) axis-aligned hulls of boxes moved by a (2, 3) or (3, 3) affine acting on (x, y, 1)."""
    affine = np.asarray(affine, dtype=np.float64)[:2]
    corners = box_corners(boxes) @ affine[:, :2].T + affine[:, 2]
    return enclosing_boxes(corners) if len(corners) else corners.reshape(0, 4)


def clip_boxes(boxes: FloatArray, width: float, height: float) -> FloatArray:
    """Return the (N, 4) boxes cut to 0..width and 0..height; what lies wholly outside gets zero area."""
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    return np.clip(boxes, 0.0, np.array([width, height, width, height], dtype=np.float64))
