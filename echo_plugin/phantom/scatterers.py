# SPDX-License-Identifier: Apache-2.0
"""The material points that echo: diffuse scatterers in the walls and around, mirror-like points on the interfaces.

Both are drawn once at end diastole, in a slab about the scan plane as thick as the beam plus what moves through it,
and then move with the tissue. A mirror's echo goes with |cos|^p of the angle between its normal and the beam.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from echo_plugin.phantom.chambers import FloatArray, Tissue, distances, outward_normals, tissue_at
from echo_plugin.phantom.heart import Heart
from echo_plugin.phantom.motion import MaterialPoints, material_points
from echo_plugin.phantom.scan_planes import Pose
from echo_plugin.phantom.speckle import PolarGrid

SCATTERERS_PER_CELL = 7.0
"""Scatterers in a resolution cell: enough for fully developed speckle."""
SPECULAR_POWER = 3.0
KEY_PHASES = tuple(np.linspace(0.0, 0.95, 12))
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


@dataclass(frozen=True)
class Slab:
    """Candidate points (N, 3, unit heart) spread evenly over the polar grid, and how many fall in a grid cell."""

    points: FloatArray
    per_cell: float


def elevation_weight(elevation_mm: FloatArray, sigma_mm: float) -> FloatArray:
    """Return the two-way sensitivity (N,) of the beam to what lies beside the plane."""
    return np.exp(np.float32(-0.5 / sigma_mm**2) * elevation_mm * elevation_mm)


def sample_slab(heart: Heart, pose: Pose, grid: PolarGrid, rng: np.random.Generator) -> Slab:
    """Return candidate points in the slab that the beam will meet at some phase."""
    probe = grid.probe
    sigma = probe.elevation_mm
    half_mm = 2.0 * sigma + _through_plane_mm(heart, pose, grid, rng)
    margin_mm = 0.06 * probe.depth_mm
    depth_range = (max(0.5, grid.start_mm - margin_mm), probe.depth_mm + margin_mm)
    cell_area = grid.depth_step_mm * grid.beam_step_rad
    area = (depth_range[1] - depth_range[0]) * 2 * grid.half_rad
    # sum of squared weights over elevation = sigma sqrt(pi), so that this many of the slab count
    per_cell = SCATTERERS_PER_CELL / (grid.cells_per_fwhm**2 * (math.pi / math.log(2.0) / 4))
    count = int(per_cell * area / cell_area * 2 * half_mm / (sigma * math.sqrt(math.pi)))
    depth = rng.uniform(*depth_range, count).astype(np.float32)
    angle = rng.uniform(-grid.half_rad, grid.half_rad, count).astype(np.float32)
    elevation = rng.uniform(-half_mm, half_mm, count).astype(np.float32)
    image = np.stack([depth * np.cos(angle), depth * np.sin(angle), elevation], axis=1)
    return Slab(pose.to_heart(image, heart.size_mm), per_cell)


def _through_plane_mm(heart: Heart, pose: Pose, grid: PolarGrid, rng: np.random.Generator) -> float:
    """Return how far tissue moves through the plane."""
    depth = rng.uniform(grid.start_mm, grid.probe.depth_mm, 400).astype(np.float32)
    angle = rng.uniform(-grid.probe.half_angle_rad, grid.probe.half_angle_rad, 400).astype(np.float32)
    image = np.stack([depth * np.cos(angle), depth * np.sin(angle), np.zeros_like(depth)], axis=1)
    points = material_points(pose.to_heart(image, heart.size_mm), heart)
    moved = np.stack([pose.to_image(points.at(heart, phase), heart.size_mm)[:, 2] for phase in KEY_PHASES])
    return float(np.percentile(np.abs(moved).max(axis=0), 97))


def _met_by_beam(points: MaterialPoints, heart: Heart, pose: Pose, sigma_mm: float) -> MaterialPoints:
    """Return the indices of points that at some phase lie within two standard deviations of the plane."""
    met = np.zeros(len(points), bool)
    for phase in KEY_PHASES:
        met |= np.abs(pose.to_image(points.at(heart, phase), heart.size_mm)[:, 2]) < 2.2 * sigma_mm
    return met


def heart_scatterers(heart: Heart, pose: Pose, grid: PolarGrid, slab: Slab, rng: np.random.Generator) -> Scatterers:
    """Return the diffuse scatterers of heart and surroundings; blood is left out, its echo is noise."""
    parts = distances(slab.points, heart)
    tissue = tissue_at(slab.points, heart, parts)
    solid = tissue != Tissue.BLOOD
    positions, outside = slab.points[solid], parts.outside[solid]
    tissue = tissue[solid]
    points = material_points(positions, heart, outside)
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
    met = _met_by_beam(points, heart, pose, grid.probe.elevation_mm) & (level > 0.01)
    return Scatterers(points.take(met), amplitude[met])


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
    parts = distances(slab.points, heart)
    surfaces = (("blood", parts.blood, 1.6), ("outside", parts.outside, 3.0))
    reach = 0.025
    found, amplitudes = [], []
    for name, value, strength in surfaces:
        near = slab.points[np.abs(value) < reach]
        normals, value = outward_normals(near, heart, name)
        on_surface = near - value[:, None] * normals
        cosine = np.abs(_cosine_to_beam(on_surface, normals, pose))
        # points in a layer of 2 reach: their number per grid cell grows with the cell's depth, undone here
        layer_cells = 2 * reach * heart.size_mm / grid.depth_step_mm
        scale = strength / (slab.per_cell * layer_cells)
        found.append(on_surface)
        amplitudes.append(scale * cosine**SPECULAR_POWER)
    points = material_points(np.concatenate(found), heart)
    amplitude = np.concatenate(amplitudes).astype(np.float32)
    amplitude *= echogenicity(points.rest, heart) ** 2
    met = _met_by_beam(points, heart, pose, grid.probe.elevation_mm) & (amplitude > 0)
    return Scatterers(points.take(met), amplitude[met] * np.float32(10 ** (grid.probe.specular_db / 20)))


def _cosine_to_beam(points: FloatArray, normals: FloatArray, pose: Pose) -> FloatArray:
    """Return the cosine (N,) between each normal and the beam through its point."""
    beams = points - pose.apex.astype(np.float32)
    beams /= np.linalg.norm(beams, axis=1, keepdims=True) + np.float32(1e-9)
    return np.einsum("ij,ij->i", beams, normals)
