# SPDX-License-Identifier: Apache-2.0
"""The shape of the heart at end diastole as signed distances: cavities, walls, septa, vessels, surroundings.

Points are (N, 3) in unit-heart coordinates (see ``heart``); a distance is negative inside. Ellipsoids are cut by
planes, the great vessels are chains of tapering capsules, septa are the walls between two cavities.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from echo_plugin.phantom.heart import Heart, Hole

FloatArray = NDArray[np.float32]
Vertex = tuple[float, float, float, float]
"""x, y, z, radius of a vessel's centre line."""

AORTA: tuple[Vertex, ...] = (
    (0.27, 0.12, 0.25, 0.20),
    (0.20, 0.30, 0.00, 0.22),
    (0.12, 0.37, -0.20, 0.26),
    (0.05, 0.44, -0.40, 0.22),
    (-0.10, 0.58, -1.00, 0.21),
    (-0.03, 0.62, -1.45, 0.20),
    (0.18, 0.45, -1.80, 0.19),
    (0.42, 0.05, -1.76, 0.17),
    (0.52, -0.42, -1.40, 0.16),
    (0.52, -0.88, -0.80, 0.15),
    (0.44, -1.02, 0.00, 0.15),
    (0.36, -1.08, 1.10, 0.14),
)
ARCH_BRANCHES: tuple[tuple[Vertex, ...], ...] = (
    ((0.05, 0.58, -1.66, 0.09), (-0.10, 1.00, -2.20, 0.08)),
    ((0.18, 0.45, -1.84, 0.06), (0.16, 0.85, -2.40, 0.055)),
    ((0.32, 0.20, -1.84, 0.065), (0.45, 0.55, -2.45, 0.06)),
)
PULMONARY_TRUNK: tuple[Vertex, ...] = (
    (-0.34, 0.42, 0.38, 0.30),
    (-0.10, 0.68, 0.14, 0.23),
    (0.22, 0.80, -0.18, 0.20),
    (0.44, 0.68, -0.58, 0.21),
    (0.46, 0.38, -0.98, 0.20),
)
PULMONARY_BRANCHES: tuple[tuple[Vertex, ...], ...] = (
    ((0.46, 0.38, -0.98, 0.14), (-0.02, 0.12, -1.14, 0.13), (-0.60, 0.08, -1.22, 0.11)),
    ((0.46, 0.38, -0.98, 0.14), (0.78, -0.02, -1.16, 0.12), (1.15, -0.20, -1.15, 0.10)),
)
VENA_CAVA_SUPERIOR: tuple[Vertex, ...] = (
    (-0.42, 0.10, -0.72, 0.16),
    (-0.47, 0.46, -1.45, 0.14),
    (-0.44, 0.85, -2.1, 0.13),
)
VENA_CAVA_INFERIOR: tuple[Vertex, ...] = (
    (-0.38, -0.32, -0.52, 0.17),
    (-0.42, -0.8, -0.3, 0.15),
    (-0.45, -1.9, 0.2, 0.15),
)
PULMONARY_VEINS: tuple[tuple[Vertex, ...], ...] = (
    ((0.55, -0.38, -0.70, 0.10), (1.05, -0.60, -0.98, 0.08)),
    ((0.20, -0.42, -0.76, 0.09), (-0.45, -0.62, -1.02, 0.07)),
)
NEAR = 0.25
"""From this distance of its bounding box on, the distance to a vessel is that to the box."""


def vessel(points: FloatArray, line: tuple[Vertex, ...], scale: float = 1.0) -> FloatArray:
    """Return the signed distance (N,) to a vessel; far from it, the distance to its bounding box."""
    vertices = np.asarray(line, np.float32)
    radius = np.float32(scale) * vertices[:, 3:]
    low, high = (vertices[:, :3] - radius).min(axis=0), (vertices[:, :3] + radius).max(axis=0)
    gap = points - np.clip(points, low, high)
    distance = np.sqrt(np.einsum("ij,ij->i", gap, gap))
    near = distance < NEAR
    distance[near] = _chain(points[near], vertices[:, :3], radius[:, 0])
    return distance


