# SPDX-License-Identifier: Apache-2.0
"""How good classes are, with 95 % intervals by a bootstrap over patients; boxes are in ``measure.boxes``.

Every measure is a function of per-patient sums, so that a resample of patients is a product with a (B, P) matrix of
how often each patient was drawn. Figures of one patient are never treated as independent (cluster bootstrap). Of
defects also: any or none, reliability, and coverage where some answers are withheld.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from echo_plugin.geometry import FloatArray
from echo_plugin.model_card import Metric

RESAMPLES = 2000

CONFIDENCE_BINS = 15
"""Equal bins of confidence, as Guo et al. 2017 (arXiv 1706.04599) use for the expected calibration error."""

Ids = Sequence[int] | NDArray[np.int_]
"""(N,) class ids."""


@dataclass(frozen=True)
class Cohort:
    """Who was measured: ``patients`` (N,) the patient of each item, ``split`` in words, ``seed`` of the bootstrap."""

    patients: tuple[str, ...]
    split: str
    seed: int = 0

    @property
    def count(self) -> int:
        """P, the number of distinct patients."""
        return len(set(self.patients))

    @property
    def index(self) -> NDArray[np.intp]:
        """(N,) 0..P-1, the patient of each item."""
        index: NDArray[np.intp] = np.unique(np.array(self.patients), return_inverse=True)[1]
        return index.reshape(-1)

    def of(self, keep: NDArray[np.bool_]) -> Cohort:
        """Return the cohort of the items that are kept (N,); only their patients are resampled."""
        patients = tuple(patient for patient, is_kept in zip(self.patients, keep, strict=True) if is_kept)
        return Cohort(patients, self.split, self.seed)

    def draws(self, resamples: int = RESAMPLES) -> FloatArray:
        """Return (B, P): how often each patient is drawn in each resample of P patients with replacement."""
        rng = np.random.default_rng(self.seed)
        return rng.multinomial(self.count, np.full(self.count, 1.0 / self.count), size=resamples).astype(np.float64)

    def per_patient(self, items: FloatArray) -> FloatArray:
        """Return the (P, ...) sums of (N, ...) items over the items of each patient."""
        sums = np.zeros((self.count, *items.shape[1:]))
        np.add.at(sums, self.index, items)
        return sums

    def metric(self, measure: Callable[[FloatArray], FloatArray], baseline: float | None = None) -> Metric:
        """Return ``measure`` with its interval: it maps (B, P) patient weights to (B,) values; NaN: undefined."""
        return self.from_samples(float(measure(np.ones((1, self.count)))[0]), measure(self.draws()), baseline)

    def from_samples(self, value: float, samples: FloatArray, baseline: float | None = None) -> Metric:
        """Return ``value`` with the interval of (B,) resampled values; NaN: undefined there."""
        samples = samples[np.isfinite(samples)]
        low: float | None = None
        high: float | None = None
        if self.count > 1 and len(samples):
            low, high = (float(bound) for bound in np.percentile(samples, [2.5, 97.5]))
        return Metric(value, low, high, self.count, self.split, baseline)

    def mean(self, values: Sequence[float] | FloatArray, baseline: float | None = None) -> Metric:
        """Return the mean of (N,) item values, resampled by patient."""
        values = np.asarray(values, dtype=np.float64)
        sums, counts = self.per_patient(values), self.per_patient(np.ones_like(values))
        return self.metric(lambda w: ratio_or_nan(w @ sums, w @ counts), baseline)


def ratio_or_nan(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """Return numerator / denominator; NaN where the denominator is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: FloatArray = np.where(denominator > 0, numerator / denominator, np.nan)
    return ratio


def confusion_matrix(true_ids: Ids, predicted_ids: Ids, classes: int) -> FloatArray:
    """Return (K, K) counts, rows: truth, columns: answer."""
    matrix = np.zeros((classes, classes))
    np.add.at(matrix, (np.asarray(true_ids, dtype=int), np.asarray(predicted_ids, dtype=int)), 1)
    return matrix


