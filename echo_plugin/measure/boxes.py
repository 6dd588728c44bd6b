# SPDX-License-Identifier: Apache-2.0
"""How good boxes are: matched to true ones, average precision as COCO defines it, FROC, overlap and distance.

Each figure stands against a constant answer. Items (frames) are matched once; a resample of patients only weighs them
again. What viewers show, at most one box of a septum and frame, is right or wrong and has no curve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from echo_plugin.anatomy import DETECTED_SEPTA
from echo_plugin.geometry import FloatArray, box_iou
from echo_plugin.measure.classes import RESAMPLES, Cohort, ratio_or_nan
from echo_plugin.model_card import Metric, ModelCard

COCO_IOUS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""The overlaps over which COCO averages its AP."""

_BLOCK = 64  # resamples at a time, so that (resamples, detections) stays small


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


def froc(matched: MatchedDetections, item_weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return (B, D) false boxes per item and sensitivity as the score threshold falls; ``item_weights`` (B, N)."""
    order = np.argsort(-matched.scores, kind="mergesort")
    weights = item_weights[:, matched.item[order]]
    false = np.cumsum(weights * ~matched.is_hit[order], axis=1)
    hits = np.cumsum(weights * matched.is_hit[order], axis=1)
    items = item_weights.sum(axis=1, keepdims=True)
    truths = (item_weights @ matched.truths)[:, None]
    return (
        ratio_or_nan(false, np.broadcast_to(items, false.shape)),
        ratio_or_nan(hits, np.broadcast_to(truths, hits.shape)),
    )


def sensitivity_at(matched: MatchedDetections, item_weights: FloatArray, false_per_item: float) -> FloatArray:
    """Return (B,) the share of true boxes found before more than ``false_per_item`` false boxes are; NaN: no truth."""
    found = []
    for start in range(0, len(item_weights), _BLOCK):
        block = item_weights[start : start + _BLOCK]
        false, sensitivity = froc(matched, block)
        allowed = np.where(false <= false_per_item, np.nan_to_num(sensitivity), 0.0)
        best = allowed.max(axis=1, initial=0.0)
        found.append(np.where(block @ matched.truths > 0, best, np.nan))
    return np.concatenate(found)


NO_LABEL = -1


@dataclass(frozen=True)
class FrameBoxes:
    """Boxes of one frame: ``boxes`` (M, 4) px, ``labels`` (M,) class ids, ``scores`` (M,), 1 for true boxes.

    ``mm_per_px`` : the width and height of a px of these boxes, for distances; None: not known.
    ``unsought`` : of true boxes, the classes that nobody looked for on the frame.
    """

    boxes: FloatArray
    labels: NDArray[np.int_]
    scores: FloatArray
    mm_per_px: tuple[float, float] | None = None
    unsought: tuple[int, ...] = ()

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
    if not card.cohort.constant_boxes:
        return None
    sides = [[np.nan] * 4 if box is None else box for box in card.cohort.constant_boxes]
    return np.array(sides, dtype=np.float64) * card.input_size_px


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
    cohort: Cohort,
    answers: Sequence[FrameBoxes],
    truths: Sequence[FrameBoxes],
    medians: FloatArray | None,
    *,
    precisions: AveragePrecisions | None = None,
) -> dict[str, Metric]:
    """Return how good boxes are, over the septa and for each: AP of COCO, AP50, AP75, FROC, mean IoU, distances.

    Besides how often empty frames are answered. The items of ``cohort`` are the frames. ``medians`` : of
    `constant_boxes`, the baseline; None: not known. ``precisions`` : of these answers, where they were measured before.
    """
    constants = None if medians is None else [constant_answer(medians)] * len(truths)
    present = [k for k in range(len(DETECTED_SEPTA)) if any(len(truth.of(k)[0]) for truth in truths)]
    precisions = precisions or average_precisions(cohort, answers, truths)
    plain = None if constants is None else average_precisions(cohort, constants, truths, resamples=0)
    metrics = precisions.metrics(plain) if present else {}
    for label in present:
        metrics |= _metrics_of_septum(cohort, answers, truths, constants, label)
    empty = np.array([len(truth.boxes) == 0 for truth in truths])
    if empty.any():
        answered = [float((a.scores >= SURE).any()) for a, is_empty in zip(answers, empty, strict=True) if is_empty]
        metrics["false alarms on frames without septum"] = cohort.of(empty).mean(
            answered, None if constants is None else 1.0
        )
    return metrics


@dataclass(frozen=True)
class AveragePrecisions:
    """The average precision of every septum that is shown at every overlap of COCO, with resamples of patients.

    ``cells`` : by class id and IoU (1 + B,) values, of all patients and of each resample; NaN: it shows nothing.
    """

    cohort: Cohort
    cells: Mapping[tuple[int, float], FloatArray]

    def of(self, label: int | None, ious: Sequence[float]) -> FloatArray:
        """Return (1 + B,) the means over overlaps, of one class or over those shown (None)."""
        return _mean_of_shown([v for (k, iou), v in self.cells.items() if label in (None, k) and iou in ious])

    def metrics(self, constants: AveragePrecisions | None) -> dict[str, Metric]:
        """Return AP, AP50 and AP75 over the septa and of each, beside the constant answer's where it is known."""
        metrics = {}
        for label in (None, *sorted({k for k, _ in self.cells})):
            name = "" if label is None else f" {DETECTED_SEPTA[label].value}"
            for words, ious in PRECISIONS.items():
                values = self.of(label, ious)
                baseline = None if constants is None else float(constants.of(label, ious)[0])
                metrics[words + name] = self.cohort.from_samples(float(values[0]), values[1:], baseline)
        return metrics

    def gains(self, before: AveragePrecisions) -> dict[str, Metric]:
        """Return by how much AP50 and AP75 over the septa are above those before, resampled in pairs."""
        gains = {}
        for words in ("AP50", "AP75") if self.cells else ():
            values = self.of(None, PRECISIONS[words]) - before.of(None, PRECISIONS[words])
            gains[words] = self.cohort.from_samples(float(values[0]), values[1:])
        return gains


def average_precisions(
    cohort: Cohort,
    answers: Sequence[FrameBoxes],
    truths: Sequence[FrameBoxes],
    *,
    ious: Sequence[float] = COCO_IOUS,
    resamples: int = RESAMPLES,
) -> AveragePrecisions:
    """Return the average precisions of N frames, the items of ``cohort``; each septum is matched once an overlap."""
    weights = np.concatenate([np.ones((1, cohort.count)), cohort.draws(resamples)])[:, cohort.index]
    cells = {
        (label, iou): average_precision(matched_boxes(answers, truths, label, iou), weights)
        for label in range(len(DETECTED_SEPTA))
        if any(len(truth.of(label)[0]) for truth in truths)
        for iou in ious
    }
    return AveragePrecisions(cohort, cells)


def matched_boxes(
    given: Sequence[FrameBoxes], truths: Sequence[FrameBoxes], label: int, iou: float = 0.5
) -> MatchedDetections:
    """Return which boxes of one class are right; those on frames where nobody looked for it are passed over."""
    found = [g.of(NO_LABEL if label in t.unsought else label) for g, t in zip(given, truths, strict=True)]
    return match_detections(found, [t.of(label)[0] for t in truths], iou=iou)


def _mean_of_shown(each: Sequence[FloatArray]) -> FloatArray:
    """Return (B,) the means over what a resample shows of several (B,) values; NaN: it shows nothing."""
    values = np.stack(each)
    return ratio_or_nan(np.nansum(values, axis=0), np.isfinite(values).sum(axis=0))


def _metrics_of_septum(
    cohort: Cohort,
    answers: Sequence[FrameBoxes],
    truths: Sequence[FrameBoxes],
    constants: Sequence[FrameBoxes] | None,
    label: int,
) -> dict[str, Metric]:
    name = DETECTED_SEPTA[label].value
    matched = matched_boxes(answers, truths, label)
    metrics = {
        f"sensitivity at {rate} false per frame {name}": cohort.metric(
            lambda w, rate=rate: sensitivity_at(matched, w[:, cohort.index], rate)  # type: ignore[misc]
        )
        for rate in FROC_RATES
    }
    overlaps = best_overlaps(answers, truths, label)
    there = np.isfinite(overlaps)
    constant = None if constants is None else float(best_overlaps(constants, truths, label)[there].mean())
    metrics[f"mean IoU {name}"] = cohort.of(there).mean(overlaps[there], constant)
    for unit, distances in zip(("px", "mm"), centre_distances(answers, truths, label), strict=True):
        if (known := np.isfinite(distances)).any():
            metrics[f"centre distance {unit} {name}"] = cohort.of(known).mean(distances[known])
    return metrics


PRECISIONS = {"AP": COCO_IOUS, "AP50": (0.5,), "AP75": (0.75,)}
"""The overlaps of each average precision."""
FROC_RATES = (0.1, 0.5)
"""False boxes of a septum per frame at which sensitivity is reported."""
SURE = 0.5
"""Score from which a box counts as an answer where a yes or no is asked."""


def centre_distances(
    answers: Sequence[FrameBoxes], truths: Sequence[FrameBoxes], label: int
) -> tuple[FloatArray, FloatArray]:
    """Return (N,) px and (N,) mm from each frame's surest box to its true one; NaN: one is absent, or mm not known."""
    steps, spacings = np.full((len(truths), 2), np.nan), np.full((len(truths), 2), np.nan)
    for i, (answer, truth) in enumerate(zip(answers, truths, strict=True)):
        wanted, (boxes, scores) = truth.of(label)[0], answer.of(label)
        if len(wanted) and len(boxes):
            steps[i] = (centre_steps_px(boxes[[scores.argmax()]], wanted[:1]))[0]
        if truth.mm_per_px is not None:
            spacings[i] = truth.mm_per_px
    return np.hypot(*steps.T), np.hypot(*(steps * spacings).T)


def centre_steps_px(boxes: FloatArray, others: FloatArray) -> FloatArray:
    """Return (N, 2) x and y from the centres of (N, 4) others to those of (N, 4) boxes."""
    steps: FloatArray = (boxes[:, :2] + boxes[:, 2:] - others[:, :2] - others[:, 2:]) / 2
    return steps


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