def _chain(points: FloatArray, vertices: FloatArray, radii: FloatArray) -> FloatArray:
    distance = np.full(len(points), np.inf, np.float32)
    for (start, first), (end, last) in pairwise(zip(vertices, radii, strict=True)):
        step = end - start
        offset = points - start
        along = np.clip(offset @ step / (step @ step), 0, 1)
        offset -= along[:, None] * step
        length = np.sqrt(np.einsum("ij,ij->i", offset, offset))
        np.minimum(distance, length - first - (last - first) * along, out=distance)
    return distance


PAPILLARY_MUSCLES = ((0.33, -0.30), (0.28, 0.28))
"""Offsets (x, y) from the axis of the left ventricle, as shares of its diameter."""

MITRAL_CENTRE, MITRAL_RADIUS = (0.43, -0.13, 0.0), 0.33
TRICUSPID_CENTRE, TRICUSPID_RADIUS = (-0.44, -0.03, 0.07), 0.34
FOSSA_CENTRE_YZ, FOSSA_RADIUS = (-0.08, -0.45), 0.24


class Tissue(IntEnum):
    """What a material point is made of."""

    BLOOD = 0
    MYOCARDIUM = 1
    ATRIAL_WALL = 2
    VESSEL_WALL = 3
    FIBROUS = 4
    CONNECTIVE = 5
    LIVER = 6
    LUNG = 7


@dataclass(frozen=True)
class Distances:
    """Signed distances (N,), unit-heart: ``blood`` to all cavities, ``outside`` to the pericardium, and parts."""

    blood: FloatArray
    outside: FloatArray
    lv: FloatArray
    rv: FloatArray
    atria: FloatArray
    vessels: FloatArray


def ellipsoid(points: FloatArray, centre: tuple[float, float, float], axes: tuple[float, float, float]) -> FloatArray:
    """Return the approximate signed distance to an ellipsoid (exact on its surface)."""
    scaled = (points - np.asarray(centre, np.float32)) / np.asarray(axes, np.float32)
    level = np.sqrt(np.einsum("ij,ij->i", scaled, scaled)) + np.float32(1e-6)
    scaled /= np.asarray(axes, np.float32)
    slope = np.sqrt(np.einsum("ij,ij->i", scaled, scaled)) + np.float32(1e-6)
    return level * (level - 1) / slope


def left_ventricle(points: FloatArray, heart: Heart, wall: float = 0.0) -> FloatArray:
    """Return the distance to the untruncated left ventricle grown by ``wall``."""
    half_length = heart.lv_length - heart.lv_centre_z + wall
    radius = heart.lv_radius + wall
    return ellipsoid(points, (heart.lv_axis_x, 0.0, heart.lv_centre_z), (radius, radius, half_length))


def atrial_septum_x(points: FloatArray, heart: Heart) -> FloatArray:
    """Return the x of the middle of the interatrial septum at each point's y and z."""
    depth = np.clip(-points[:, 2], 0.0, 1.0)
    return np.float32(heart.atrial_septum_bow) * np.sin(np.float32(np.pi) * depth)


def atrial_septum_thickness(points: FloatArray, heart: Heart) -> FloatArray:
    """Return the thickness of the interatrial septum at each point's y and z: thin in the fossa ovalis."""
    y, z = points[:, 1] - FOSSA_CENTRE_YZ[0], points[:, 2] - FOSSA_CENTRE_YZ[1]
    rim = np.clip((np.sqrt(y * y + z * z) - 0.75 * FOSSA_RADIUS) / (0.5 * FOSSA_RADIUS), 0, 1)
    return np.float32(heart.fossa_thickness) + (heart.atrial_septum - heart.fossa_thickness) * rim * rim * (3 - 2 * rim)


def atrium_bounds(points: FloatArray, heart: Heart) -> tuple[FloatArray, FloatArray]:
    """Return the distances to the right and the left atrium before the septum parts them."""
    ra, la = heart.ra_scale, heart.la_scale
    right = ellipsoid(points, (-0.32 * ra, -0.06, -0.42), (0.62 * ra, 0.52 * ra, 0.55 * ra))
    left = ellipsoid(points, (0.34 * la, -0.2, -0.42), (0.56 * la, 0.42 * la, 0.52 * la))
    return right, left


