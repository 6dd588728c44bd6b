# SPDX-License-Identifier: Apache-2.0
"""Septal boxes that follow from masks of chambers and tracings of the left ventricle, in apical four-chamber views.

Weak: nobody drew them, and a wall is found from what lies beside it. They suppose the usual display, apex up and the
left heart on the right; whether atria lie below ventricles, and the left heart to the right, is checked where masks
tell. Pixels are continuous coordinates: the pixel in column c spans c..c+1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from echo_plugin.anatomy import Septum
from echo_plugin.annotations import SeptalBox
from echo_plugin.cine import ByteArray
from echo_plugin.io.datasets.source_cine import WEAK_SCORE, WeakBoxes

WALL_OF_LENGTH = 0.12
"""Thickness of a septum as part of the left ventricle's length (about 9 of 80 mm in adults, 6 of 55 mm in children)."""
GAP_OF_HEART = 0.12
"""Two chambers further apart than this part of the heart's extent have no wall in common."""
LEAST_BOX_PX = 2.0

Points = NDArray[np.float64]
Mask = NDArray[np.bool_]


def septum_left_of_ventricle(points: Points, frame_index: int) -> SeptalBox:
    """Return the interventricular septum beside a traced left ventricle: its left border, widened by a wall.

    ``points`` : (N, 2) x, y px on the endocardium, N >= 3.

    Raises
    ------
    ValueError
        If the points are fewer, not finite or without extent.
    """
    if len(points) < 3 or not np.isfinite(points).all():
        msg = f"the tracing of frame {frame_index} has {len(points)} usable points"
        raise ValueError(msg)
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    first, second = np.unravel_index(distances.argmax(), distances.shape)
    length = float(distances.max())
    if length < LEAST_BOX_PX:
        msg = f"the tracing of frame {frame_index} has no extent"
        raise ValueError(msg)
    top, bottom = sorted((points[first], points[second]), key=lambda point: float(point[1]))
    along = bottom - top
    side = (points[:, 0] - top[0]) * along[1] - (points[:, 1] - top[1]) * along[0]
    border = points[side <= 1e-9 * length]  # left of the long axis on the screen, its ends included
    wall = WALL_OF_LENGTH * length
    x1, y1 = border.min(axis=0) - wall
    x2, y2 = border[:, 0].max(), border[:, 1].max()
    return _box(frame_index, (max(x1, 0.0), max(y1, 0.0), x2, y2), Septum.INTERVENTRICULAR)


def septum_of_myocardium(masks: ByteArray, *, ventricle: int, myocardium: int, atrium: int) -> WeakBoxes:
    """Return the interventricular septum of every frame: the myocardium left of the left ventricle's long axis.

    ``masks`` : (T, H, W) labels. The axis runs from the atrium's centre through the ventricle's.
    """
    boxes = []
    for frame_index, mask in enumerate(masks):
        cavity, wall, below = (_points(mask == label) for label in (ventricle, myocardium, atrium))
        if min(map(len, (cavity, wall, below))) == 0:
            continue
        top, bottom = cavity.mean(axis=0), below.mean(axis=0)
        along = bottom - top
        if along[1] <= abs(along[0]):
            return WeakBoxes(problem="the left atrium is not below the left ventricle")
        side = (wall[:, 0] - top[0]) * along[1] - (wall[:, 1] - top[1]) * along[0]
        septal = wall[side < 0]
        if len(septal):
            boxes.append(_around(frame_index, septal, Septum.INTERVENTRICULAR))
    return WeakBoxes(tuple(boxes), None if boxes else "no frame has ventricle, myocardium and atrium")


def septa_between_chambers(masks: ByteArray, *, lv: int, la: int, ra: int, rv: int) -> WeakBoxes:
    """Return both septa of every frame that has all four chambers: what lies between the chambers of each pair.

    ``masks`` : (T, H, W) labels. If the atria lie beside the ventricles, the file is transposed; the boxes are then
    those of the picture put right.
    """
    boxes: list[SeptalBox] = []
    turned: list[bool] = []
    for frame_index, mask in enumerate(masks):
        if not all((mask == label).any() for label in (lv, la, ra, rv)):
            continue
        turned.append(_is_transposed(mask, ventricles=(lv, rv), atria=(la, ra)))
        upright = mask.T if turned[-1] else mask
        centres = {label: _points(upright == label).mean(axis=0) for label in (lv, la, ra, rv)}
        if centres[la][1] <= centres[lv][1] or centres[ra][1] <= centres[rv][1]:
            return WeakBoxes(problem="the mask has atria above ventricles")
        if centres[lv][0] <= centres[rv][0] or centres[la][0] <= centres[ra][0]:
            return WeakBoxes(problem="the mask has the left heart on the left")
        for septum, pair in ((Septum.INTERATRIAL, (la, ra)), (Septum.INTERVENTRICULAR, (lv, rv))):
            between = _between(upright == pair[0], upright == pair[1], extent=_extent(upright > 0))
            if len(between):
                boxes.append(_around(frame_index, between, septum))
    if len(set(turned)) > 1:
        return WeakBoxes(problem="the mask is upright in some frames only")
    return WeakBoxes(tuple(boxes), None if boxes else "no frame has all four chambers", bool(turned and turned[0]))


def _is_transposed(mask: ByteArray, *, ventricles: tuple[int, int], atria: tuple[int, int]) -> bool:
    dx, dy = _points(np.isin(mask, atria)).mean(axis=0) - _points(np.isin(mask, ventricles)).mean(axis=0)
    return bool(abs(dx) > abs(dy))


def _between(first: Mask, second: Mask, *, extent: float) -> Points:
    """Return (N, 2) centres of the pixels of the wall between two masks; none if they are too far apart."""
    distances = [distance_transform_edt(~mask) for mask in (first, second)]
    gap = float((distances[0] + distances[1]).min())
    if gap > GAP_OF_HEART * extent:
        return np.empty((0, 2))
    reach = max(gap, GAP_OF_HEART * extent)
    near = (np.maximum(*distances) <= reach) & ~first & ~second
    return _points(near & (distances[0] + distances[1] <= 1.25 * gap + 0.5))


def _extent(mask: Mask) -> float:
    points = _points(mask)
    return float(np.linalg.norm(points.max(axis=0) - points.min(axis=0)))


def _points(mask: Mask) -> Points:
    """Return (N, 2) x, y of pixel centres."""
    rows, columns = np.nonzero(mask)
    return np.stack([columns, rows], axis=1) + 0.5


def _around(frame_index: int, points: Points, septum: Septum) -> SeptalBox:
    low, high = points.min(axis=0) - 0.5, points.max(axis=0) + 0.5
    return _box(frame_index, (*low, *high), septum)


def _box(frame_index: int, corners: tuple[float, float, float, float], septum: Septum) -> SeptalBox:
    x1, y1, x2, y2 = (float(corner) for corner in corners)
    return SeptalBox(frame_index, x1, y1, max(x2, x1 + 1.0), max(y2, y1 + 1.0), septum, WEAK_SCORE)
