# SPDX-License-Identifier: Apache-2.0
"""The great vessels as chains of tapering capsules, in unit-heart coordinates (see ``heart``)."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

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
