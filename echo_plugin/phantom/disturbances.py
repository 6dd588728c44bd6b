# SPDX-License-Identifier: Apache-2.0
"""What lies between the heart and a good picture: attenuation, gain error, shadows, haze, near-field reverberation.

All fields are on the polar grid (R, B) and fixed for a cine except noise and haze, which flicker.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from echo_plugin.phantom.speckle import ComplexArray, PolarGrid
from echo_plugin.phantom.vessels import FloatArray

BANK_SIZE = 5


@dataclass(frozen=True)
class Disturbances:
    """``shading``: factor on every echo; ``near_field``: echoes of the chest wall; levels of haze, blood and noise."""

    shading: FloatArray
    near_field: ComplexArray
    haze_level: FloatArray
    blood_level: float
    noise_level: FloatArray
    bank: tuple[ComplexArray, ...]

    def frame(self, echoes: ComplexArray, haze: ComplexArray, rng: np.random.Generator) -> ComplexArray:
        """Return the tissue's echoes with everything that disturbs them."""
        blood = self._flicker(rng) * np.float32(self.blood_level)
        behind: ComplexArray = np.multiply(echoes + blood, self.shading, dtype=np.complex64)
        clutter: ComplexArray = self.near_field + haze * self.haze_level
        noise: ComplexArray = self._flicker(rng) * self.noise_level
        return behind + clutter + noise

    def _flicker(self, rng: np.random.Generator) -> ComplexArray:
        """Return a fresh-looking speckle field: one of the bank, shifted."""
        field = self.bank[int(rng.integers(len(self.bank)))]
        field = np.roll(field, int(rng.integers(field.shape[1])), axis=1)
        return np.roll(field, int(rng.integers(-3, 4)), axis=0)

    def next_haze(self, haze: ComplexArray | None, rng: np.random.Generator) -> ComplexArray:
        """Return the haze of the next frame: clutter changes slowly."""
        if haze is None:
            return self._flicker(rng)
        return np.float32(0.92) * haze + np.float32(0.39) * self._flicker(rng)

    def background(self) -> FloatArray:
        """Return the root-mean-square of all that is no tissue (R, B)."""
        power = np.square(self.haze_level) + np.square(self.noise_level)
        power = power + np.square(self.blood_level * self.shading)
        return np.sqrt(power)


def sample_disturbances(grid: PolarGrid, rng: np.random.Generator) -> Disturbances:
    """Return the disturbances of one recording."""
    probe = grid.probe
    depth = (grid.depths_mm / probe.depth_mm)[:, None]
    angle = (grid.angles_rad / probe.half_angle_rad)[None, :]
    poor = 1.0 - probe.image_quality
    shading_db = _gain_error_db(grid, rng) - _edges_db(grid, rng) - _shadows_db(grid, rng, poor)
    haze_db = probe.haze_db + rng.uniform(0, 14) * np.exp(-depth / 0.22) - rng.uniform(0, 8) * depth
    haze_db = haze_db + rng.uniform(-4, 8) * angle**2 + _wander(grid.beam_count, rng, 6.0)[None, :] * 2.0
    haze_db = haze_db + _wander(grid.depth_count, rng, 5.0)[:, None] * 2.0
    noise_db = probe.noise_db + rng.uniform(0.0, 16.0) * depth**2 + 0 * angle
    return Disturbances(
        shading=_amplitude(shading_db),
        near_field=_near_field(grid, rng),
        haze_level=_amplitude(haze_db),
        blood_level=float(10 ** (probe.blood_db / 20)),
        noise_level=_amplitude(noise_db),
        bank=tuple(grid.noise(rng) for _ in range(BANK_SIZE)),
    )


def _amplitude(level_db: FloatArray) -> FloatArray:
    return (10 ** (level_db / 20)).astype(np.float32)


