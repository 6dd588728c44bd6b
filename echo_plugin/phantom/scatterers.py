# SPDX-License-Identifier: Apache-2.0
"""The material points that echo: diffuse scatterers in the walls and around, mirror-like points on the interfaces.

Both are drawn once at end diastole from the ``slab`` and then move with the tissue.
A mirror's echo goes with |cos|^p of the angle between its normal and the beam.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from echo_plugin.phantom.chambers import Tissue, outward_normals, tissue_at
from echo_plugin.phantom.heart import Heart
from echo_plugin.phantom.motion import MaterialPoints, material_points
from echo_plugin.phantom.scan_planes import Pose
from echo_plugin.phantom.slab import Slab
from echo_plugin.phantom.speckle import PolarGrid
from echo_plugin.phantom.vessels import FloatArray

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
