# SPDX-License-Identifier: Apache-2.0
"""How good: classification and box measures with 95 % intervals by a bootstrap over patients.

Every measure is a function of per-patient sums, so that a resample of patients is a product with a (B, P) matrix of
how often each patient was drawn. Figures of one patient are never treated as independent (cluster bootstrap).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from echo_plugin.geometry import FloatArray, box_iou
from echo_plugin.model_card import Metric

RESAMPLES = 2000

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
        value = float(measure(np.ones((1, self.count)))[0])
        samples = measure(self.draws())
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
        return self.metric(lambda w: _ratio(w @ sums, w @ counts), baseline)


def _ratio(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
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
    return _ratio(np.trace(confusion, axis1=1, axis2=2), confusion.sum((1, 2)))


def recalls_of(confusion: FloatArray) -> FloatArray:
    """Return (B, K) recalls of (B, K, K); NaN for a class that is absent."""
    return _ratio(np.diagonal(confusion, axis1=1, axis2=2), confusion.sum(2))


def precisions_of(confusion: FloatArray) -> FloatArray:
    """Return (B, K) precisions of (B, K, K); NaN for a class never answered."""
    return _ratio(np.diagonal(confusion, axis1=1, axis2=2), confusion.sum(1))


def f1_of(confusion: FloatArray) -> FloatArray:
    """Return (B, K) F1 of (B, K, K): 2 TP / (truths + answers); NaN for a class neither present nor answered."""
    return _ratio(2 * np.diagonal(confusion, axis1=1, axis2=2), confusion.sum(1) + confusion.sum(2))


def _mean_over_present(values: FloatArray, confusion: FloatArray) -> FloatArray:
    """Return (B,) means of (B, K) over the classes that have truths; an undefined precision there counts 0."""
    present = confusion.sum(2) > 0
    return _ratio((np.nan_to_num(values) * present).sum(1), present.sum(1))


def classification_metrics(
    cohort: Cohort, true_ids: Sequence[int], probabilities: FloatArray, *, classes: Sequence[str], majority_id: int
) -> dict[str, Metric]:
    """Return accuracy, balanced accuracy, macro and per-class precision, recall, F1, AUC and the Brier score.

    ``probabilities`` (N, K). ``majority_id`` : the constant answer, the most frequent class of the TRAINING patients.
    """
    K = len(classes)
    truth = np.asarray(true_ids, dtype=int)
    one_hot = np.eye(K)
    confusions = _patient_confusions(cohort, truth, probabilities.argmax(1), K)
    constant = confusion_matrix(truth, np.full_like(truth, majority_id), K)[None]

    def measured(measure: Callable[[FloatArray], FloatArray]) -> Metric:
        return cohort.metric(
            lambda w: measure(np.tensordot(w, confusions, axes=1)), _finite(float(measure(constant)[0]))
        )

    metrics = {
        "accuracy": measured(accuracy_of),
        "balanced_accuracy": measured(lambda c: _mean_over_present(recalls_of(c), c)),
        "macro_precision": measured(lambda c: _mean_over_present(precisions_of(c), c)),
        "macro_f1": measured(lambda c: _mean_over_present(f1_of(c), c)),
        "brier": cohort.mean(
            ((probabilities - one_hot[truth]) ** 2).sum(1),
            float((one_hot[truth] != one_hot[majority_id]).sum(1).mean()),
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


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


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
        return _ratio(((up @ wins) * down).sum(1), up.sum(1) * down.sum(1))

    return cohort.metric(measure, baseline=0.5)


def expected_calibration_error(probabilities: FloatArray, true_ids: Sequence[int], bins: int = 15) -> float:
    """Return ECE (Guo 2017): the mean gap between confidence and accuracy over ``bins`` equal bins of confidence."""
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == np.asarray(true_ids)
    cells = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(cells, weights=right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def centre_distances_px(boxes: FloatArray, others: FloatArray) -> FloatArray:
    """Return (N,) the distances between the centres of (N, 4) boxes and (N, 4) others."""
    step = (boxes[:, :2] + boxes[:, 2:] - others[:, :2] - others[:, 2:]) / 2
    distances: FloatArray = np.hypot(step[:, 0], step[:, 1])
    return distances


@dataclass(frozen=True)
class MatchedDetections:
    """Detections of one class: (D,) ``scores``, ``is_hit``, ``item`` of each; (N,) count of ``truths`` per item."""

    scores: FloatArray
    is_hit: NDArray[np.bool_]
    item: NDArray[np.intp]
    truths: FloatArray


def match_detections(
    detections: Sequence[tuple[FloatArray, FloatArray]], truths: Sequence[FloatArray], *, iou: float = 0.5
) -> MatchedDetections:
    """Match, frame by frame, (boxes (D, 4), scores (D,)) to truths (M, 4): best score first, each truth once (COCO)."""
    scores, hits, items = [np.zeros(0)], [np.zeros(0, dtype=bool)], [np.zeros(0, dtype=np.intp)]
    for item, ((boxes, frame_scores), frame_truths) in enumerate(zip(detections, truths, strict=True)):
        order = np.argsort(-frame_scores, kind="stable")
        overlaps = box_iou(boxes[order], frame_truths)
        hit = np.zeros(len(order), dtype=bool)
        for d in range(len(order) if len(frame_truths) else 0):
            best = int(overlaps[d].argmax())
            if overlaps[d, best] >= iou:
                hit[d] = True
                overlaps[:, best] = -1
        scores.append(frame_scores[order])
        hits.append(hit)
        items.append(np.full(len(order), item, dtype=np.intp))
    counts = np.array([len(t) for t in truths], dtype=np.float64)
    return MatchedDetections(np.concatenate(scores), np.concatenate(hits), np.concatenate(items), counts)


def precision_recall(matched: MatchedDetections, item_weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return (B, D) precision and recall as the score threshold falls; ``item_weights`` (B, N)."""
    order = np.argsort(-matched.scores, kind="mergesort")
    weights = item_weights[:, matched.item[order]]
    hits = np.cumsum(weights * matched.is_hit[order], axis=1)
    answers = np.cumsum(weights, axis=1)
    truths = item_weights @ matched.truths
    return _ratio(hits, answers), _ratio(hits, np.broadcast_to(truths[:, None], hits.shape))


def average_precision(matched: MatchedDetections, item_weights: FloatArray) -> FloatArray:
    """Return (B,) the 101-point interpolated average precision of COCO; NaN where no truth has weight."""
    precision, recall = precision_recall(matched, item_weights)
    envelope = np.maximum.accumulate(np.nan_to_num(precision)[:, ::-1], axis=1)[:, ::-1]
    levels = np.linspace(0, 1, 101)
    result = np.full(len(item_weights), np.nan)
    for b in range(len(item_weights)):
        if (item_weights[b] @ matched.truths) > 0:
            at = np.searchsorted(recall[b], levels, side="left")
            result[b] = np.append(envelope[b], 0.0)[at].mean()
    return result


def average_precision_metric(cohort: Cohort, matched: MatchedDetections, baseline: float | None = None) -> Metric:
    """Return the average precision with its interval; the items of ``matched`` are those of the cohort."""
    index = cohort.index
    return cohort.metric(lambda w: average_precision(matched, w[:, index]), baseline)
