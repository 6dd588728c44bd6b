# SPDX-License-Identifier: Apache-2.0
"""Leaflets of the four valves as moving surfaces.

A leaflet hangs on its annulus, which moves with the heart, and turns about this hinge between closed and open.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from echo_plugin.phantom.chambers import MITRAL_CENTRE, MITRAL_RADIUS, TRICUSPID_CENTRE, TRICUSPID_RADIUS
from echo_plugin.phantom.heart import Heart
from echo_plugin.phantom.motion import (
    MaterialPoints,
    atrioventricular_opening,
    material_points,
    semilunar_opening,
)
from echo_plugin.phantom.vessels import AORTA, PULMONARY_TRUNK, FloatArray, Vertex


@dataclass(frozen=True)
class Valve:
    """Points on the leaflets of one valve, unit-heart.

    ``hinges``: where each point's leaflet is attached; ``inward``, ``downstream`` (N, 3): unit directions to the middle
    of the orifice and with the flow; ``reach`` (N,): distance from the hinge; ``share`` (N,): 0 hinge to 1 tip.
    """

    hinges: MaterialPoints
    inward: FloatArray
    downstream: FloatArray
    reach: FloatArray
    share: FloatArray
    is_semilunar: bool
    closed_rad: float
    open_rad: float

    def at(self, heart: Heart, phase: float) -> tuple[FloatArray, FloatArray]:
        """Return positions (N, 3) and unit normals (N, 3) of the leaflet points at a phase."""
        opening = semilunar_opening(heart, phase) if self.is_semilunar else atrioventricular_opening(heart, phase)
        # the belly of a closed leaflet bulges back, an open one bends towards the middle at its tip
        bend = np.float32(0.5) * (self.share - np.float32(0.5)) * (1 - 2 * opening)
        angle = (self.closed_rad + (self.open_rad - self.closed_rad) * opening + bend).astype(np.float32)[:, None]
        along = np.cos(angle) * self.inward + np.sin(angle) * self.downstream
        normal = np.cos(angle) * self.downstream - np.sin(angle) * self.inward
        return self.hinges.at(heart, phase) + self.reach[:, None] * along, normal


def sample_valves(heart: Heart, rng: np.random.Generator, points_per_valve: int = 5000) -> tuple[Valve, ...]:
    """Return mitral, tricuspid, aortic and pulmonary valve with randomly placed points on their leaflets."""
    scale = heart.great_artery_scale
    return (
        _mitral(heart, rng, points_per_valve),
        _tricuspid(heart, rng, points_per_valve),
        _semilunar(heart, rng, points_per_valve, AORTA[1:3], scale),
        _semilunar(heart, rng, points_per_valve, PULMONARY_TRUNK[2:4], scale),
    )


def _ring(
    angle: FloatArray, centre: tuple[float, float, float], radius: float, axis: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return hinge points (N, 3) on a circle and the directions (N, 3) to its centre."""
    side = np.cross(axis, [0.0, 1.0, 0.0] if abs(axis[1]) < 0.9 else [1.0, 0.0, 0.0])
    side /= np.linalg.norm(side)
    other = np.cross(axis, side)
    outward = np.cos(angle)[:, None] * side + np.sin(angle)[:, None] * other
    return (np.asarray(centre) + radius * outward).astype(np.float32), (-outward).astype(np.float32)


def _mitral(heart: Heart, rng: np.random.Generator, count: int) -> Valve:
    """Return the mitral valve: a long anterior leaflet on the aortic side, a short posterior one."""
    angle = rng.uniform(0, 2 * np.pi, count).astype(np.float32)
    apical = np.array([0.0, 0.0, 1.0])
    hinges, inward = _ring(angle, MITRAL_CENTRE, MITRAL_RADIUS, apical)
    facing_aorta = inward @ np.array([0.6, -0.8, 0.0])
    length = MITRAL_RADIUS * np.where(facing_aorta > 0.1, 1.3, 0.85)
    return _valve(heart, rng, hinges, inward, apical, length, is_semilunar=False)


def _tricuspid(heart: Heart, rng: np.random.Generator, count: int) -> Valve:
    angle = rng.uniform(0, 2 * np.pi, count).astype(np.float32)
    apical = np.array([0.0, 0.0, 1.0])
    hinges, inward = _ring(angle, TRICUSPID_CENTRE, TRICUSPID_RADIUS, apical)
    # gaps between the three leaflets
    length = TRICUSPID_RADIUS * (0.85 + 0.25 * np.abs(np.cos(1.5 * angle)))
    return _valve(heart, rng, hinges, inward, apical, length, is_semilunar=False)


def _semilunar(heart: Heart, rng: np.random.Generator, count: int, segment: tuple[Vertex, ...], scale: float) -> Valve:
    axis = np.subtract(segment[1][:3], segment[0][:3])
    axis = axis / np.linalg.norm(axis)
    angle = rng.uniform(0, 2 * np.pi, count).astype(np.float32)
    radius = scale * segment[0][3]
    hinges, inward = _ring(angle, segment[0][:3], radius, axis)
    length = radius * (0.85 + 0.3 * np.abs(np.cos(1.5 * angle)))
    return _valve(heart, rng, hinges, inward, axis, length, is_semilunar=True)


def _valve(
    heart: Heart,
    rng: np.random.Generator,
    hinges: FloatArray,
    inward: FloatArray,
    downstream: FloatArray,
    length: FloatArray,
    *,
    is_semilunar: bool,
) -> Valve:
    share = rng.random(len(hinges)).astype(np.float32)
    return Valve(
        hinges=material_points(hinges, heart),
        inward=inward,
        downstream=np.broadcast_to(downstream, hinges.shape).astype(np.float32),
        reach=(share * length).astype(np.float32),
        share=share,
        is_semilunar=is_semilunar,
        closed_rad=float(np.deg2rad(rng.uniform(15, 28))),
        open_rad=float(np.deg2rad(rng.uniform(68, 85))),
    )
