# SPDX-License-Identifier: Apache-2.0
"""How good boxes are: average precision as COCO defines it, overlap and distance, each against a constant answer.

Frames are matched once; a resample of patients only weights them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from echo_plugin.anatomy import DETECTED_SEPTA
from echo_plugin.geometry import FloatArray, box_iou
from echo_plugin.metrics import Cohort, ratio_or_nan
from echo_plugin.model_card import Metric

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
    cohort: Cohort, answers: Sequence[FrameBoxes], truths: Sequence[FrameBoxes], medians: FloatArray
) -> dict[str, Metric]:
    """Return for each septum AP50, AP75, mean IoU and centre distance, and how often frames without septa are answered.

    The items of ``cohort`` are the frames. ``medians`` : of `constant_boxes`, the baseline.
    """
    constants = [constant_answer(medians)] * len(truths)
    metrics: dict[str, Metric] = {}
    for label, septum in enumerate(DETECTED_SEPTA):
        wanted = [truth.of(label)[0] for truth in truths]
        if not any(len(w) for w in wanted):
            continue
        for level in (50, 75):
            ours, theirs = (
                match_detections([a.of(label) for a in given], wanted, iou=level / 100)
                for given in (answers, constants)
            )
            baseline = float(average_precision(theirs, np.ones((1, len(truths))))[0])
            metrics[f"AP{level} {septum.value}"] = average_precision_metric(cohort, ours, baseline)
        overlaps, constant = (best_overlaps(given, truths, label) for given in (answers, constants))
        there = np.isfinite(overlaps)
        members = _members(cohort, there)
        metrics[f"mean IoU {septum.value}"] = members.mean(overlaps[there], float(constant[there].mean()))
        found, distances = _centre_distances(answers, truths, label)
        if found.any():
            metrics[f"centre distance px {septum.value}"] = _members(cohort, found).mean(distances[found])
    empty = np.array([len(truth.boxes) == 0 for truth in truths])
    if empty.any():
        answered = [float((a.scores >= SURE).any()) for a, is_empty in zip(answers, empty, strict=True) if is_empty]
        metrics["false alarms on frames without septum"] = _members(cohort, empty).mean(answered, 1.0)
    return metrics


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


def average_precision_metric(cohort: Cohort, matched: MatchedDetections, baseline: float | None = None) -> Metric:
    """Return the average precision with its interval; the items of ``matched`` are those of the cohort."""
    index = cohort.index
    return cohort.metric(lambda w: average_precision(matched, w[:, index]), baseline)
