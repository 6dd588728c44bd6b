# SPDX-License-Identifier: Apache-2.0
import dataclasses

import numpy as np
import pytest
from sklearn import metrics as sk

from echo_plugin.evaluate.defect_tables import PAPER, AnsweredCine, beside_paper, dropout_table, tables_of_groups
from echo_plugin.evaluate.defects import Answers, _by_cine
from echo_plugin.measure.classes import Cohort, any_defect_metrics, calibration_metric, coverage_curve, reliability


def expected_calibration_error(probabilities, truth):
    """Return ECE by its definition, bin after bin."""
    said, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    cells = np.ceil(said * 15)
    return sum((cells == c).mean() * abs(said[cells == c].mean() - right[cells == c].mean()) for c in np.unique(cells))


def answers(n=150, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, n)
    logits = rng.normal(size=(n, 3)) + 1.5 * np.eye(3)[truth]
    return truth, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def cohort_of(n, each=3):
    return Cohort(tuple(f"p{i // each}" for i in range(n)), "test phantoms")


def test_sensitivity_and_specificity_are_recalls_of_any_defect():
    truth, probabilities = answers()
    said = probabilities.argmax(axis=1)

    found = any_defect_metrics(cohort_of(150), truth, said, normal_id=0, majority_id=1)

    assert found["defect sensitivity"].value == pytest.approx(sk.recall_score(truth != 0, said != 0))
    assert found["defect specificity"].value == pytest.approx(sk.recall_score(truth == 0, said == 0))
    assert (found["defect sensitivity"].baseline, found["defect specificity"].baseline) == (1.0, 0.0)
    swapped = any_defect_metrics(cohort_of(150), truth, said, normal_id=0, majority_id=0)
    assert (swapped["defect sensitivity"].baseline, swapped["defect specificity"].baseline) == (0.0, 1.0)


def test_an_asd_that_is_called_vsd_is_still_a_defect_found():
    found = any_defect_metrics(cohort_of(2, 1), [1, 0], [2, 0], normal_id=0, majority_id=None)

    assert found["defect sensitivity"].value == found["defect specificity"].value == 1.0


def test_a_class_that_nobody_has_has_no_figure():
    assert set(any_defect_metrics(cohort_of(2, 1), [0, 0], [1, 0], normal_id=0, majority_id=None)) == {
        "defect specificity"
    }


def test_calibration_error_is_that_of_the_formula_with_an_interval():
    truth, probabilities = answers()

    metric = calibration_metric(cohort_of(150), truth, probabilities)

    assert metric.value == pytest.approx(expected_calibration_error(probabilities, truth))
    assert metric.low < metric.high
    rows = reliability(truth, probabilities)
    assert (rows[:, 2] * np.abs(rows[:, 0] - rows[:, 1])).sum() / 150 == pytest.approx(metric.value)
    assert rows[:, 2].sum() == 150


def test_surest_answers_come_first_in_the_coverage_curve():
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.5, 0.5]])

    coverage, accuracy = coverage_curve([0, 1, 1, 0], probabilities)

    assert coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert accuracy.tolist() == pytest.approx([1.0, 1.0, 2 / 3, 3 / 4])


def test_a_part_of_the_cines_is_resampled_by_its_own_patients():
    cohort = cohort_of(9)
    place = np.arange(9) < 3

    metric = cohort.of(place).mean(np.arange(9.0)[place])

    assert (metric.value, metric.patients, metric.low) == (1.0, 1, None)


def cines_of(rows):
    return [AnsweredCine("A4C", defect, age, None, quality, dropout) for defect, age, quality, dropout in rows]


def test_dropout_of_normal_hearts_is_told_by_itself():
    cines = cines_of([("Normal", 1, 0.5, 0.6), ("Normal", 1, 0.5, 0.0), ("Normal", 1, 0.5, 0.3), ("ASD", 1, 0.5, 0.9)])

    table, found = dropout_table(cohort_of(4, 1), cines, ["ASD", "Normal", "Normal", "Normal"], "Normal")

    assert [row[:4] for row in table["rows"]] == [
        ["with drop-out", "2", "2", "0.500 [0.000, 1.000]"],
        ["without", "1", "1", "1.000"],
    ]
    assert {name: metric.value for name, metric in found.items()} == {
        "called Normal, with drop-out of the interatrial septum": 0.5,
        "called Normal, without drop-out": 1.0,
    }


def test_where_dropout_is_not_known_it_is_said():
    table, found = dropout_table(cohort_of(1), cines_of([("Normal", None, None, None)]), ["Normal"], "Normal")

    assert (table["rows"], found) == ([], {})
    assert table["note"].startswith("Not measured: drop-out is known of phantoms only")


def test_groups_are_counted_and_unknown_ones_said():
    cines = cines_of([("Normal", 100, None, None), ("ASD", 800, None, None), ("ASD", 900, None, None)])

    tables = {
        table["title"]: table
        for table in tables_of_groups(cohort_of(3, 1), cines, np.array([1.0, 0.0, 1.0]), np.array([1.0, 0.0, 0.0]))
    }

    assert tables["By age"]["rows"][0] == ["below 1 year", "1", "1", "1.000", "1.000"]
    assert tables["By age"]["rows"][1][:3] == ["1 to 5 years", "2", "2"]
    assert tables["By view"]["rows"][0][:2] == ["A4C", "3"]
    assert tables["By defect size"]["rows"] == tables["By image quality"]["rows"] == []
    assert tables["By image quality"]["note"].startswith("Not known")


def test_ours_stands_beside_each_figure_of_the_paper():
    truth, probabilities = answers()
    found = any_defect_metrics(cohort_of(150), truth, probabilities.argmax(axis=1), normal_id=0, majority_id=1)

    table = beside_paper(found)

    assert [row[0] for row in table["rows"]] == ["defect sensitivity", "defect specificity"]
    assert table["rows"][0][4:] == list(PAPER["defect sensitivity"])
    assert all(len(row) == len(table["columns"]) for row in table["rows"])


def test_accuracy_is_told_apart_by_whether_the_defect_is_in_the_picture():
    shown = [("ASD", True), ("ASD", False), ("Normal", None)]
    cines = [AnsweredCine("A4C", defect, None, None, None, None, visible) for defect, visible in shown]

    tables = {t["title"]: t for t in tables_of_groups(cohort_of(3, 1), cines, np.array([1.0, 0.0, 1.0]), None)}

    rows = {row[0]: row[3] for row in tables["By what the cine shows"]["rows"]}
    assert list(rows) == ["a defect in the picture", "a defect outside the picture", "a normal heart"]
    assert [text.split()[0] for text in rows.values()] == ["1.000", "0.000", "1.000"]


def test_calibration_of_cines_that_show_their_diagnosis_stands_beside_that_of_all():
    truth, probabilities = answers(60)
    is_visible = [None if i % 3 else False for i in range(60)]
    cines = tuple(AnsweredCine(None, "ASD", None, None, None, None, visible) for visible in is_visible)
    none = np.zeros((60, 0))
    told = Answers(("Normal", "ASD", "VSD"), truth, probabilities, none, none, np.zeros(60, bool), (), (), cines)
    name = "expected calibration error of cines that show their diagnosis"

    found = _by_cine(cohort_of(60), told, None)

    shown = np.array([visible is None for visible in is_visible])
    assert found[name].value == pytest.approx(expected_calibration_error(probabilities[shown], truth[shown]))
    assert found["expected calibration error"].value == pytest.approx(expected_calibration_error(probabilities, truth))
    everything = dataclasses.replace(told, cines=(cines[1],) * 60)
    assert name not in _by_cine(cohort_of(60), everything, None)
