# SPDX-License-Identifier: Apache-2.0
"""The material points that echo: diffuse scatterers in the tissue, mirror-like points on its interfaces.

All are drawn once, at end diastole, from a slab of points about the plane, as thick as the beam plus what heart, breath
and probe move through the plane; then they move with the tissue. A mirror's echo goes with |cos|^p of the angle between
its normal and the beam. Where there is no heart there are lung with its pleural line, or liver and bowel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from echo_plugin.phantom.chambers import (
    Distances,
    FloatArray,
    Tissue,
    distances,
    ellipsoid,
    outward_normals,
    tissue_at,
    vessel,
)
from echo_plugin.phantom.heart import Heart
from echo_plugin.phantom.image_formation import PolarGrid
from echo_plugin.phantom.motion import MaterialPoints, material_points
from echo_plugin.phantom.scan_planes import Pose

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


SPECULAR_POWER = 3.0
ECHO_OF_TISSUE = {
    Tissue.BLOOD: 0.0,
    Tissue.MYOCARDIUM: 1.0,
    Tissue.ATRIAL_WALL: 0.9,
    Tissue.VESSEL_WALL: 1.0,
    Tissue.FIBROUS: 1.7,
    Tissue.CONNECTIVE: 0.9,
    Tissue.LIVER: 0.55,
    Tissue.LUNG: 1.1,
}
"""Root-mean-square echo relative to heart muscle."""


@dataclass(frozen=True)
class Scatterers:
    """Points that move with the tissue and their real echo amplitude (N,)."""

    points: MaterialPoints
    amplitude: FloatArray

    def __len__(self) -> int:
        return len(self.amplitude)


def heart_scatterers(heart: Heart, pose: Pose, slab: Slab, rng: np.random.Generator) -> Scatterers:
    """Return the diffuse scatterers of heart and surroundings; blood is left out, its echo is noise."""
    tissue = tissue_at(slab.points.rest, heart, slab.parts)
    solid = tissue != Tissue.BLOOD
    points, outside, tissue = slab.points.take(solid), slab.parts.outside[solid], tissue[solid]
    positions = points.rest
    level = np.array([ECHO_OF_TISSUE[t] for t in Tissue], np.float32)[tissue]
    level = np.where(tissue == Tissue.CONNECTIVE, _connective_level(positions, outside, heart), level)
    level = np.where(tissue == Tissue.LUNG, level * np.exp(-np.maximum(outside, 0) / 0.22), level)
    level = level * echogenicity(positions, heart)
    wall = (tissue == Tissue.MYOCARDIUM) | (tissue == Tissue.ATRIAL_WALL) | (tissue == Tissue.VESSEL_WALL)
    normals, _ = outward_normals(positions[wall], heart, "blood")
    # fibres across the beam echo more; the thin atrial walls echo little from within
    aligned = np.where(tissue[wall] == Tissue.ATRIAL_WALL, 0.22, 0.62)
    level[wall] *= aligned + (1.15 - aligned) * np.square(_cosine_to_beam(positions[wall], normals, pose))
    # unit mean power per grid cell for muscle; equal strengths give full speckle with the fewest points
    scale = np.float32(1.0 / math.sqrt(slab.per_cell))
    amplitude = level.astype(np.float32) * scale * random_signs(len(level), rng)
    heard = level > 0.01
    return Scatterers(points.take(heard), amplitude[heard])


def _connective_level(points: FloatArray, outside: FloatArray, heart: Heart) -> FloatArray:
    """Return the echo (N,) of what surrounds the heart: bright at the pericardium and behind the atria, fading."""
    distance = np.maximum(outside, 0)
    behind = np.clip((-points[:, 2] - 0.5) / 0.4, 0, 1)
    around = heart.connective_echo * np.exp(-distance / heart.connective_reach) + 0.5 * np.exp(-distance / 0.08)
    return np.maximum(around, behind * heart.posterior_echo * np.exp(-distance / 0.9))


def random_signs(count: int, rng: np.random.Generator) -> FloatArray:
    """Return (count,) of -1 and 1."""
    return rng.integers(0, 2, count).astype(np.float32) * 2 - 1


def echogenicity(points: FloatArray, heart: Heart) -> FloatArray:
    """Return a smooth random factor (N,) about 1: fibre bundles and fat make tissue patchy."""
    rng = np.random.default_rng(heart.texture_seed)
    coarse = np.repeat([[8.0], [22.0]], 6, axis=0)
    waves = (rng.normal(0.0, 1.0, (12, 3)) * coarse).astype(np.float32)
    offsets = rng.uniform(0, 2 * np.pi, 12).astype(np.float32)
    total = np.cos(points @ waves.T + offsets).sum(axis=1) / math.sqrt(6.0)
    return np.exp(0.4 * total).astype(np.float32)


def interface_scatterers(heart: Heart, pose: Pose, grid: PolarGrid, slab: Slab) -> Scatterers:
    """Return the mirror-like points on endocardium, septal surfaces, vessel walls and pericardium."""
    surfaces = (("blood", slab.parts.blood, 1.6), ("outside", slab.parts.outside, 3.0))
    # points in a layer of 2 reach are put on the surface: their number per cell of depth is undone here
    reach = 0.025
    per_column = slab.per_cell * 2 * reach * heart.size_mm / grid.depth_step_mm
    found, amplitudes = [], []
    for name, value, strength in surfaces:
        near = slab.points.rest[np.abs(value) < reach]
        normals, value = outward_normals(near, heart, name)
        on_surface = near - value[:, None] * normals
        cosine = np.abs(_cosine_to_beam(on_surface, normals, pose))
        found.append(on_surface)
        amplitudes.append(strength / per_column * cosine**SPECULAR_POWER)
    points = material_points(np.concatenate(found), heart)
    amplitude = np.concatenate(amplitudes) * echogenicity(points.rest, heart) ** 2
    amplitude *= 10 ** (grid.probe.specular_db / 20)
    return Scatterers(points, amplitude.astype(np.float32))


def _cosine_to_beam(points: FloatArray, normals: FloatArray, pose: Pose) -> FloatArray:
    """Return the cosine (N,) between each normal and the beam through its point."""
    beams = points - pose.apex.astype(np.float32)
    beams /= np.linalg.norm(beams, axis=1, keepdims=True) + np.float32(1e-9)
    return np.einsum("ij,ij->i", beams, normals)


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
