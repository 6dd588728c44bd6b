# SPDX-License-Identifier: Apache-2.0
"""From echoes to grey pixels: the probe's settings, the polar grid, what disturbs a picture, scan conversion.

A scatterer adds a * exp(-j 4 pi r / lambda) to its cell of the grid (R depths, B beams); a Gaussian along depth and a
depth-dependent Gaussian across beams, with a pedestal of side lobes, are the point-spread function (convolution model,
Gao et al., COLE, 2009). Attenuation, gain error, shadows, haze and near-field reverberation are fixed for a cine; only
noise and haze flicker. Settings are drawn over what clinics produce.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage
from scipy.special import expit

from echo_plugin.cine import ByteArray, UltrasoundRegion
from echo_plugin.phantom.chambers import FloatArray

SOUND_MM_PER_US = 1.54
PICTURE_SIZES = ((480, 640), (480, 640), (360, 480), (420, 560), (300, 400), (400, 400), (434, 636), (512, 512))
"""(H, W) of the whole picture in px."""


@dataclass(frozen=True)
class Probe:
    """One recording's settings; levels in dB are relative to the mean echo of heart muscle.

    ``near_mm``: where the sector begins, from its virtual apex. ``image_quality`` 0..1 steers haze, noise and shadows.
    ``brightness`` 0..1: the grey of the brightest echo as a share of white. ``persistence``: share of the last frame.
    """

    frequency_mhz: float
    depth_mm: float
    near_mm: float
    half_angle_rad: float
    axial_fwhm_mm: float
    lateral_fwhm_rad: float
    focus_mm: float
    elevation_mm: float
    height: int
    width: int
    mm_per_px: float
    apex_x: float
    apex_y: float
    frame_time_ms: float
    image_quality: float
    gain_db: float = 0.0
    dynamic_range_db: float = 60.0
    grey_gamma: float = 1.3
    brightness: float = 1.0
    persistence: float = 0.2
    smoothing: float = 0.0
    haze_db: float = -32.0
    noise_db: float = -45.0
    blood_db: float = -34.0
    side_lobe_db: float = -26.0
    specular_db: float = 0.0
    attenuation_db_per_mm: float = 0.02
    edge_db: float = 6.0

    @property
    def wavelength_mm(self) -> float:
        return SOUND_MM_PER_US / self.frequency_mhz

    def beam_width_rad(self, depth_mm: FloatArray) -> FloatArray:
        """Return the full width at half maximum of the beam at each depth: narrowest at the focus."""
        away = np.clip((depth_mm - self.focus_mm) / (0.55 * self.focus_mm), -1.5, 1.5)
        return np.asarray(self.lateral_fwhm_rad * np.sqrt(1.0 + 0.6 * away * away), np.float32)

    @property
    def region(self) -> UltrasoundRegion:
        """The rectangle round the sector, cut to the picture."""
        half_width = self.depth_mm * math.sin(self.half_angle_rad) / self.mm_per_px
        top = self.apex_y + self.near_mm * math.cos(self.half_angle_rad) / self.mm_per_px
        return UltrasoundRegion(
            float(max(0, math.floor(self.apex_x - half_width))),
            float(max(0, math.floor(top))),
            float(min(self.width, math.ceil(self.apex_x + half_width))),
            float(min(self.height, math.ceil(self.apex_y + self.depth_mm / self.mm_per_px))),
            self.mm_per_px,
            self.mm_per_px,
        )

    @classmethod
    def sample(cls, rng: np.random.Generator, *, depth_mm: float, age_days: int) -> Self:
        """Return settings for a heart that needs about ``depth_mm``; younger children get higher frequencies."""
        quality = float(rng.beta(2.2, 1.6))
        poor = 1.0 - quality
        depth = depth_mm * float(rng.uniform(0.94, 1.22))
        near = float(rng.uniform(0.015, 0.09)) * depth
        half_angle = math.radians(float(rng.uniform(30.0, 50.0)))
        is_small = age_days < 730
        frequency = float(rng.uniform(4.5, 8.0) if is_small else rng.uniform(2.6, 5.5))
        aperture_mm = float(rng.uniform(10.0, 16.0) if is_small else rng.uniform(15.0, 22.0))
        blur = float(rng.uniform(0.8, 1.3)) * (1 + 0.7 * poor)
        height, width = PICTURE_SIZES[int(rng.integers(len(PICTURE_SIZES)))]
        mm_per_px, apex_x, apex_y = _place_in_picture(rng, (height, width), depth, half_angle)
        return cls(
            frequency_mhz=frequency,
            depth_mm=depth,
            near_mm=near,
            half_angle_rad=half_angle,
            axial_fwhm_mm=blur * 0.0075 * depth * float(rng.uniform(0.7, 1.3)),
            # a beam is about a wavelength over the aperture wide (1.2 one way, less there and back), more off the best
            lateral_fwhm_rad=blur * float(rng.uniform(0.8, 1.6)) * SOUND_MM_PER_US / frequency / aperture_mm,
            focus_mm=depth * float(rng.uniform(0.35, 0.8)),
            elevation_mm=depth * float(rng.uniform(0.007, 0.014)),
            frame_time_ms=float(rng.uniform(18.0, 34.0)),
            image_quality=quality,
            height=height,
            width=width,
            mm_per_px=mm_per_px,
            apex_x=apex_x,
            apex_y=apex_y,
            **_sample_levels(rng, poor),
        )


def _place_in_picture(
    rng: np.random.Generator, size: tuple[int, int], depth_mm: float, half_angle_rad: float
) -> tuple[float, float, float]:
    """Return mm per px and the sector's apex x, y in a picture of size (H, W) that holds the whole sector."""
    height, width = size
    fill = float(rng.uniform(0.74, 0.97))
    sector_width = 2 * depth_mm * math.sin(half_angle_rad)
    mm_per_px = max(depth_mm / (fill * height), sector_width / (min(1.0, fill + 0.02) * width))
    free_x = width - sector_width / mm_per_px
    free_y = height - depth_mm / mm_per_px
    apex_x = 0.5 * width + float(rng.uniform(-0.4, 0.4)) * max(free_x, 0.0)
    return mm_per_px, apex_x, float(rng.uniform(0.1, 0.7)) * max(free_y, 0.0)


