# SPDX-License-Identifier: Apache-2.0
"""Measures of defect answers beyond those of any classifier: any defect or none, reliability, coverage."""

from __future__ import annotations

import numpy as np

from echo_plugin.geometry import FloatArray
from echo_plugin.metrics import CONFIDENCE_BINS, Cohort, Ids, confidence_cells
from echo_plugin.model_card import Metric


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
