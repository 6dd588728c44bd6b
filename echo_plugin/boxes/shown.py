# SPDX-License-Identifier: Apache-2.0
"""How good the boxes are that viewers show: at most one of a septum and frame, each right or wrong, without a curve."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from echo_plugin.anatomy import DETECTED_SEPTA
from echo_plugin.boxes.metrics import FrameBoxes, constant_answer, matched_boxes
from echo_plugin.geometry import FloatArray
from echo_plugin.metrics import Cohort, ratio_or_nan
from echo_plugin.model_card import Metric


def shown_metrics(
    cohort: Cohort, answers: Sequence[FrameBoxes], truths: Sequence[FrameBoxes], medians: FloatArray | None
) -> dict[str, Metric]:
    """Return recall, false boxes per frame and F1 at IoU 0.5, of all boxes and of each septum that is there.

    The items of ``cohort`` are the frames. ``medians`` : the constant boxes, shown on every frame; None: not known.
    """
    counts = _counts(answers, truths)
    plain = None if medians is None else _counts([constant_answer(medians)] * len(truths), truths)
    metrics: dict[str, Metric] = {}
    each = [([label], f" {septum.value}") for label, septum in enumerate(DETECTED_SEPTA)]
    for labels, name in [(list(range(len(DETECTED_SEPTA))), ""), *each]:
        of_patients = cohort.per_patient(_of_frames(counts, labels))
        if not of_patients[:, 1].any():
            continue
        constants = None if plain is None else _of_frames(plain, labels).sum(axis=0, keepdims=True)
        for words, measure in MEASURES.items():
            baseline = None if constants is None else float(measure(constants)[0])
            metrics[f"{words}{name}, as shown"] = cohort.metric(
                lambda w, measure=measure, sums=of_patients: measure(w @ sums),  # type: ignore[misc]
                baseline,
            )
    return metrics


def _counts(answers: Sequence[FrameBoxes], truths: Sequence[FrameBoxes]) -> FloatArray:
    """Return (K, N, 3) by septum and frame: right boxes, true boxes, answered boxes."""
    counts = np.zeros((len(DETECTED_SEPTA), len(truths), 3))
    for label in range(len(DETECTED_SEPTA)):
        matched = matched_boxes(answers, truths, label)
        counts[label, :, 0] = np.bincount(matched.item, weights=matched.is_hit, minlength=len(truths))
        counts[label, :, 1] = matched.truths
        counts[label, :, 2] = np.bincount(matched.item, minlength=len(truths))
    return counts


def _of_frames(counts: FloatArray, labels: list[int]) -> FloatArray:
    """Return (N, 4): the counts of some septa together, and 1 for the frame itself."""
    together: FloatArray = counts[labels].sum(axis=0)
    return np.concatenate([together, np.ones((len(together), 1))], axis=1)


def _recall(sums: FloatArray) -> FloatArray:
    return ratio_or_nan(sums[:, 0], sums[:, 1])


def _false_per_frame(sums: FloatArray) -> FloatArray:
    return ratio_or_nan(sums[:, 2] - sums[:, 0], sums[:, 3])


def _f1(sums: FloatArray) -> FloatArray:
    return ratio_or_nan(2 * sums[:, 0], sums[:, 1] + sums[:, 2])


MEASURES = {"recall": _recall, "false boxes per frame": _false_per_frame, "F1": _f1}
