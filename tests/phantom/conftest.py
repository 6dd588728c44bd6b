# SPDX-License-Identifier: Apache-2.0
"""A small cine that stands in for an imaged heart, an invented child and a machine."""

from collections.abc import Callable

import numpy as np
import pytest

from echo_plugin.anatomy import Defect, Septum, View
from echo_plugin.annotations import SeptalBox
from echo_plugin.cine import UltrasoundRegion
from echo_plugin.phantom.bmode import PhantomCine
from echo_plugin.phantom.heart import PhantomPatient


def make_fan_cine(seed: int = 0, *, frames: int = 4, height: int = 240, width: int = 320) -> PhantomCine:
    """A fan of smooth speckle that leaves margins on all sides, with a box on each septum."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    dx, dy = x - width / 2, y - 0.1 * height
    fan = (np.hypot(dx, dy) < 0.72 * height) & (np.abs(np.arctan2(dx, dy)) < 0.7)
    coarse = rng.integers(20, 220, (frames, height // 8 + 1, width // 8 + 1))
    speckle = coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width]
    pixels = np.where(fan, speckle, 0).astype(np.uint8)
    rows, columns = np.nonzero(fan)
    region = UltrasoundRegion(
        float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1), 0.4, 0.4
    )
    boxes = tuple(
        SeptalBox(frame_index, 150.123456, top, 170.5, top + 40.0, septum)
        for frame_index in range(frames)
        for top, septum in ((60.0, Septum.INTERVENTRICULAR), (100.0, Septum.INTERATRIAL))
    )
    return PhantomCine(
        pixels=pixels,
        region=region,
        frame_time_ms=25.0,
        phases=(0.9 + np.arange(frames) * 25.0 * 120 / 60_000) % 1.0,
        heart_rate_bpm=120.0,
        view=View.A4C,
        boxes=boxes,
        defect=Defect.ASD,
        defect_size_mm=6.0,
        facts={"gain_db": 3.25, "frequency_mhz": 6.5, "probe": "phased"},
    )


@pytest.fixture
def fan_cine() -> PhantomCine:
    return make_fan_cine()


@pytest.fixture
def make_cine() -> Callable[..., PhantomCine]:
    return make_fan_cine


@pytest.fixture
def child() -> PhantomPatient:
    return PhantomPatient(
        patient_id="PHANTOM-5-0001", name="Brabek^Dolafis", sex="F", age_days=400, length_m=0.78, weight_kg=9.9
    )
