# SPDX-License-Identifier: Apache-2.0
"""Which frames of a cine the view classifier learns from, is measured on and looks at: clips of a beat, by time.

A classifier that learned from neighbouring frames 40 ms apart has learned how far a valve moves in 40 ms. Where the
card says at which interval it learned, and the cine says when its frames were taken, clips keep that interval, whatever
the frame rate; else they are taken by frame number. Of a long cine one beat in the middle is looked at, all of it where
the heart rate is not known.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from echo_plugin.cine import Cine
from echo_plugin.model_card import ModelCard
from echo_plugin.models.view_classifier import ViewConfig, sample_clips

STEP_KEY, SPAN_KEY = "frame_step_ms", "cine_span_ms"
"""In a card's config: the median interval of the frames it learned from, and the median length of their cines."""
MS_PER_MINUTE = 60_000.0


@dataclass(frozen=True)
class LearnedTimes:
    """Medians of the cines learned from: ``step_ms`` from frame to frame, ``span_ms`` from the first to the last."""

    step_ms: float
    span_ms: float

    def __post_init__(self) -> None:
        if not (self.step_ms > 0 and self.span_ms > 0):
            msg = f"Learned times are {self.step_ms} and {self.span_ms} ms; positive numbers are accepted."
            raise ValueError(msg)

    def to_config(self) -> dict[str, float]:
        """Return what a card's config says of them."""
        return {STEP_KEY: self.step_ms, SPAN_KEY: self.span_ms}


def times_of(card: ModelCard) -> LearnedTimes | None:
    """Return the times that a card says its model learned at; None: it says none."""
    step, span = card.config.get(STEP_KEY), card.config.get(SPAN_KEY)
    if not isinstance(step, int | float) or not isinstance(span, int | float) or min(step, span) <= 0:
        return None
    return LearnedTimes(step, span)


def choose_clips(config: ViewConfig, times: LearnedTimes | None, cine: Cine, clips: int) -> NDArray[np.int64]:
    """Return (clips, T) 0-based frame indices; each clip ascends.

    ``times`` : those that the classifier learned, or is to learn, at; None: of no cine they are known.
    """
    if times is None or cine.frame_times_ms is None or cine.frame_count < 2:
        return sample_clips(config, cine.frame_count, clips)
    beat = None if cine.heart_rate_bpm is None else MS_PER_MINUTE / cine.heart_rate_bpm
    wanted = clip_times_ms(
        config,
        cine.frame_times_ms,
        clips,
        step_ms=times.step_ms,
        span_ms=times.span_ms,
        beat_ms=beat,
    )
    return nearest_frames(cine.frame_times_ms, wanted)


def clip_times_ms(
    config: ViewConfig,
    times_ms: NDArray[np.float64],
    clips: int,
    *,
    step_ms: float,
    span_ms: float,
    beat_ms: float | None,
) -> NDArray[np.float64]:
    """Return (clips, T) times of frames to take from a cine of at least two frames, within its times.

    Consecutive: T frames ``step_ms`` apart, the clips spread over the beat. Spaced: T frames spread over ``span_ms``,
    the clips between one another.
    """
    T, first, last = config.frames_per_clip, float(times_ms[0]), float(times_ms[-1])
    middle = (first + last) / 2
    if config.sampling == "spaced":
        span = min(last - first, span_ms)
        places = (np.arange(T)[None] + (np.arange(clips)[:, None] + 0.5) / clips) / T
        return middle + (places - 0.5) * span
    step = max(step_ms, float(np.median(np.diff(times_ms))))
    extent = (T - 1) * step
    beat = min(last - first, last - first if beat_ms is None else beat_ms)
    centres = middle + ((np.arange(clips) + 0.5) / clips - 0.5) * beat
    starts = np.clip(centres - extent / 2, first, max(last - extent, first))
    wanted: NDArray[np.float64] = np.minimum(starts[:, None] + step * np.arange(T), last)
    return wanted


def nearest_frames(times_ms: NDArray[np.float64], wanted_ms: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the index of the frame nearest to each wanted time, the earlier of two as near."""
    after = np.clip(np.searchsorted(times_ms, wanted_ms), 1, len(times_ms) - 1)
    is_earlier = wanted_ms - times_ms[after - 1] <= times_ms[after] - wanted_ms
    nearest: NDArray[np.int64] = (after - is_earlier).astype(np.int64)
    return nearest
