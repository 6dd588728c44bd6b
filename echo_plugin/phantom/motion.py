# SPDX-License-Identifier: Apache-2.0
"""How the heart beats: smooth phase curves, the displacement of material points, the leaflets of the four valves.

Points are unit-heart coordinates at end diastole (phase 0 = R peak). The ventricles thicken by keeping the area of
every ring of muscle (r'^2 = R^2 - c), the annular plane descends towards the apex, the atria fill and empty.
A leaflet hangs on its annulus and turns about this hinge between closed and open.
Whole-heart swing and respiration are a rigid motion that ``scan_planes`` applies to the probe instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

from echo_plugin.phantom.chambers import (
    AORTA,
    MITRAL_CENTRE,
    MITRAL_RADIUS,
    PULMONARY_TRUNK,
    TRICUSPID_CENTRE,
    TRICUSPID_RADIUS,
    FloatArray,
    Vertex,
    distances,
)
from echo_plugin.phantom.heart import Heart


def end_systole_phase(heart: Heart) -> float:
    """Return the phase of end systole: systole takes a larger share of a faster beat."""
    return 0.32 + 0.001 * heart.heart_rate_bpm


def _curve(knots: list[tuple[float, float]], phase: float) -> float:
    return float(_interpolator(tuple(knots))(phase % 1.0))


@lru_cache(maxsize=64)
def _interpolator(knots: tuple[tuple[float, float], ...]) -> PchipInterpolator:
    phases, values = zip(*knots, strict=True)
    return PchipInterpolator(phases, values)


def contraction(heart: Heart, phase: float) -> float:
    """Return 0 at end diastole to 1 at end systole."""
    end = end_systole_phase(heart)
    rest = 1.0 - end
    knots = [(0.0, 0.0), (0.05, 0.04), (0.55 * end, 0.66), (end, 1.0), (end + 0.05 * rest, 0.98)]
    knots += [(end + 0.42 * rest, 0.33), (end + 0.66 * rest, 0.25), (end + 0.9 * rest, 0.03), (1.0, 0.0)]
    return _curve(knots, phase)


def atrioventricular_opening(heart: Heart, phase: float) -> float:
    """Return the opening 0..1 of mitral and tricuspid valve: early wave, half closure, atrial wave."""
    end = end_systole_phase(heart)
    rest = 1.0 - end
    knots = [(0.0, 0.12), (0.03, 0.0), (end + 0.05 * rest, 0.0), (end + 0.2 * rest, 1.0), (end + 0.35 * rest, 0.9)]
    knots += [(end + 0.52 * rest, 0.4), (end + 0.64 * rest, 0.42), (end + 0.8 * rest, 0.75), (1.0, 0.12)]
    return _curve(knots, phase)


def semilunar_opening(heart: Heart, phase: float) -> float:
    """Return the opening 0..1 of aortic and pulmonary valve."""
    end = end_systole_phase(heart)
    return _curve([(0.0, 0.0), (0.06, 0.0), (0.12, 1.0), (end - 0.06, 0.85), (end, 0.0), (1.0, 0.0)], phase)


def atrial_filling(heart: Heart, phase: float) -> float:
    """Return 0 after the atrial contraction to 1 at the end of ventricular systole."""
    end = end_systole_phase(heart)
    rest = 1.0 - end
    knots = [(0.0, 0.0), (0.6 * end, 0.7), (end, 1.0), (end + 0.4 * rest, 0.45), (end + 0.7 * rest, 0.4), (1.0, 0.0)]
    return _curve(knots, phase)


@dataclass(frozen=True)
class MaterialPoints:
    """Points at end diastole with what is needed to displace them quickly to any phase.

    ``rest`` (N, 3); ``ring_share`` (N,): the share of a ring's area that its contraction takes; ``radial`` (N, 2):
    offset from the left ventricle's axis; ``systolic``, ``atrial`` (N, 3): displacements at full contraction / filling;
    ``coupling`` (N,): 1 in the heart, falling to 0 in what lies around it.
    """

    rest: FloatArray
    ring_share: FloatArray
    radial: FloatArray
    systolic: FloatArray
    atrial: FloatArray
    coupling: FloatArray

    def __len__(self) -> int:
        return len(self.rest)

    def take(self, chosen: NDArray) -> MaterialPoints:
        """Return the chosen points (mask or indices)."""
        return MaterialPoints(
            self.rest[chosen],
            self.ring_share[chosen],
            self.radial[chosen],
            self.systolic[chosen],
            self.atrial[chosen],
            self.coupling[chosen],
        )

    def at(self, heart: Heart, phase: float) -> FloatArray:
        """Return the (N, 3) positions at a phase."""
        amount = np.float32(contraction(heart, phase))
        filling = np.float32(atrial_filling(heart, phase))
        remaining = np.float32(1.0 - amount * heart.lv_contraction) ** 2
        shrink = np.sqrt(1 - self.ring_share * (1 - remaining)) - 1
        moved = self.rest + amount * self.systolic
        moved += filling * self.atrial
        moved[:, :2] += (shrink * self.coupling)[:, None] * self.radial
        return moved


def material_points(points: FloatArray, heart: Heart, outside: FloatArray | None = None) -> MaterialPoints:
    """Return the material points at rest positions (N, 3); ``outside`` is their distance to the heart if known."""
    points = np.ascontiguousarray(points, np.float32)
    if outside is None:
        outside = distances(points, heart).outside
    x, y, z = points.T
    coupling = np.exp(-((np.maximum(outside, 0) / 0.45) ** 2)).astype(np.float32)
    radial = np.stack([x - np.float32(heart.lv_axis_x), y], axis=1)
    half_length = heart.lv_length - heart.lv_centre_z
    level = 1 - ((z - heart.lv_centre_z) / half_length) ** 2
    cavity = heart.lv_radius**2 * np.clip(level, 0, 1) * _smooth_step((z + 0.35) / 0.45)
    ring_share = cavity / np.maximum(np.einsum("ij,ij->i", radial, radial), np.maximum(cavity, 1e-6))
    systolic = _systolic(points, heart) * coupling[:, None]
    atrial = _atrial(points) * coupling[:, None]
    return MaterialPoints(points, ring_share.astype(np.float32), radial, systolic, atrial, coupling)


def _systolic(points: FloatArray, heart: Heart) -> FloatArray:
    """Return the displacement at end systole besides the rings: annular descent and the right free wall."""
    x, _, z = points.T
    to_apex = np.clip(1 - z / heart.lv_length, 0, 1)
    to_roof = 0.1 + 0.9 * _smooth_step(1 + z / 1.1)
    descent = np.where(z > 0, to_apex, to_roof) * heart.annular_descent
    descent *= 1 + 0.25 * _smooth_step(-x / 0.5)
    septum = np.float32(heart.lv_axis_x - heart.lv_radius - heart.lv_wall)
    from_septum = np.clip(septum - x, 0, 0.75)
    inward = from_septum * heart.rv_contraction * _smooth_step((z + 0.2) / 0.4)
    return np.stack([inward, np.zeros_like(x), descent], axis=1).astype(np.float32)


def _atrial(points: FloatArray) -> FloatArray:
    """Return the displacement of the atrial walls, outwards, at full filling."""
    x, y, z = points.T
    window = 0.1 * _smooth_step((0.05 - z) / 0.35) * _smooth_step((z + 1.5) / 0.5)
    return np.stack([x * window, (y + 0.12) * window, np.zeros_like(x)], axis=1).astype(np.float32)


def _smooth_step(t: FloatArray) -> FloatArray:
    t = np.clip(t, 0, 1)
    return t * t * (3 - 2 * t)


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