def hole_distance(points: FloatArray, hole: Hole, half_length: float = 0.14) -> FloatArray:
    """Return the distance to the cylinder of a defect."""
    offset = points - np.asarray(hole.centre, np.float32)
    along = offset @ np.asarray(hole.axis, np.float32)
    across = np.sqrt(np.maximum(np.einsum("ij,ij->i", offset, offset) - along * along, 0))
    return np.maximum(across - np.float32(hole.radius), np.abs(along) - np.float32(half_length))


def _annulus(points: FloatArray, centre: tuple[float, float, float], radius: float) -> FloatArray:
    x, y = points[:, 0] - np.float32(centre[0]), points[:, 1] - np.float32(centre[1])
    return np.maximum(np.sqrt(x * x + y * y) - np.float32(radius), np.abs(points[:, 2] - np.float32(centre[2])) - 0.12)


def _muscles_in_left_ventricle(points: FloatArray, heart: Heart) -> FloatArray:
    """Return the distance to the papillary muscles."""
    distance = np.full(len(points), np.inf, np.float32)
    length, width = heart.lv_length, 2 * heart.lv_radius
    for x, y in PAPILLARY_MUSCLES:
        tip = (heart.lv_axis_x + 0.66 * x * width, 0.66 * y * width, 0.40 * length, 0.085)
        root = (heart.lv_axis_x + 0.92 * x * width, 0.92 * y * width, 0.72 * length, 0.13)
        np.minimum(distance, vessel(points, (tip, root)), out=distance)
    return distance


def distances(points: FloatArray, heart: Heart, *, with_hole: bool = True) -> Distances:
    """Return the signed distances of every point to the cavities and to the outer surface of the heart."""
    points = np.ascontiguousarray(points, np.float32)
    z = points[:, 2]
    scale = heart.great_artery_scale
    aorta = vessel(points, AORTA, scale)
    for branch in ARCH_BRANCHES:
        np.minimum(aorta, vessel(points, branch, scale), out=aorta)
    past_aorta = np.float32(0.05) - aorta
    pulmonary = vessel(points, PULMONARY_TRUNK, scale)
    for branch in PULMONARY_BRANCHES:
        np.minimum(pulmonary, vessel(points, branch, scale), out=pulmonary)
    pulmonary = np.maximum(pulmonary, past_aorta)
    veins = np.minimum(vessel(points, VENA_CAVA_SUPERIOR), vessel(points, VENA_CAVA_INFERIOR))
    for branch in PULMONARY_VEINS:
        np.minimum(veins, vessel(points, branch), out=veins)
    lv_epicardium = left_ventricle(points, heart, heart.lv_wall)
    lv = np.maximum(left_ventricle(points, heart), 0.02 - z)
    lv = np.minimum(lv, _annulus(points, MITRAL_CENTRE, MITRAL_RADIUS))
    lv = np.maximum(lv, -_muscles_in_left_ventricle(points, heart))
    rv = _right_ventricle(points, heart, lv_epicardium, past_aorta)
    right, left = atrium_bounds(points, heart)
    septum_x, half = atrial_septum_x(points, heart), 0.5 * atrial_septum_thickness(points, heart)
    right = np.maximum(np.maximum(right, points[:, 0] - septum_x + half), np.maximum(z - 0.04, past_aorta))
    left = np.maximum(np.maximum(left, septum_x + half - points[:, 0]), np.maximum(z + 0.03, past_aorta))
    atria = np.minimum(right, left)
    vessels = np.minimum(np.minimum(aorta, pulmonary), veins)
    blood = np.minimum(np.minimum(lv, rv), np.minimum(atria, vessels))
    if with_hole and heart.hole is not None:
        np.minimum(blood, hole_distance(points, heart.hole), out=blood)
    walls = np.minimum(np.maximum(lv_epicardium, -0.1 - z), rv - np.float32(heart.rv_wall))
    outside = np.minimum(np.minimum(walls, atria - np.float32(0.05)), vessels - np.float32(0.035))
    return Distances(blood, outside, lv, rv, atria, vessels)