def _sample_levels(rng: np.random.Generator, poor: float) -> dict[str, float]:
    """Return gain, grey map and disturbance levels; ``poor`` 0..1 makes the window worse."""
    return {
        "gain_db": float(np.clip(rng.normal(-6.0, 6.5), -17.0, 12.0)),
        "dynamic_range_db": float(rng.uniform(42.0, 72.0)),
        "grey_gamma": float(rng.uniform(0.8, 2.6)),
        "brightness": float(rng.choice([1.0, rng.uniform(0.35, 1.0)])),
        "persistence": float(rng.uniform(0.0, 0.5)),
        "smoothing": float(rng.uniform(0.0, 1.6)),
        "haze_db": float(-40.0 + 22.0 * poor + rng.normal(0, 3)),
        "noise_db": float(-50.0 + 14.0 * poor + rng.normal(0, 3)),
        "blood_db": float(rng.uniform(-38.0, -28.0)),
        "side_lobe_db": float(rng.uniform(-34.0, -22.0)),
        "specular_db": float(rng.uniform(-6.0, 7.0)),
        "attenuation_db_per_mm": float(rng.uniform(0.0, 0.12)),
        "edge_db": float(rng.uniform(2.0, 26.0)),
    }


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


WHITE_DB = 13.0
"""The echo, relative to heart muscle, that is white at gain 0."""


def to_grey(envelope: FloatArray, probe: Probe) -> FloatArray:
    """Return 0..1 grey of an envelope in which heart muscle has mean power 1."""
    level_db = 20 * np.log10(np.maximum(envelope, 1e-6))
    shown = np.clip((level_db + probe.gain_db - WHITE_DB) / probe.dynamic_range_db + 1, 0, 1)
    return np.float32(probe.brightness) * shown ** np.float32(probe.grey_gamma)


@dataclass(frozen=True)
class ScanConverter:
    """Precomputed bilinear gather from the polar grid to the sector's pixels."""

    pixel: NDArray[np.intp]
    cell: NDArray[np.intp]
    weights: tuple[FloatArray, FloatArray, FloatArray, FloatArray]
    shape: tuple[int, int]
    beam_count: int

    def picture(self, grey: FloatArray) -> ByteArray:
        """Return the (H, W) uint8 picture of (R, B) grey 0..1: the sector on black."""
        flat = np.ascontiguousarray(grey, np.float32).ravel()
        steps = (0, 1, self.beam_count, self.beam_count + 1)
        value = sum(w * flat[self.cell + step] for w, step in zip(self.weights, steps, strict=True))
        picture = np.zeros(self.shape[0] * self.shape[1], np.uint8)
        picture[self.pixel] = np.clip(255 * value + 0.5, 0, 255).astype(np.uint8)
        return picture.reshape(self.shape)


def scan_converter(grid: PolarGrid) -> ScanConverter:
    """Return the converter of a grid; a pixel's echo is that at its centre."""
    probe = grid.probe
    y, x = np.mgrid[0 : probe.height, 0 : probe.width].astype(np.float32) + np.float32(0.5)
    lateral = (x - np.float32(probe.apex_x)) * np.float32(probe.mm_per_px)
    depth = (y - np.float32(probe.apex_y)) * np.float32(probe.mm_per_px)
    reach, angle = np.hypot(lateral, depth), np.arctan2(lateral, depth)
    shown = (reach >= probe.near_mm) & (reach <= probe.depth_mm) & (np.abs(angle) <= probe.half_angle_rad)
    rows, columns = grid.cells(reach[shown], angle[shown])
    rows = np.clip(rows, 0, grid.depth_count - 1.001)
    columns = np.clip(columns, 0, grid.beam_count - 1.001)
    row, column = np.floor(rows).astype(np.intp), np.floor(columns).astype(np.intp)
    down, right = (rows - row).astype(np.float32), (columns - column).astype(np.float32)
    weights = ((1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right)
    return ScanConverter(np.flatnonzero(shown), row * grid.beam_count + column, weights, shown.shape, grid.beam_count)


def smooth(envelope: FloatArray, probe: Probe) -> FloatArray:
    """Return the envelope after spatial smoothing, as compounding and the display do."""
    if probe.smoothing < 0.3:
        return envelope
    return ndimage.gaussian_filter(envelope, (0.8 * probe.smoothing, probe.smoothing), truncate=2.5)


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
