# SPDX-License-Identifier: Apache-2.0
"""How good boxes are: average precision as COCO defines it, overlap and distance, each against a constant answer.

Frames are matched once; a resample of patients only weights them again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from echo_plugin.anatomy import DETECTED_SEPTA
from echo_plugin.geometry import FloatArray, box_iou
from echo_plugin.metrics import Cohort, ratio_or_nan
from echo_plugin.model_card import Metric, ModelCard

_BLOCK = 64  # resamples at a time, so that (resamples, detections) stays small


@dataclass(frozen=True)
class FrameBoxes:
    """Boxes of one frame: ``boxes`` (M, 4) px, ``labels`` (M,) class ids, ``scores`` (M,), 1 for true boxes."""

    boxes: FloatArray
    labels: NDArray[np.int_]
    scores: FloatArray

    def of(self, label: int) -> tuple[FloatArray, FloatArray]:
        """Return (boxes, scores) of one class."""
        keep = self.labels == label
        return self.boxes[keep], self.scores[keep]


def constant_boxes(truths: Sequence[FrameBoxes]) -> FloatArray:
    """Return (K, 4): the median true box of each class, NaN for an absent one; learn it on training patients."""
    medians = np.full((len(DETECTED_SEPTA), 4), np.nan)
    for label in range(len(DETECTED_SEPTA)):
        boxes = np.concatenate([truth.of(label)[0] for truth in truths] or [np.zeros((0, 4))])
        if len(boxes):
            medians[label] = np.median(boxes, axis=0)
    return medians


def constant_boxes_px(card: ModelCard) -> FloatArray | None:
    """Return the constant boxes that a detector's card keeps, px of its input; None: it keeps none."""
    sides = card.config.get("constant_boxes")
    if not isinstance(sides, list):
        return None
    medians = np.array(sides, dtype=np.float64).reshape(-1, 4) * card.input_size_px
    medians[medians < 0] = np.nan  # written as -1: a card is JSON
    return medians


def constant_answer(medians: FloatArray) -> FrameBoxes:
    """Return the same boxes, surely, for every frame."""
    known = np.flatnonzero(np.isfinite(medians).all(axis=1))
    return FrameBoxes(medians[known], known, np.ones(len(known)))


def best_overlaps(answers: Sequence[FrameBoxes], truths: Sequence[FrameBoxes], label: int) -> FloatArray:
    """Return (N,) IoU of each frame's best-scoring box with its true box; 0: none found; NaN: none is there."""
    overlaps = np.full(len(truths), np.nan)
    for i, (answer, truth) in enumerate(zip(answers, truths, strict=True)):
        wanted, (boxes, scores) = truth.of(label)[0], answer.of(label)
        if len(wanted):
            overlaps[i] = box_iou(boxes[[scores.argmax()]], wanted).max() if len(boxes) else 0.0
    return overlaps


def detection_metrics(
    cohort: Cohort, answers: Sequence[FrameBoxes], truths: Sequence[FrameBoxes], medians: FloatArray | None
) -> dict[str, Metric]:
    """Return AP50 over the septa; for each AP50, AP75, mean IoU, centre distance; how often empty frames are answered.

    The items of ``cohort`` are the frames. ``medians`` : of `constant_boxes`, the baseline; None: not known.
    """
    constants = None if medians is None else [constant_answer(medians)] * len(truths)
    present = [k for k in range(len(DETECTED_SEPTA)) if any(len(truth.of(k)[0]) for truth in truths)]
    metrics: dict[str, Metric] = {}
    if present:
        metrics["AP50"] = _mean_precision_metric(cohort, answers, truths, constants, present, iou=0.5)
    for label in present:
        name = DETECTED_SEPTA[label].value
        for level in (50, 75):
            metrics[f"AP{level} {name}"] = _mean_precision_metric(
                cohort, answers, truths, constants, [label], iou=level / 100
            )
        overlaps = best_overlaps(answers, truths, label)
        there = np.isfinite(overlaps)
        constant = None if constants is None else float(best_overlaps(constants, truths, label)[there].mean())
        metrics[f"mean IoU {name}"] = _members(cohort, there).mean(overlaps[there], constant)
        found, distances = _centre_distances(answers, truths, label)
        if found.any():
            metrics[f"centre distance px {name}"] = _members(cohort, found).mean(distances[found])
    empty = np.array([len(truth.boxes) == 0 for truth in truths])
    if empty.any():
        answered = [float((a.scores >= SURE).any()) for a, is_empty in zip(answers, empty, strict=True) if is_empty]
        metrics["false alarms on frames without septum"] = _members(cohort, empty).mean(
            answered, None if constants is None else 1.0
        )
    return metrics


