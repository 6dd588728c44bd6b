# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from scipy.special import logsumexp, softmax
from scipy.stats import entropy

from echo_plugin.model_card import ModelCard, TrainingData
from echo_plugin.views.open_set import OpenSetRule, choose_rule, cine_scores, rule_of, rule_to_config, separation


def test_scores_are_those_of_scipy() -> None:
    logits = np.random.default_rng(0).normal(size=(3, 6)) * 4

    scores = cine_scores(logits)

    assert scores["entropy"] == pytest.approx(entropy(softmax(logits, axis=1).mean(axis=0)) / np.log(6))
    assert scores["energy"] == pytest.approx(-logsumexp(logits, axis=1).mean())


def test_evenly_spread_answers_are_the_strangest() -> None:
    assert cine_scores(np.zeros((2, 5)))["entropy"] == pytest.approx(1.0)
    assert cine_scores(np.array([[60.0, 0, 0]]))["entropy"] == pytest.approx(0.0, abs=1e-9)


def test_the_better_score_is_chosen_and_keeps_95_of_100_right_answers() -> None:
    right = [{"entropy": 0.5, "energy": -10.0 + 0.01 * i} for i in range(100)]
    wrong = [{"entropy": 0.5, "energy": -1.0}] * 5

    rule = choose_rule(right + wrong, np.array([True] * 100 + [False] * 5))

    assert rule is not None and rule.score == "energy"
    assert sum(cine["energy"] <= rule.threshold for cine in right) == 95


def test_a_model_without_a_right_answer_has_no_rule() -> None:
    assert choose_rule([{"entropy": 0.1, "energy": 0.0}], np.array([False])) is None


def test_separation_counts_pairs() -> None:
    assert separation(np.array([3.0, 1, 2, 2]), np.array([True, False, False, True])) == pytest.approx(3.5 / 4)
    assert np.isnan(separation(np.array([1.0]), np.array([True])))


def test_a_rule_is_read_back_from_a_card_and_older_cards_have_none() -> None:
    rule = OpenSetRule("entropy", 0.25)
    data = TrainingData("", 0, 0, "")
    card = ModelCard("view_classifier", "1", "view", "", ("A4C", "A2C"), 64, rule_to_config(rule), data)

    assert rule_of(card) == rule
    assert rule_of(ModelCard("view_classifier", "1", "view", "", ("A4C",), 64, {}, data)) is None
    assert rule.is_standard(np.array([[9.0, 0.0]]))
    assert not rule.is_standard(np.zeros((1, 2)))


def test_an_unknown_score_is_refused() -> None:
    with pytest.raises(ValueError, match="'margin' above 1"):
        OpenSetRule("margin", 1.0)
