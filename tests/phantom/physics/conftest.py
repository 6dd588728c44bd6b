# SPDX-License-Identifier: Apache-2.0
"""A normal heart and an undisturbed probe with known settings."""

from collections.abc import Callable

import numpy as np
import pytest

from echo_plugin.anatomy import Defect
from echo_plugin.phantom.heart import Heart, sample_heart
from echo_plugin.phantom.image_formation import Probe


def make_clean_probe(depth_mm: float = 115.0, **changes: float) -> Probe:
    settings: dict[str, float] = {
        "frequency_mhz": 5.0,
        "depth_mm": depth_mm,
        "near_mm": 4.0,
        "half_angle_rad": 0.7,
        "axial_fwhm_mm": 0.8,
        "lateral_fwhm_rad": 0.028,
        "focus_mm": 70.0,
        "elevation_mm": 1.2,
        "height": 300,
        "width": 320,
        "mm_per_px": depth_mm / 285.0,
        "apex_x": 160.0,
        "apex_y": 6.0,
        "frame_time_ms": 20.0,
        "image_quality": 1.0,
        "persistence": 0.0,
        "haze_db": -60.0,
        "noise_db": -60.0,
        "blood_db": -50.0,
        "side_lobe_db": -50.0,
        "edge_db": 0.0,
        "attenuation_db_per_mm": 0.0,
    }
    return Probe(**(settings | changes))  # type: ignore[arg-type]


@pytest.fixture
def clean_probe() -> Callable[..., Probe]:
    return make_clean_probe


@pytest.fixture
def heart() -> Heart:
    """A normal heart with the size of a four-year-old's and textbook proportions."""
    return Heart(age_days=1500, body_surface_m2=0.7, heart_rate_bpm=100.0, size_mm=33.0, swing_rad=0.0, respiration=0.0)


@pytest.fixture
def hearts() -> Callable[[Defect | None, int], list[Heart]]:
    def sample(defect: Defect | None, count: int) -> list[Heart]:
        rng = np.random.default_rng(11)
        return [sample_heart(rng, defect=defect) for _ in range(count)]

    return sample
