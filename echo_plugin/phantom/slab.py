# SPDX-License-Identifier: Apache-2.0
"""The slice of heart that the beam meets during a recording: material points thrown into it once.

The slab is as thick as the beam plus what heart, breath and hand move through the plane.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from echo_plugin.phantom.chambers import Distances, distances
from echo_plugin.phantom.heart import Heart
from echo_plugin.phantom.motion import MaterialPoints, material_points
from echo_plugin.phantom.scan_planes import Pose
from echo_plugin.phantom.speckle import PolarGrid
from echo_plugin.phantom.vessels import FloatArray

SCATTERERS_PER_CELL = 7.0
"""Scatterers in a resolution cell: enough for fully developed speckle."""
REACH_SIGMAS = 2.2
"""Half the thickness of the beam in standard deviations of its elevation profile."""

Moment = tuple[float, Pose]
"""A phase of the beat and the pose of the probe then."""


@dataclass(frozen=True)
class Slab:
    """Material points spread evenly over the polar grid, their distances, and how many count in a grid cell."""

    points: MaterialPoints
    parts: Distances
    per_cell: float


def elevation_weight(elevation_mm: FloatArray, sigma_mm: float) -> FloatArray:
    """Return the two-way sensitivity (N,) of the beam to what lies beside the plane."""
    return np.exp(np.float32(-0.5 / sigma_mm**2) * elevation_mm * elevation_mm)


def scatterer_density(grid: PolarGrid) -> float:
    """Return how many scatterers must count in a grid cell."""
    return SCATTERERS_PER_CELL / (grid.cells_per_fwhm**2 * (math.pi / math.log(2.0) / 4))


def sample_slab(heart: Heart, moments: Sequence[Moment], grid: PolarGrid, rng: np.random.Generator) -> Slab:
    """Return the points that the beam meets at one of the moments; the first is phase 0 at the middle pose."""
    probe, pose = grid.probe, moments[0][1]
    reach_mm = REACH_SIGMAS * probe.elevation_mm
    least, most = _shift_through_plane(heart, moments, grid, rng)
    margin_mm = 0.06 * probe.depth_mm
    shape = (max(0.5, grid.start_mm - margin_mm), probe.depth_mm + margin_mm, grid.half_rad)
    thickness = 2 * reach_mm + most - least
    # weights squared, summed over elevation, are sigma sqrt(pi): so many of the slab's points count
    cells = (shape[1] - shape[0]) * 2 * shape[2] / (grid.depth_step_mm * grid.beam_step_rad)
    per_cell = scatterer_density(grid)
    count = int(per_cell * cells * thickness / (probe.elevation_mm * math.sqrt(math.pi)))
    image = _sector_points(count, shape, rng)
    image[:, 2] = rng.uniform(-reach_mm - most, reach_mm - least, count)
    positions = pose.to_heart(image, heart.size_mm)
    positions = positions[_is_met(positions, heart, moments, reach_mm)]
    parts = distances(positions, heart)
    return Slab(material_points(positions, heart, parts.outside), parts, per_cell)


def _sector_points(count: int, shape: tuple[float, float, float], rng: np.random.Generator) -> FloatArray:
    """Return (count, 3) depth, lateral and zero elevation in mm, even over depth and angle."""
    depth = rng.uniform(shape[0], shape[1], count).astype(np.float32)
    angle = rng.uniform(-shape[2], shape[2], count).astype(np.float32)
    return np.stack([depth * np.cos(angle), depth * np.sin(angle), np.zeros_like(depth)], axis=1)


def _elevation_range(positions: FloatArray, heart: Heart, moments: Sequence[Moment]) -> tuple[FloatArray, FloatArray]:
    """Return the least and the largest elevation (N,) in mm, taking everything to move as the heart does.

    What lies around the heart moves less, hence stays within this range.
    """
    points = material_points(positions, heart, np.zeros(len(positions), np.float32))
    least = np.full(len(positions), np.inf, np.float32)
    most = -least
    for phase in sorted({phase for phase, _ in moments}):
        moved = points.at(heart, phase)
        for pose in (pose for at, pose in moments if at == phase):
            axis = (pose.elevation * heart.size_mm).astype(np.float32)
            elevation = moved @ axis - np.float32(pose.apex @ axis)
            np.minimum(least, elevation, out=least)
            np.maximum(most, elevation, out=most)
    return least, most


def _shift_through_plane(
    heart: Heart, moments: Sequence[Moment], grid: PolarGrid, rng: np.random.Generator
) -> tuple[float, float]:
    """Return how far, in mm, tissue of the middle plane moves to either side of it."""
    shape = (grid.start_mm, grid.probe.depth_mm, grid.probe.half_angle_rad)
    positions = moments[0][1].to_heart(_sector_points(500, shape, rng), heart.size_mm)
    least, most = _elevation_range(positions, heart, moments)
    return min(0.0, float(np.percentile(least, 2))), max(0.0, float(np.percentile(most, 98)))


def _is_met(positions: FloatArray, heart: Heart, moments: Sequence[Moment], reach_mm: float) -> NDArray[np.bool_]:
    least, most = _elevation_range(positions, heart, moments)
    return (least < reach_mm) & (most > -reach_mm)
