# SPDX-License-Identifier: Apache-2.0
"""Uncertainty grows with entropy and with boxes that move, and scores are calibrated by what was right."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy

from echo_plugin.acquisition.uncertainty import (
    AUGMENTATIONS,
    FRAMES_SCORED,
    OVERLAPS_SHAPE,
    SCORES_SHAPE,
    Calibration,
    CineScores,
    binary_entropy,
    calibrate,
    cine_uncertainties,
    frame_uncertainties,
    frames_to_draw,
    frames_to_score,
)


def looks(score: float, overlap: float) -> tuple[np.ndarray, np.ndarray]:
    return np.full(SCORES_SHAPE, score), np.full(OVERLAPS_SHAPE, overlap)


@given(st.floats(0, 1))
def test_entropy_is_that_of_scipy(p):
    assert binary_entropy(np.array(p)) == pytest.approx(entropy([p, 1 - p], base=2), abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_the_most_uncertain_by_entropy_is_that_of_scikit_activeml(seed):
    from skactiveml.pool import uncertainty_scores

    p = np.random.default_rng(seed).uniform(size=50)

    theirs = uncertainty_scores(np.stack([p, 1 - p], axis=1), method="entropy")

    assert binary_entropy(p) == pytest.approx(theirs / np.log(2))
    assert binary_entropy(p).argmax() == theirs.argmax()


def test_a_sure_box_that_stays_is_certain_and_one_that_moves_is_not():
    sure, moving, doubtful = (frame_uncertainties(*looks(*x), Calibration()) for x in ((1, 1), (1, 0.3), (0.5, 1)))

    assert sure == pytest.approx(0, abs=1e-4)
    assert moving == pytest.approx(np.full(FRAMES_SCORED, 0.35), abs=1e-3)
    assert doubtful == pytest.approx(np.full(FRAMES_SCORED, 0.5), abs=1e-6)


def test_nothing_seen_anywhere_is_certain():
    scores, overlaps = looks(0, np.nan)

    assert frame_uncertainties(scores, overlaps, Calibration()) == pytest.approx(0, abs=1e-6)


def test_the_score_that_the_card_calls_its_operating_score_is_the_most_uncertain():
    calibration = calibrate(0.3, [])

    p = calibration.probabilities(np.array([0.0, 0.1, 0.3, 0.8, np.nan]))

    assert p[:3] == pytest.approx([0, 0.1 / 0.9 / (0.1 / 0.9 + 0.3 / 0.7), 0.5])
    assert p[3] > 0.85
    assert np.isnan(p[4])


def test_calibrated_scores_are_as_often_right_as_they_say():
    rng = np.random.default_rng(0)
    scores = rng.uniform(0.05, 0.95, 4000)
    is_right = rng.uniform(size=4000) < 1 / (1 + np.exp(-2 * (np.log(scores / (1 - scores)) + 1)))

    calibration = calibrate(0.5, [np.column_stack([rng.integers(0, 2, 4000), scores, np.where(is_right, 0.8, 0.2)])])

    p = calibration.probabilities(scores)
    for low in (0.1, 0.4, 0.7):
        inside = (p >= low) & (p < low + 0.2)
        assert is_right[inside].mean() == pytest.approx(p[inside].mean(), abs=0.06)


def test_a_septum_that_is_difficult_weighs_more_but_never_more_than_a_fifth():
    matches = [np.array([[0, 0.9, 0.9]] * 5), np.array([[1, 0.0, 0.0]] * 5)]

    calibration = calibrate(0.5, matches)

    assert calibration.difficulties == pytest.approx((0.19, 1.0))
    assert 1 < calibration.weights[0] < calibration.weights[1] == pytest.approx(1.2)


def test_a_cine_is_as_uncertain_as_its_worst_frames_which_are_those_to_draw():
    frames = np.array([0.1, 0.9, np.nan, 0.5, 0.7, np.nan])

    assert cine_uncertainties(frames) == pytest.approx(0.7)
    assert frames_to_draw(np.array([3, 9, -1, 20, 30, -1]), frames) == (9, 20, 30)
    assert np.isnan(cine_uncertainties(np.full(FRAMES_SCORED, np.nan)))


@given(st.integers(1, 400))
def test_probed_frames_ascend_and_are_frames_of_the_cine(count):
    frames = frames_to_score(count)

    known = frames[frames >= 0]
    assert len(known) == min(count, FRAMES_SCORED)
    assert (np.diff(known) > 0).all()
    assert known.max() < count


def test_scores_of_other_shapes_is_refused():
    with pytest.raises(ValueError, match="Scores of a cine have shapes"):
        CineScores(np.zeros(2), np.zeros(SCORES_SHAPE), np.zeros(OVERLAPS_SHAPE), np.zeros(4))
    assert len(AUGMENTATIONS) == SCORES_SHAPE[1]
