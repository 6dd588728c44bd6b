# SPDX-License-Identifier: Apache-2.0
import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echo_plugin.anatomy import Septum, View
from echo_plugin.annotations import ViewPrediction
from echo_plugin.answer.defects import choose_angle, coverage_curve, reason_to_abstain

LIMIT_DEG = 50.0
WALL = [Septum.INTERATRIAL]


def seen_as(view: View, probability: float) -> ViewPrediction:
    return ViewPrediction(view, {view: probability, View.OTHER: 1 - probability}, (0,))


def test_a_card_without_a_threshold_always_answers() -> None:
    assert reason_to_abstain(None, 170.0, WALL, seen_as(View.PLAX_LV, 0.9), is_whole_frame=True) is None


def test_whole_frames_get_no_answer() -> None:
    assert reason_to_abstain(LIMIT_DEG, 10.0, [], None, is_whole_frame=True) == "no septum found"


def test_what_is_unlike_every_class_gets_no_answer() -> None:
    assert reason_to_abstain(LIMIT_DEG, 50.0, WALL, None, is_whole_frame=False) is None
    reason = reason_to_abstain(LIMIT_DEG, 61.4, WALL, None, is_whole_frame=False)
    assert reason == "unlike every class (61 deg from the nearest)"


@pytest.mark.parametrize(
    ("view", "probability", "septa", "reason"),
    [
        (View.PLAX_LV, 0.9, WALL, "view PLAX-LV does not show this septum"),
        (View.PLAX_LV, 0.9, [Septum.INTERVENTRICULAR], None),
        (View.PLAX_LV, 0.9, [Septum.UNSPECIFIED], None),
        (View.SUPRASTERNAL_ARCH, 0.9, [Septum.UNSPECIFIED], "view SSN-ARCH does not show this septum"),
        (View.SUPRASTERNAL_ARCH, 0.4, WALL, None),
        (View.A4C, 0.9, WALL, None),
    ],
)
def test_a_view_that_does_not_show_the_wall_gets_no_answer(view, probability, septa, reason) -> None:
    assert reason_to_abstain(LIMIT_DEG, 10.0, septa, seen_as(view, probability), is_whole_frame=False) == reason


@pytest.mark.parametrize(
    ("is_standard", "reason"), [(False, "no standard view (A4C 0.60)"), (True, None), (None, None)]
)
def test_a_cine_without_a_standard_view_gets_no_answer(is_standard: bool | None, reason: str | None) -> None:
    view = dataclasses.replace(seen_as(View.A4C, 0.6), is_standard=is_standard)

    assert reason_to_abstain(LIMIT_DEG, 10.0, WALL, view, is_whole_frame=False) == reason
    assert reason_to_abstain(None, 10.0, WALL, view, is_whole_frame=False) is None


def test_the_threshold_keeps_out_the_far_ones_that_are_wrong() -> None:
    angles = np.arange(10.0, 30.0)
    is_right = angles < 29

    assert choose_angle(angles, is_right, least_coverage=0.9) == pytest.approx(28.5)
    assert choose_angle(angles, np.ones(20, dtype=bool)) == 180.0


@given(st.lists(st.tuples(st.floats(0, 180), st.booleans()), min_size=1, max_size=60), st.floats(0.1, 1.0))
def test_enough_cines_are_answered_and_not_worse_than_all(pairs, least) -> None:
    angles, is_right = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])

    limit = choose_angle(angles, is_right, least)

    answered = angles <= limit
    assert answered.mean() >= least - 1e-9


def test_coverage_rises_to_one_and_ends_at_the_plain_accuracy() -> None:
    rng = np.random.default_rng(0)
    angles, is_right = rng.random(50) * 90, rng.random(50) < 0.7

    thresholds, coverage, accuracy = coverage_curve(angles, is_right)

    assert (np.diff(thresholds) >= 0).all()
    assert coverage[-1] == 1
    assert accuracy[-1] == pytest.approx(is_right.mean())