def accuracy_of(confusion: FloatArray) -> FloatArray:
    """Return (B,) the right share of (B, K, K)."""
    return ratio_or_nan(np.trace(confusion, axis1=1, axis2=2), confusion.sum((1, 2)))


def recalls_of(confusion: FloatArray) -> FloatArray:
    """Return (B, K) recalls of (B, K, K); NaN for a class that is absent."""
    return ratio_or_nan(np.diagonal(confusion, axis1=1, axis2=2), confusion.sum(2))


def precisions_of(confusion: FloatArray) -> FloatArray:
    """Return (B, K) precisions of (B, K, K); NaN for a class never answered."""
    return ratio_or_nan(np.diagonal(confusion, axis1=1, axis2=2), confusion.sum(1))


def f1_of(confusion: FloatArray) -> FloatArray:
    """Return (B, K) F1 of (B, K, K): 2 TP / (truths + answers); NaN for a class neither present nor answered."""
    return ratio_or_nan(2 * np.diagonal(confusion, axis1=1, axis2=2), confusion.sum(1) + confusion.sum(2))


def _mean_over_present(values: FloatArray, confusion: FloatArray) -> FloatArray:
    """Return (B,) means of (B, K) over the classes that have truths; an undefined precision there counts 0."""
    present = confusion.sum(2) > 0
    return ratio_or_nan((np.nan_to_num(values) * present).sum(1), present.sum(1))


def classification_metrics(
    cohort: Cohort, true_ids: Ids, probabilities: FloatArray, *, classes: Sequence[str], majority_id: int | None
) -> dict[str, Metric]:
    """Return accuracy, balanced accuracy, macro and per-class precision, recall, F1, AUC and the Brier score.

    ``probabilities`` (N, K). ``majority_id`` : the constant answer, the most frequent class of the TRAINING patients;
    None: not known, there are no baselines then but that of chance for AUC.
    """
    K = len(classes)
    truth = np.asarray(true_ids, dtype=int)
    one_hot = np.eye(K)
    confusions = _patient_confusions(cohort, truth, probabilities.argmax(1), K)

    def measured(measure: Callable[[FloatArray], FloatArray]) -> Metric:
        baseline = None
        if majority_id is not None:
            baseline = float(measure(confusion_matrix(truth, np.full_like(truth, majority_id), K)[None])[0])
            baseline = baseline if np.isfinite(baseline) else None
        return cohort.metric(lambda w: measure(np.tensordot(w, confusions, axes=1)), baseline)

    metrics = {
        "accuracy": measured(accuracy_of),
        "balanced_accuracy": measured(lambda c: _mean_over_present(recalls_of(c), c)),
        "macro_precision": measured(lambda c: _mean_over_present(precisions_of(c), c)),
        "macro_f1": measured(lambda c: _mean_over_present(f1_of(c), c)),
        "brier": cohort.mean(
            ((probabilities - one_hot[truth]) ** 2).sum(1),
            None if majority_id is None else float((one_hot[truth] != one_hot[majority_id]).sum(1).mean()),
        ),
    }
    for k, name in enumerate(classes):
        if not (truth == k).any():
            continue
        metrics[f"precision {name}"] = measured(lambda c, k=k: precisions_of(c)[:, k])  # type: ignore[misc]
        metrics[f"recall {name}"] = measured(lambda c, k=k: recalls_of(c)[:, k])  # type: ignore[misc]
        metrics[f"f1 {name}"] = measured(lambda c, k=k: f1_of(c)[:, k])  # type: ignore[misc]
        if (truth != k).any():
            metrics[f"auc {name}"] = auc_metric(cohort, truth == k, probabilities[:, k])
    return metrics


