# SPDX-License-Identifier: Apache-2.0
"""The electrocardiogram that a machine writes under the sector, in step with the phantom's heart."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from echo_plugin.cine import ByteArray
from echo_plugin.phantom.phantom_cine import PhantomCine

FloatArray = NDArray[np.float64]

# (phase of the peak, width in phase, height in R waves): P, Q, R, S and T as Gaussians, after McSharry 2003
_WAVES = ((0.84, 0.030, 0.14), (-0.03, 0.010, -0.12), (0.0, 0.011, 1.0), (0.03, 0.011, -0.22), (0.32, 0.055, 0.28))


def ecg_mv(phases: FloatArray) -> FloatArray:
    """Return the voltage in mV, same shape as ``phases`` (0..1, 0 = R peak).

    References
    ----------
    McSharry et al., IEEE Trans Biomed Eng 50(3), 2003, doi:10.1109/TBME.2003.808805: a beat as a sum of Gaussians.
    """
    voltage = np.zeros_like(phases)
    for peak, width, height in _WAVES:
        distance = (phases - peak + 0.5) % 1.0 - 0.5
        voltage += height * np.exp(-0.5 * (distance / width) ** 2)
    return voltage


def phases_at(cine: PhantomCine, times_ms: FloatArray) -> FloatArray:
    """Return the cardiac phase 0..1 at times since the first frame; outside the cine at its mean heart rate."""
    frame_times_ms = np.arange(len(cine.phases)) * cine.frame_time_ms
    beats = np.unwrap(cine.phases, period=1.0)
    beats_per_ms = cine.heart_rate_bpm / 60_000
    inside = np.interp(times_ms, frame_times_ms, beats)
    before = np.minimum(times_ms - frame_times_ms[0], 0.0) * beats_per_ms
    after = np.maximum(times_ms - frame_times_ms[-1], 0.0) * beats_per_ms
    phases: FloatArray = (inside + before + after) % 1.0
    return phases


def r_wave_times_ms(cine: PhantomCine) -> list[float]:
    """Return the times of the R peaks during the cine, ms since its first frame, ascending; maybe none."""
    frame_times_ms = np.arange(len(cine.phases)) * cine.frame_time_ms
    beats = np.unwrap(cine.phases, period=1.0)
    if len(beats) < 2 or np.any(np.diff(beats) <= 0):
        return []
    peaks = np.arange(np.ceil(beats[0]), np.floor(beats[-1]) + 1)
    return [float(t) for t in np.interp(peaks, beats, frame_times_ms)]


def draw_ecg(
    strip: ByteArray, cine: PhantomCine, *, window_s: float, rgb: tuple[int, int, int], rng: np.random.Generator
) -> float:
    """Draw a sweeping trace with its cursor into the (T, h, w, 3) view ``strip``; return seconds per px."""
    T, h, w, _ = strip.shape
    s_per_px = window_s / w
    x_first = int(rng.integers(0, w))  # where the cursor is at the first frame
    times_ms = (np.arange(w) - x_first) * s_per_px * 1000
    noise_mv = 0.015 * rng.standard_normal(w)
    voltage = ecg_mv(phases_at(cine, times_ms)) + noise_mv
    rows = (h - 3) * (1 - (voltage + 0.35) / 1.45)
    picture = Image.fromarray(strip[0])
    points = [(float(x), float(y)) for x, y in zip(range(w), rows, strict=True)]
    ImageDraw.Draw(picture).line(points, fill=rgb, width=1)
    trace = np.array(picture)
    background = strip[0, 0, 0].copy()
    for frame_index in range(T):
        cursor = int(x_first + frame_index * cine.frame_time_ms / 1000 / s_per_px) % w
        strip[frame_index] = trace
        strip[frame_index, :, cursor + 1 : cursor + 9] = background
        strip[frame_index, :, cursor] = rgb
    return s_per_px
