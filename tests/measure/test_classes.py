# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from echo_plugin.measure.classes import Cohort, auc_metric, calibration_metric, classification_metrics, confusion_matrix


def _cohort(patients=40, per_patient=3):
    return Cohort(tuple(f"p{i % patients}" for i in range(patients * per_patient)), split="test")


def _answers(n=120, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, n)
    logits = rng.normal(size=(n, classes)) + 1.2 * np.eye(classes)[truth]
    return truth, np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def test_interval_of_a_mean_agrees_with_scipy_when_every_patient_has_one_item():
    values = np.random.default_rng(1).normal(size=60)
    cohort = Cohort(tuple(str(i) for i in range(60)), split="test")

    ours = cohort.mean(values)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=4000, random_state=0)

    assert ours.value == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.03)


def test_repeating_the_items_of_a_patient_does_not_narrow_the_interval():
    values = np.random.default_rng(1).normal(size=40)
    once = Cohort(tuple(str(i) for i in range(40)), split="test").mean(values)
    thrice = Cohort(tuple(str(i) for i in range(40)) * 3, split="test").mean(np.tile(values, 3))

    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high))


def test_one_patient_has_no_interval():
    metric = Cohort(("p", "p"), split="test").mean([0.0, 1.0])

    assert (metric.value, metric.low, metric.high, metric.patients) == (0.5, None, None, 1)


def test_classification_measures_equal_those_of_scikit_learn():
    truth, probabilities = _answers()
    answers = probabilities.argmax(1)

    ours = classification_metrics(_cohort(), truth, probabilities, classes=("a", "b", "c"), majority_id=0)

    assert ours["accuracy"].value == pytest.approx(sk.accuracy_score(truth, answers))
    assert ours["balanced_accuracy"].value == pytest.approx(sk.balanced_accuracy_score(truth, answers))
    precision, recall, f1, _ = sk.precision_recall_fscore_support(truth, answers)
    assert ours["macro_f1"].value == pytest.approx(f1.mean())
    for k, name in enumerate("abc"):
        assert ours[f"precision {name}"].value == pytest.approx(precision[k])
        assert ours[f"recall {name}"].value == pytest.approx(recall[k])
        assert ours[f"auc {name}"].value == pytest.approx(sk.roc_auc_score(truth == k, probabilities[:, k]))
    assert ours["accuracy"].low < ours["accuracy"].value < ours["accuracy"].high


def test_baseline_is_the_constant_answer_on_the_same_patients():
    truth, probabilities = _answers()

    ours = classification_metrics(_cohort(), truth, probabilities, classes=("a", "b", "c"), majority_id=1)

    assert ours["accuracy"].baseline == pytest.approx((truth == 1).mean())
    assert ours["balanced_accuracy"].baseline == pytest.approx(1 / 3)


def test_confusion_matrix_has_truth_in_rows():
    assert confusion_matrix([0, 0, 1], [1, 0, 1], 2).tolist() == [[1, 1], [0, 1]]
    assert np.array_equal(confusion_matrix([0, 2, 2], [1, 2, 0], 3), sk.confusion_matrix([0, 2, 2], [1, 2, 0]))


def test_auc_counts_ties_as_a_half():
    metric = auc_metric(
        Cohort(("a", "b", "c", "d"), split="test"), np.array([True, True, False, False]), np.array([0.5, 0.9, 0.5, 0.1])
    )

    assert metric.value == pytest.approx(sk.roc_auc_score([1, 1, 0, 0], [0.5, 0.9, 0.5, 0.1])) == 0.875


def test_calibration_error_is_zero_for_a_confidence_that_is_right_that_often():
    probabilities = np.tile([0.75, 0.25], (4, 1))

    cohort = Cohort(("a", "a", "a", "a"), split="test")
    assert calibration_metric(cohort, [0, 0, 0, 1], probabilities).value == pytest.approx(0.0)
    assert calibration_metric(cohort, [1, 1, 1, 1], probabilities).value == pytest.approx(0.75)
