# SPDX-License-Identifier: Apache-2.0
"""Measures of defect answers beyond those of any classifier: any defect or none, calibration, coverage."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from echo_plugin.geometry import FloatArray
from echo_plugin.metrics import Cohort, Ids, ratio_or_nan
from echo_plugin.model_card import Metric

BINS = 15
"""Equal bins of confidence, as Guo et al. 2017 (arXiv 1706.04599) use for the expected calibration error."""


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


def calibration_metric(cohort: Cohort, true_ids: Ids, probabilities: FloatArray) -> Metric:
    """Return the expected calibration error of (N, K) probabilities with its interval over patients."""
    confidence, right, cells = _confidence(true_ids, probabilities)
    gaps = np.zeros((len(confidence), BINS))
    gaps[np.arange(len(confidence)), cells] = right - confidence
    sums, counts = cohort.per_patient(gaps), cohort.per_patient(np.ones(len(confidence)))
    return cohort.metric(lambda weights: ratio_or_nan(np.abs(weights @ sums).sum(axis=1), weights @ counts))


def reliability(true_ids: Ids, probabilities: FloatArray) -> FloatArray:
    """Return (B, 3): mean confidence, accuracy and number of answers of each bin that has some."""
    confidence, right, cells = _confidence(true_ids, probabilities)
    counts = np.bincount(cells, minlength=BINS)
    sums = [np.bincount(cells, weights=values, minlength=BINS) for values in (confidence, right)]
    filled = counts > 0
    rows: FloatArray = np.stack([sums[0][filled] / counts[filled], sums[1][filled] / counts[filled], counts[filled]], 1)
    return rows


def coverage_curve(true_ids: Ids, probabilities: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return (coverage, accuracy): how often the surest answers are right as less sure ones are given too."""
    confidence, right, _ = _confidence(true_ids, probabilities)
    order = np.argsort(-confidence, kind="stable")
    given = np.arange(1, len(order) + 1)
    return given / len(order), np.cumsum(right[order]) / given


def _confidence(true_ids: Ids, probabilities: FloatArray) -> tuple[FloatArray, FloatArray, NDArray[np.int_]]:
    confidence = probabilities.max(axis=1)
    right = (probabilities.argmax(axis=1) == np.asarray(true_ids)).astype(np.float64)
    return confidence, right, np.minimum((confidence * BINS).astype(int), BINS - 1)
