# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from scipy.special import logsumexp, softmax
from scipy.stats import entropy

from echo_plugin.answer.views import choose_rule, cine_scores, is_standard_view, separation
from echo_plugin.model_card import OpenSetRule

SIX = ["A4C", "A5C", "A2C", "PLAX-LV", "PSAX-AV", "PSAX-MV"]


def test_scores_are_those_of_scipy() -> None:
    logits = np.random.default_rng(0).normal(size=(3, 6)) * 4

    scores = cine_scores(logits, SIX)

    assert scores.keys() == {"entropy", "energy"}
    assert scores["entropy"] == pytest.approx(entropy(softmax(logits, axis=1).mean(axis=0)) / np.log(6))
    assert scores["energy"] == pytest.approx(-logsumexp(logits, axis=1).mean())


def test_energy_is_of_the_standard_views_and_other_has_its_own_measure() -> None:
    logits = np.random.default_rng(1).normal(size=(3, 6)) * 4

    scores = cine_scores(logits, [*SIX[:4], "OTHER", SIX[5]])

    assert scores["energy"] == pytest.approx(-logsumexp(np.delete(logits, 4, axis=1), axis=1).mean())
    assert scores["other"] == pytest.approx(softmax(logits, axis=1)[:, 4].mean())


def test_evenly_spread_answers_are_the_strangest() -> None:
    assert cine_scores(np.zeros((2, 5)), SIX[:5])["entropy"] == pytest.approx(1.0)
    assert cine_scores(np.array([[60.0, 0, 0]]), SIX[:3])["entropy"] == pytest.approx(0.0, abs=1e-9)


def test_the_better_score_is_chosen_and_keeps_95_of_100_right_answers() -> None:
    right = [{"entropy": 0.5, "energy": -10.0 + 0.01 * i} for i in range(100)]
    wrong = [{"entropy": 0.5, "energy": -1.0}] * 5

    rule = choose_rule(right + wrong, np.array([True] * 100 + [False] * 5), np.zeros(105, bool))

    assert rule is not None and rule.score == "energy"
    assert sum(cine["energy"] <= rule.threshold for cine in right) == 95


def test_where_validation_has_other_the_measure_is_that_which_finds_it() -> None:
    """Wrong answers, which another measure would find, do not count then; neither do right answers of OTHER."""
    right = [{"entropy": 0.1, "energy": -9.0, "other": 0.01 * i} for i in range(20)]
    wrong = [{"entropy": 0.9, "energy": 5.0, "other": 0.0}] * 20
    other = [{"entropy": 0.1, "energy": -9.0, "other": 0.5}, {"entropy": 0.1, "energy": -9.0, "other": 0.9}]
    is_right, is_other = np.array([True] * 20 + [False] * 21 + [True]), np.array([False] * 40 + [True] * 2)

    rule = choose_rule(right + wrong + other, is_right, is_other)

    assert rule is not None and rule.score == "other"
    assert 0.17 < rule.threshold < 0.19


def test_a_model_without_a_right_answer_has_no_rule() -> None:
    assert choose_rule([{"entropy": 0.1, "energy": 0.0}], np.array([False]), np.array([False])) is None


def test_separation_counts_pairs() -> None:
    assert separation(np.array([3.0, 1, 2, 2]), np.array([True, False, False, True])) == pytest.approx(3.5 / 4)
    assert np.isnan(separation(np.array([1.0]), np.array([True])))


def test_what_is_above_the_threshold_is_no_standard_view() -> None:
    rule = OpenSetRule("entropy", 0.25)

    assert is_standard_view(rule, np.array([[9.0, 0.0]]), SIX[:2])
    assert not is_standard_view(rule, np.zeros((1, 2)), SIX[:2])


def test_an_unknown_score_is_refused() -> None:
    with pytest.raises(ValueError, match="'margin' above 1"):
        OpenSetRule("margin", 1.0)
