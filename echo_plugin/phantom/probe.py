# SPDX-License-Identifier: Apache-2.0
"""The settings of one recording: probe, sector, picture, gain and grey map, drawn over what clinics produce."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np

from echo_plugin.cine import UltrasoundRegion
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
