# SPDX-License-Identifier: Apache-2.0
"""Figures and pictures of view classification, whoever made the answers: a published model or the models of folds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from echo_plugin.anatomy import View
from echo_plugin.geometry import FloatArray
from echo_plugin.metrics import Cohort, calibration_metric, classification_metrics, confusion_matrix
from echo_plugin.model_card import Metric
from echo_plugin.report import draw_confusion, draw_curves

HARD_PAIRS = ((View.PSAX_MV, View.PSAX_PM),)
"""Views that stills hardly tell apart: the mitral valve and the papillary muscles below it differ by motion."""
RELIABILITY_BINS = 10

Ids = NDArray[np.int_]


def view_metrics(
    cohort: Cohort, truth: Ids, probabilities: FloatArray, classes: Sequence[str], majority_id: int | None
) -> dict[str, Metric]:
    """Return accuracies, the figures of each view, the calibration error, and how often each hard pair is confused.

    "accuracy" is micro (of all cines), "balanced_accuracy" macro (the mean over views), as torchmetrics has it.
    """
    metrics = classification_metrics(cohort, truth, probabilities, classes=classes, majority_id=majority_id)
    metrics["expected calibration error"] = calibration_metric(cohort, truth, probabilities)
    answers = probabilities.argmax(axis=1)
    for pair in HARD_PAIRS:
        names = [view.value for view in pair]
        if not set(names) <= set(classes):
            continue
        ids = [classes.index(name) for name in names]
        chosen = np.isin(truth, ids)
        if chosen.any():
            swapped = np.isin(answers[chosen], ids) & (answers[chosen] != truth[chosen])
            metrics[f"confused {names[0]} / {names[1]}"] = cohort.of(chosen).mean(swapped.astype(float))
    return metrics


def open_set_metrics(
    cohort: Cohort, is_strange: NDArray[np.bool_], is_standard: NDArray[np.bool_], is_named: NDArray[np.bool_]
) -> dict[str, Metric]:
    """Return the share of standard views that are kept, of cines without one that are told so, and of right answers.

    ``is_named`` : the view that is said is that of the cine; an answer is right if it is, or says rightly that there is
    no standard view.
    """
    is_right = np.where(is_strange, ~is_standard, is_named & is_standard)
    metrics = {"accuracy, no standard view among the answers": cohort.mean(is_right.astype(float))}
    if (~is_strange).any():
        metrics["standard views kept"] = cohort.of(~is_strange).mean(is_standard[~is_strange].astype(float))
    if is_strange.any():
        told = cohort.of(is_strange).mean((~is_standard[is_strange]).astype(float))
        metrics["no standard view, and said so"] = told
    return metrics


def view_facts(
    cohort: Cohort, truth: Ids, probabilities: FloatArray, classes: Sequence[str], metrics: Mapping[str, Metric]
) -> dict[str, Any]:
    """Return what a report says of the answers, JSON-ready."""
    confusion = confusion_matrix(truth, probabilities.argmax(axis=1), len(classes))
    return {
        "patients": cohort.count,
        "cines": len(truth),
        "seed": cohort.seed,
        "split": cohort.split,
        "metrics": {name: dataclasses.asdict(m) for name, m in metrics.items() if np.isfinite(m.value)},
        "classes": list(classes),
        "confusion": confusion.astype(int).tolist(),
    }


def view_figures(truth: Ids, probabilities: FloatArray, classes: Sequence[str]) -> dict[str, Figure]:
    """Return the confusion matrix and the reliability curve, by title."""
    confusion = confusion_matrix(truth, probabilities.argmax(axis=1), len(classes))
    curve = reliability(probabilities, truth)
    line = np.array([0.0, 1.0])
    return {
        "Confusion": draw_confusion(confusion, classes),
        "Reliability": draw_curves({"measured": curve, "perfect": (line, line)}, "probability said", "share right"),
    }


def reliability(probabilities: FloatArray, truth: Ids, bins: int = RELIABILITY_BINS) -> tuple[FloatArray, FloatArray]:
    """Return the mean probability and the share of right answers of each bin of probability that has any."""
    said = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == truth
    cells = np.minimum((said * bins).astype(int), bins - 1)
    there = np.unique(cells)
    return np.array([said[cells == c].mean() for c in there]), np.array([right[cells == c].mean() for c in there])