def _wander(count: int, rng: np.random.Generator, waves: float) -> FloatArray:
    """Return a smooth random curve (count,) of unit spread with up to ``waves`` periods."""
    t = np.linspace(0, 1, count)
    total = np.zeros(count)
    for _ in range(6):
        total += np.cos(2 * np.pi * (rng.uniform(0.3, waves) * t + rng.random()))
    return total / np.sqrt(3.0)


def _gain_error_db(grid: PolarGrid, rng: np.random.Generator) -> FloatArray:
    """Return attenuation that the time-gain compensation misses, and its wrong sliders."""
    loss = grid.probe.attenuation_db_per_mm * np.maximum(grid.depths_mm - 0.35 * grid.probe.depth_mm, 0)
    sliders = _wander(grid.depth_count, rng, 3.0) * rng.uniform(0.5, 3.0)
    return (sliders - loss)[:, None] + np.zeros((1, grid.beam_count))


def _edges_db(grid: PolarGrid, rng: np.random.Generator) -> FloatArray:
    """Return the loss towards the edges of the sector, and beams with poor contact."""
    angle = np.abs(grid.angles_rad / grid.probe.half_angle_rad)
    edges = grid.probe.edge_db * np.clip(angle, 0, 1.2) ** rng.uniform(1.5, 4.0)
    contact = np.maximum(_wander(grid.beam_count, rng, 7.0), 0) * rng.uniform(0.0, 3.0)
    return (edges + contact)[None, :] + np.zeros((grid.depth_count, 1))


def _shadows_db(grid: PolarGrid, rng: np.random.Generator, poor: float) -> FloatArray:
    """Return rib and lung shadows: wedges at the sides of the sector, from some depth on."""
    loss: FloatArray = np.zeros(grid.shape, np.float32)
    angle = (grid.angles_rad / grid.probe.half_angle_rad)[None, :]
    depth = (grid.depths_mm / grid.probe.depth_mm)[:, None]
    for side in (-1.0, 1.0):
        if rng.random() > 0.25 + 0.5 * poor:
            continue
        edge, softness = rng.uniform(0.25, 0.95), rng.uniform(0.04, 0.25)
        begins = rng.uniform(0.05, 0.6)
        wedge = expit((side * angle - edge) / softness * 2)
        onset = expit((depth - begins) / 0.03)
        loss = loss + rng.uniform(6, 35) * wedge * onset
    if rng.random() < 0.12 + 0.2 * poor:
        centre, width = rng.uniform(-0.7, 0.7), rng.uniform(0.03, 0.1)
        loss = loss + rng.uniform(4, 16) * np.exp(-(((angle - centre) / width) ** 2)) * expit((depth - 0.1) / 0.02)
    return loss


def _near_field(grid: PolarGrid, rng: np.random.Generator) -> ComplexArray:
    """Return the echoes of skin, fat and muscle in front of the heart and their reverberation."""
    probe = grid.probe
    past = (grid.depths_mm - probe.near_mm)[:, None]
    reach = probe.depth_mm * rng.uniform(0.03, 0.10)
    diffuse = grid.noise(rng) * np.exp(-np.maximum(past, 0) / reach) * 10 ** (rng.uniform(-12, 4) / 20)
    layers = np.zeros(grid.shape, np.complex64)
    spacing = probe.depth_mm * rng.uniform(0.012, 0.04)
    for order in range(1, int(rng.integers(2, 6))):
        place = spacing * order * rng.uniform(0.9, 1.1)
        bow = probe.depth_mm * 0.004 * _wander(grid.beam_count, rng, 2.0)[None, :]
        pulse = np.exp(-0.5 * ((past - place - bow) / (1.1 * probe.axial_fwhm_mm)) ** 2)
        patch = 1 + 0.5 * _wander(grid.beam_count, rng, 8.0)[None, :]
        layers += (pulse * patch * 10 ** (rng.uniform(-8, 8) / 20) * 0.7**order).astype(np.complex64)
    return (diffuse + layers).astype(np.complex64)
