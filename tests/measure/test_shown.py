# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from echo_plugin.measure.boxes import FrameBoxes, constant_boxes, shown_metrics
from echo_plugin.measure.classes import Cohort

HERE, ELSEWHERE = [0, 0, 10, 10], [50, 50, 60, 60]


def _frame(*rows):
    boxes = np.array([box for box, _ in rows], dtype=float).reshape(-1, 4)
    return FrameBoxes(boxes, np.array([label for _, label in rows], dtype=int), np.full(len(rows), 0.2))


def test_every_box_that_is_shown_counts_once_whatever_its_score():
    truths = [_frame((HERE, 0)), _frame((HERE, 0), (ELSEWHERE, 1)), _frame(), _frame((HERE, 0))]
    answers = [_frame((HERE, 0)), _frame((ELSEWHERE, 0), (ELSEWHERE, 1)), _frame((HERE, 0)), _frame()]

    metrics = shown_metrics(Cohort(tuple("aabb"), "test"), answers, truths, None)

    assert metrics["recall interatrial, as shown"].value == pytest.approx(1 / 3)
    assert metrics["false boxes per frame interatrial, as shown"].value == pytest.approx(2 / 4)
    assert metrics["F1 interatrial, as shown"].value == pytest.approx(2 / 6)
    assert metrics["recall interventricular, as shown"].value == 1.0
    assert metrics["F1, as shown"].value == pytest.approx(2 * 2 / (4 + 4))
    assert metrics["F1, as shown"].patients == 2
    assert metrics["F1, as shown"].low < metrics["F1, as shown"].value < metrics["F1, as shown"].high


def test_the_constant_boxes_are_the_answer_beside_it():
    truths = [_frame((HERE, 0))] * 3 + [_frame((ELSEWHERE, 0))]

    metrics = shown_metrics(Cohort(tuple("abcd"), "test"), truths, truths, constant_boxes(truths))

    assert metrics["recall, as shown"].value == 1.0
    assert metrics["recall, as shown"].baseline == pytest.approx(3 / 4)
    assert metrics["false boxes per frame, as shown"].baseline == pytest.approx(1 / 4)


def test_a_septum_that_nobody_has_is_not_measured():
    truths = [_frame((HERE, 1))]

    metrics = shown_metrics(Cohort(("a",), "test"), [_frame((HERE, 0))], truths, None)

    assert not any("interatrial" in name for name in metrics)
    assert metrics["recall, as shown"].value == 0.0