def _mean_precision_metric(
    cohort: Cohort,
    answers: Sequence[FrameBoxes],
    truths: Sequence[FrameBoxes],
    constants: Sequence[FrameBoxes] | None,
    labels: Sequence[int],
    *,
    iou: float,
) -> Metric:
    """Return the average precision, the mean over ``labels`` that a resample shows, beside the constant answer's."""
    index = cohort.index

    def measure(given: Sequence[FrameBoxes]) -> Callable[[FloatArray], FloatArray]:
        matched = [
            match_detections([g.of(label) for g in given], [t.of(label)[0] for t in truths], iou=iou)
            for label in labels
        ]

        def over_labels(patient_weights: FloatArray) -> FloatArray:
            each = np.stack([average_precision(m, patient_weights[:, index]) for m in matched])
            return ratio_or_nan(np.nansum(each, axis=0), np.isfinite(each).sum(axis=0))

        return over_labels

    baseline = None if constants is None else float(measure(constants)(np.ones((1, cohort.count)))[0])
    return cohort.metric(measure(answers), baseline)


SURE = 0.5
"""Score from which a box counts as an answer where a yes or no is asked."""


def _members(cohort: Cohort, keep: NDArray[np.bool_]) -> Cohort:
    patients = tuple(patient for patient, kept in zip(cohort.patients, keep, strict=True) if kept)
    return Cohort(patients, cohort.split, cohort.seed)


def _centre_distances(
    answers: Sequence[FrameBoxes], truths: Sequence[FrameBoxes], label: int
) -> tuple[NDArray[np.bool_], FloatArray]:
    """Return which frames have both a true box and an answer, and (N,) the distance of their centres, px."""
    found, distances = np.zeros(len(truths), dtype=bool), np.full(len(truths), np.nan)
    for i, (answer, truth) in enumerate(zip(answers, truths, strict=True)):
        wanted, (boxes, scores) = truth.of(label)[0], answer.of(label)
        if len(wanted) and len(boxes):
            found[i] = True
            distances[i] = centre_distances_px(boxes[[scores.argmax()]], wanted[:1])[0]
    return found, distances


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
    return ratio_or_nan(hits, answers), ratio_or_nan(hits, np.broadcast_to(truths[:, None], hits.shape))


def average_precision(matched: MatchedDetections, item_weights: FloatArray) -> FloatArray:
    """Return (B,) the 101-point interpolated average precision of COCO; NaN where no truth has weight."""
    blocks = [item_weights[start : start + _BLOCK] for start in range(0, len(item_weights), _BLOCK)]
    return np.concatenate([_average_precision(matched, block) for block in blocks])


def _average_precision(matched: MatchedDetections, item_weights: FloatArray) -> FloatArray:
    precision, recall = precision_recall(matched, item_weights)
    envelope = np.maximum.accumulate(np.nan_to_num(precision)[:, ::-1], axis=1)[:, ::-1]
    levels = np.linspace(0, 1, 101)
    result = np.full(len(item_weights), np.nan)
    for b in range(len(item_weights)):
        if (item_weights[b] @ matched.truths) > 0:
            at = np.searchsorted(recall[b], levels, side="left")
            result[b] = np.append(envelope[b], 0.0)[at].mean()
    return result