def _patient_confusions(cohort: Cohort, truth: NDArray[np.int_], answers: NDArray[np.int_], classes: int) -> FloatArray:
    """Return (P, K, K): the confusion matrix of each patient."""
    cells = np.zeros((len(truth), classes, classes))
    cells[np.arange(len(truth)), truth, answers] = 1
    return cohort.per_patient(cells)


def auc_metric(cohort: Cohort, positive: NDArray[np.bool_], scores: FloatArray) -> Metric:
    """Return the area under the ROC curve: the share of (positive, negative) pairs in the right order, ties a half."""
    wins = np.sign(scores[positive][:, None] - scores[~positive][None, :]) / 2 + 0.5
    index = cohort.index

    def measure(weights: FloatArray) -> FloatArray:
        up, down = weights[:, index[positive]], weights[:, index[~positive]]
        return ratio_or_nan(((up @ wins) * down).sum(1), up.sum(1) * down.sum(1))

    return cohort.metric(measure, baseline=0.5)


def calibration_metric(cohort: Cohort, true_ids: Ids, probabilities: FloatArray) -> Metric:
    """Return the expected calibration error of (N, K) probabilities: the mean gap between confidence and accuracy."""
    confidence, right, cells = confidence_cells(true_ids, probabilities)
    gaps = np.zeros((len(confidence), CONFIDENCE_BINS))
    gaps[np.arange(len(confidence)), cells] = right - confidence
    sums, counts = cohort.per_patient(gaps), cohort.per_patient(np.ones(len(confidence)))
    return cohort.metric(lambda weights: ratio_or_nan(np.abs(weights @ sums).sum(axis=1), weights @ counts))


def confidence_cells(true_ids: Ids, probabilities: FloatArray) -> tuple[FloatArray, FloatArray, NDArray[np.int_]]:
    """Return (N,) confidences, whether each answer is right (1 or 0), and its bin of confidence."""
    confidence = probabilities.max(axis=1)
    right = (probabilities.argmax(axis=1) == np.asarray(true_ids)).astype(np.float64)
    cells = np.minimum((confidence * CONFIDENCE_BINS).astype(int), CONFIDENCE_BINS - 1)
    return confidence, right, cells


def any_defect_metrics(
    cohort: Cohort, true_ids: Ids, answer_ids: Ids, *, normal_id: int, majority_id: int | None
) -> dict[str, Metric]:
    """Return sensitivity (a defect is called some defect) and specificity (Normal is called Normal)."""
    truth, answers = np.asarray(true_ids), np.asarray(answer_ids)
    metrics = {}
    for name, place, right in (
        ("defect sensitivity", truth != normal_id, answers != normal_id),
        ("defect specificity", truth == normal_id, answers == normal_id),
    ):
        if place.any():
            constant = (
                None if majority_id is None else float((majority_id != normal_id) == (name != "defect specificity"))
            )
            metrics[name] = cohort.of(place).mean(right[place].astype(np.float64), constant)
    return metrics


def reliability(true_ids: Ids, probabilities: FloatArray) -> FloatArray:
    """Return (B, 3): mean confidence, accuracy and number of answers of each bin that has some."""
    confidence, right, cells = confidence_cells(true_ids, probabilities)
    counts = np.bincount(cells, minlength=CONFIDENCE_BINS)
    sums = [np.bincount(cells, weights=values, minlength=CONFIDENCE_BINS) for values in (confidence, right)]
    filled = counts > 0
    rows: FloatArray = np.stack([sums[0][filled] / counts[filled], sums[1][filled] / counts[filled], counts[filled]], 1)
    return rows


def coverage_curve(true_ids: Ids, probabilities: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return (coverage, accuracy): how often the surest answers are right as less sure ones are given too."""
    confidence, right, _ = confidence_cells(true_ids, probabilities)
    order = np.argsort(-confidence, kind="stable")
    given = np.arange(1, len(order) + 1)
    return given / len(order), np.cumsum(right[order]) / given
