# SPDX-License-Identifier: Apache-2.0
"""The polar grid of beams and depths on which echoes add up as complex numbers and are blurred by the pulse.

A scatterer adds a * exp(-j 4 pi r / lambda) to its cell; a Gaussian along depth and a depth-dependent Gaussian across
beams, with a pedestal of side lobes, are the point-spread function (convolution model, Gao et al., COLE, 2009).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from echo_plugin.phantom.probe import Probe
from echo_plugin.phantom.vessels import FloatArray

ComplexArray = NDArray[np.complex64]
FWHM_PER_SIGMA = 2.0 * math.sqrt(2.0 * math.log(2.0))
SIDE_RAD = 0.14
"""Angle computed beyond either edge of the sector, so that its rim is no border to the filters."""


@dataclass(frozen=True)
class PolarGrid:
    """Depths x beams of one probe. Arrays on the grid are (R, B)."""

    probe: Probe
    cells_per_fwhm: float = 4.0

    @cached_property
    def depth_step_mm(self) -> float:
        return self.probe.axial_fwhm_mm / self.cells_per_fwhm

    @cached_property
    def depth_count(self) -> int:
        return fft.next_fast_len(math.ceil((self.probe.depth_mm - self.start_mm) / self.depth_step_mm) + 8)

    @cached_property
    def start_mm(self) -> float:
        return max(0.0, self.probe.near_mm - 3 * self.probe.axial_fwhm_mm)

    @cached_property
    def beam_step_rad(self) -> float:
        return self.probe.lateral_fwhm_rad / self.cells_per_fwhm

    @cached_property
    def beam_count(self) -> int:
        return fft.next_fast_len(math.ceil(2 * self.half_rad / self.beam_step_rad))

    @property
    def half_rad(self) -> float:
        """Half the angle computed."""
        return self.probe.half_angle_rad + SIDE_RAD

    @property
    def shape(self) -> tuple[int, int]:
        return self.depth_count, self.beam_count

    @cached_property
    def depths_mm(self) -> FloatArray:
        return (self.start_mm + self.depth_step_mm * np.arange(self.depth_count)).astype(np.float32)

    @cached_property
    def angles_rad(self) -> FloatArray:
        return ((np.arange(self.beam_count) - 0.5 * (self.beam_count - 1)) * self.beam_step_rad).astype(np.float32)

    def cells(self, depth_mm: FloatArray, angle_rad: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the fractional row and column of points."""
        rows = (depth_mm - np.float32(self.start_mm)) / np.float32(self.depth_step_mm)
        columns = angle_rad / np.float32(self.beam_step_rad) + np.float32(0.5 * (self.beam_count - 1))
        return rows, columns

    def accumulate(self, depth_mm: FloatArray, angle_rad: FloatArray, amplitude: FloatArray) -> ComplexArray:
        """Return the (R, B) sum of the echoes of points with real amplitudes (N,), each with its phase."""
        rows, columns = self.cells(depth_mm, angle_rad)
        rows, columns = np.rint(rows).astype(np.int32), np.rint(columns).astype(np.int32)
        inside = (rows >= 0) & (rows < self.depth_count) & (columns >= 0) & (columns < self.beam_count)
        cell = (rows * self.beam_count + columns)[inside]
        turns = depth_mm[inside] * np.float32(2.0 / self.probe.wavelength_mm)
        turns -= np.floor(turns)
        phase = np.float32(-2.0 * math.pi) * turns
        weight = amplitude[inside]
        size = self.depth_count * self.beam_count
        total = np.empty(size, np.complex64)
        total.real = np.bincount(cell, weight * np.cos(phase), size)
        total.imag = np.bincount(cell, weight * np.sin(phase), size)
        return total.reshape(self.shape)

    @cached_property
    def axial_sigma(self) -> float:
        """Standard deviation of the pulse in rows."""
        return self.cells_per_fwhm / FWHM_PER_SIGMA

    @cached_property
    def lateral_sigmas(self) -> FloatArray:
        """Standard deviation (R,) of the beam in columns: narrowest at the focus."""
        widths_rad = self.probe.beam_width_rad(self.depths_mm)
        return (widths_rad / np.float32(FWHM_PER_SIGMA * self.beam_step_rad)).astype(np.float32)

    @cached_property
    def _lateral_spectrum(self) -> FloatArray:
        """Transfer function (R, B) across beams, of unit energy, with the side-lobe pedestal."""
        frequency = fft.fftfreq(self.beam_count).astype(np.float32)[None, :]
        sigma = self.lateral_sigmas[:, None]
        wide = 9.0 * sigma
        main = np.sqrt(2 * math.sqrt(math.pi) * sigma) * np.exp(-2 * (math.pi * sigma * frequency) ** 2)
        pedestal = np.sqrt(2 * math.sqrt(math.pi) * wide) * np.exp(-2 * (math.pi * wide * frequency) ** 2)
        level = np.float32(10 ** (self.probe.side_lobe_db / 20) * 3.0)
        return (main + level * pedestal).astype(np.float32)

    def blur(self, echoes: ComplexArray) -> ComplexArray:
        """Return the (R, B) echoes convolved with pulse and beam; white noise keeps its power."""
        spectrum = fft.fft(echoes, axis=1)
        spectrum *= self._lateral_spectrum
        across = fft.ifft(spectrum, axis=1, overwrite_x=True)
        gain = np.float32(math.sqrt(2 * math.sqrt(math.pi) * self.axial_sigma))
        blurred: ComplexArray = np.empty(self.shape, np.complex64)
        blurred.real = ndimage.gaussian_filter1d(across.real, self.axial_sigma, axis=0, truncate=3.0, mode="constant")
        blurred.imag = ndimage.gaussian_filter1d(across.imag, self.axial_sigma, axis=0, truncate=3.0, mode="constant")
        blurred *= gain
        return blurred

    def noise(self, rng: np.random.Generator) -> ComplexArray:
        """Return a (R, B) field of fully developed speckle of unit mean power."""
        white = rng.standard_normal((2, *self.shape), dtype=np.float32) * np.float32(math.sqrt(0.5))
        return self.blur((white[0] + 1j * white[1]).astype(np.complex64))