def _right_ventricle(points: FloatArray, heart: Heart, lv_epicardium: FloatArray, past_aorta: FloatArray) -> FloatArray:
    """Return the distance to the right ventricle: a crescent round the left one, with its inflow and its muscle."""
    rv = heart.rv_scale
    apex = 0.86 * heart.lv_length
    body = ellipsoid(points, (-0.14, 0.10, 0.33), (0.74 * rv, 0.62 * rv, apex - 0.33))
    body = np.maximum(np.maximum(body, -lv_epicardium), np.maximum(0.1 - points[:, 2], past_aorta))
    moderator = vessel(points, ((-0.30, 0.05, 0.95, 0.035), (-0.62 * rv, 0.2, 0.72, 0.03)))
    body = np.maximum(body, -moderator)
    inflow = np.maximum(_annulus(points, TRICUSPID_CENTRE, TRICUSPID_RADIUS), past_aorta)
    return np.minimum(body, np.maximum(inflow, -lv_epicardium))


def outward_normals(points: FloatArray, heart: Heart, name: str, step: float = 0.01) -> tuple[FloatArray, FloatArray]:
    """Return the unit gradient (N, 3) of one of the ``Distances`` and its value (N,)."""
    value = getattr(distances(points, heart), name)
    gradient = np.empty_like(points)
    for axis in range(3):
        moved = points.copy()
        moved[:, axis] += step
        gradient[:, axis] = getattr(distances(moved, heart), name) - value
    gradient /= np.linalg.norm(gradient, axis=1, keepdims=True) + np.float32(1e-9)
    return gradient, value


def tissue_at(points: FloatArray, heart: Heart, parts: Distances) -> NDArray[np.uint8]:
    """Return the ``Tissue`` (N,) of each point."""
    tissue = np.full(len(points), Tissue.CONNECTIVE, np.uint8)
    x, y, z = points.T
    tissue[0.45 * x + 0.85 * y - 0.15 * z < -1.0] = Tissue.LIVER
    lateral = (x > heart.lv_axis_x + 0.4) & (z > -0.5 - heart.lung_gap)
    tissue[(parts.outside > 0.04 + 0.3 * heart.lung_gap) & (lateral | (x < -1.0 - heart.lung_gap) & (y > -0.3))] = (
        Tissue.LUNG
    )
    tissue[parts.outside < 0] = Tissue.MYOCARDIUM
    tissue[(parts.vessels < 0.035) & (parts.lv > 0) & (parts.rv > 0)] = Tissue.VESSEL_WALL
    tissue[(parts.atria < 0.05) & (z < 0.04)] = Tissue.ATRIAL_WALL
    crux = np.sqrt((x / 0.12) ** 2 + ((y + 0.02) / 0.3) ** 2 + ((z - 0.03) / 0.14) ** 2) < 1
    tissue[crux] = Tissue.FIBROUS
    tissue[parts.blood < 0] = Tissue.BLOOD
    return tissue


def in_interventricular_septum(points: FloatArray, heart: Heart) -> NDArray[np.bool_]:
    """Return which points are of the wall between the ventricles, from the crux to the apex, the hole included."""
    inner, outer = left_ventricle(points, heart), left_ventricle(points, heart, heart.lv_wall)
    parts = distances(points, heart, with_hole=False)
    x, y, z = points[:, 0] - heart.lv_axis_x, points[:, 1], points[:, 2]
    apical = (z > 0.8 * heart.lv_length) & (x < -0.1) & (z < 0.95 * heart.lv_length)
    insertion = np.where(y > 0, 0.3, 0.6) * np.abs(y)
    faces_right = (parts.rv < 1.25 * heart.lv_wall) | apical
    return (inner > 0) & (outer < 0.01) & (z > -0.02) & (z < 0.95 * heart.lv_length) & (x < -insertion) & faces_right


def in_interatrial_septum(points: FloatArray, heart: Heart) -> NDArray[np.bool_]:
    """Return which points are of the wall between the atria, from the crux to their roof, the hole included."""
    right, left = atrium_bounds(points, heart)
    aside = np.abs(points[:, 0] - atrial_septum_x(points, heart))
    aorta = vessel(points, AORTA[:5], heart.great_artery_scale)
    inside = np.maximum(right, left) < 0.02
    return inside & (aside < 0.5 * atrial_septum_thickness(points, heart)) & (points[:, 2] < 0.02) & (aorta > 0.03)
