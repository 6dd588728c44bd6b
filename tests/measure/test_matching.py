# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from echo_plugin.measure.boxes import froc, match_detections, sensitivity_at

BOX = np.array([[0, 0, 10, 10.0]])
ELSEWHERE = BOX + 50


def test_sensitivity_rises_with_the_false_boxes_that_are_allowed():
    # frame 0: a hit at 0.9; frame 1: a false box at 0.8, then a hit at 0.3
    found = [(BOX, np.array([0.9])), (np.concatenate([ELSEWHERE, BOX]), np.array([0.8, 0.3]))]
    matched = match_detections(found, [BOX, BOX])
    weights = np.ones((1, 2))

    false, sensitivity = froc(matched, weights)

    assert false.tolist() == [[0.0, 0.5, 0.5]]
    assert sensitivity.tolist() == [[0.5, 0.5, 1.0]]
    assert sensitivity_at(matched, weights, 0.1).tolist() == [0.5]
    assert sensitivity_at(matched, weights, 0.5).tolist() == [1.0]


def test_sensitivity_without_a_true_box_is_undefined_and_without_an_answer_zero():
    nothing = (np.zeros((0, 4)), np.zeros(0))

    assert np.isnan(sensitivity_at(match_detections([nothing], [np.zeros((0, 4))]), np.ones((1, 1)), 0.5)).all()
    assert sensitivity_at(match_detections([nothing], [BOX]), np.ones((1, 1)), 0.5).tolist() == [0.0]


@pytest.mark.parametrize("rate", [0.05, 0.3, 1.0])
def test_sensitivity_equals_a_search_over_every_threshold(rate):
    rng = np.random.default_rng(3)
    truths = [BOX if rng.random() < 0.7 else np.zeros((0, 4)) for _ in range(40)]
    found = [(np.concatenate([BOX + rng.normal(0, 3, 4), ELSEWHERE]), rng.uniform(size=2)) for _ in range(40)]
    matched = match_detections(found, truths)
    best = 0.0
    for threshold in matched.scores:
        sure = matched.scores >= threshold
        if (sure & ~matched.is_hit).sum() / 40 <= rate:
            best = max(best, (sure & matched.is_hit).sum() / matched.truths.sum())

    assert sensitivity_at(matched, np.ones((1, 40)), rate)[0] == pytest.approx(best)
