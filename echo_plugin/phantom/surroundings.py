# SPDX-License-Identifier: Apache-2.0
"""What a probe shows where there is no heart: lung with its pleural line, liver and bowel of the abdomen."""

from __future__ import annotations

import math

import numpy as np

from echo_plugin.phantom.chambers import ellipsoid
from echo_plugin.phantom.heart import Heart
from echo_plugin.phantom.motion import MaterialPoints
from echo_plugin.phantom.scan_planes import Pose
from echo_plugin.phantom.scatterers import Scatterers, random_signs
from echo_plugin.phantom.slab import scatterer_density
from echo_plugin.phantom.speckle import PolarGrid
from echo_plugin.phantom.vessels import FloatArray, vessel


def sample_lung(heart: Heart, pose: Pose, grid: PolarGrid, rng: np.random.Generator) -> Scatterers:
    """Return chest wall, a bright pleural line, its repetitions (A-lines) and a fading haze behind it."""
    image, per_cell = _image_points(grid, rng)
    reach = np.hypot(image[:, 0], image[:, 1])
    pleura = grid.probe.near_mm + grid.probe.depth_mm * float(rng.uniform(0.10, 0.2))
    behind = np.maximum(reach - pleura, 0) / grid.probe.depth_mm
    level = np.where(reach < pleura, 0.6, 0.9 * np.exp(-behind / rng.uniform(0.08, 0.3)))
    amplitude = level * random_signs(len(level), rng) / math.sqrt(per_cell)
    # the points near each line are put on it, so that it is a mirror
    for order in range(1, 5):
        place = order * pleura
        line = np.abs(reach - place) < 2 * grid.depth_step_mm
        image[line] *= (place / reach[line])[:, None]
        amplitude = np.where(line, 3.0 * 0.55**order / (4 * per_cell), amplitude)
    return _still(image, amplitude, pose, heart)


def sample_abdomen(heart: Heart, pose: Pose, grid: PolarGrid, rng: np.random.Generator) -> Scatterers:
    """Return liver with vessels, a fluid-filled organ and a bright diaphragm."""
    image, per_cell = _image_points(grid, rng)
    depth = grid.probe.depth_mm
    points = (image / depth).astype(np.float32)
    level = np.full(len(points), 0.6)
    for _ in range(int(rng.integers(2, 6))):
        start = (*rng.uniform((0.2, -0.5, -0.05), (0.9, 0.5, 0.05)), float(rng.uniform(0.01, 0.04)))
        end = (*rng.uniform((0.2, -0.5, -0.05), (0.9, 0.5, 0.05)), 0.01)
        tube = vessel(points, (start, end))
        level = np.where(tube < 0, 0.0, np.where(tube < 0.008, 1.2, level))
    centre = tuple(rng.uniform((0.35, -0.35, -0.02), (0.7, 0.35, 0.02)))
    organ = ellipsoid(points, centre, tuple(rng.uniform((0.06, 0.08, 0.2), (0.16, 0.2, 0.3))))
    level = np.where(organ < 0, rng.choice([0.0, 0.35]), np.where(organ < 0.01, 1.4, level))
    amplitude = level * random_signs(len(level), rng) / math.sqrt(per_cell)
    return _still(image, amplitude, pose, heart)


def _image_points(grid: PolarGrid, rng: np.random.Generator) -> tuple[FloatArray, float]:
    """Return (N, 3) depth, lateral, elevation in mm and the number that counts per grid cell."""
    per_cell = scatterer_density(grid)
    count = int(per_cell * grid.depth_count * grid.beam_count * 1.6)
    depth = rng.uniform(grid.start_mm, grid.probe.depth_mm, count)
    angle = rng.uniform(-grid.half_rad, grid.half_rad, count)
    elevation = rng.uniform(-1.4, 1.4, count) * grid.probe.elevation_mm
    return np.stack([depth * np.cos(angle), depth * np.sin(angle), elevation], axis=1).astype(np.float32), per_cell


def _still(image: FloatArray, amplitude: FloatArray, pose: Pose, heart: Heart) -> Scatterers:
    """Return points that move with the breath alone."""
    shown = amplitude != 0
    rest = pose.to_heart(image[shown], heart.size_mm)
    zero = np.zeros_like(rest)
    flat = np.zeros(len(rest), np.float32)
    points = MaterialPoints(rest, flat, zero[:, :2], zero, zero, flat)
    return Scatterers(points, amplitude[shown].astype(np.float32))
