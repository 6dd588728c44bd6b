# SPDX-License-Identifier: Apache-2.0
"""How the heart beats: smooth phase curves and the displacement of material points.

Points are unit-heart coordinates at end diastole (phase 0 = R peak). The ventricles thicken by keeping the area of
every ring of muscle (r'^2 = R^2 - c), the annular plane descends towards the apex, the atria fill and empty.
Whole-heart swing and respiration are a rigid motion that ``scan_planes`` applies to the probe instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

from echo_plugin.phantom.chambers import distances
from echo_plugin.phantom.heart import Heart
from echo_plugin.phantom.vessels import FloatArray


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
