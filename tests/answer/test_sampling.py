# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echo_plugin.answer.views import choose_clips, nearest_frames
from echo_plugin.cine import Cine, FramesInMemory
from echo_plugin.model_card import LearnedTimes
from echo_plugin.models.view_classifier import sample_clips
from echo_plugin.network_config import ViewConfig

CONFIG = ViewConfig(classes=2)


def make_cine(frames: int, step_ms: float | None, heart_rate_bpm: float | None = None) -> Cine:
    times = None if step_ms is None else np.arange(frames) * step_ms
    pixels = np.zeros((frames, 4, 4, 1), np.uint8)
    return Cine("cine", FramesInMemory(pixels), frame_times_ms=times, heart_rate_bpm=heart_rate_bpm)


LEARNED_AT_40_MS = LearnedTimes(40.0, 1000.0)


@pytest.mark.parametrize(("step_ms", "stride"), [(40.0, 1), (20.0, 2), (10.0, 4), (80.0, 1)])
def test_clips_keep_the_interval_that_was_learned_at(step_ms: float, stride: int) -> None:
    clips = choose_clips(CONFIG, LEARNED_AT_40_MS, make_cine(400, step_ms), 3)

    assert (np.diff(clips, axis=1) == stride).all()


def test_clips_of_a_long_cine_lie_within_one_beat() -> None:
    cine = make_cine(1000, 10.0, heart_rate_bpm=120)  # 10 s, a beat of 500 ms

    clips = choose_clips(CONFIG, LEARNED_AT_40_MS, cine, 4)

    centres_ms = clips.mean(axis=1) * 10
    np.testing.assert_allclose(np.diff(centres_ms), 125, atol=10)
    assert np.ptp(centres_ms) < 500
    assert abs(centres_ms.mean() - 4995) < 20


def test_without_a_heart_rate_clips_are_spread_over_the_cine() -> None:
    centres = choose_clips(CONFIG, LEARNED_AT_40_MS, make_cine(100, 40.0), 4).mean(axis=1)

    np.testing.assert_allclose(centres, [12, 37, 62, 87], atol=1)


@pytest.mark.parametrize(
    ("times", "cine"),
    [
        (None, make_cine(50, 40.0)),
        (LEARNED_AT_40_MS, make_cine(50, None)),
        (LEARNED_AT_40_MS, make_cine(1, 40.0)),
    ],
)
def test_without_times_clips_are_taken_by_frame_number(times: LearnedTimes | None, cine: Cine) -> None:
    np.testing.assert_array_equal(choose_clips(CONFIG, times, cine, 3), sample_clips(CONFIG, cine.frame_count, 3))


def test_times_that_are_not_positive_are_refused() -> None:
    with pytest.raises(ValueError, match=r"are 0\.0 and 9\.0 ms; positive numbers"):
        LearnedTimes(0.0, 9.0)


@settings(max_examples=60, deadline=None)
@given(
    frames=st.integers(2, 300),
    step_ms=st.floats(2, 100),
    rate=st.one_of(st.none(), st.floats(40, 220)),
    sampling=st.sampled_from(["consecutive", "spaced"]),
    clips=st.integers(1, 5),
)
def test_frames_are_in_the_cine_and_in_order(
    frames: int, step_ms: float, rate: float | None, sampling: str, clips: int
) -> None:
    config = ViewConfig(classes=2, sampling=sampling)

    chosen = choose_clips(config, LEARNED_AT_40_MS, make_cine(frames, step_ms, rate), clips)

    assert chosen.shape == (clips, 4)
    assert chosen.min() >= 0 and chosen.max() < frames
    assert (np.diff(chosen, axis=1) >= 0).all()


def test_nearest_frame_by_brute_force() -> None:
    rng = np.random.default_rng(0)
    times = np.sort(rng.uniform(0, 100, 30))
    wanted = rng.uniform(-10, 110, (5, 4))

    np.testing.assert_array_equal(
        nearest_frames(times, wanted), np.abs(times[:, None, None] - wanted[None]).argmin(axis=0)
    )
