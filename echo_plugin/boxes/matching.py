# SPDX-License-Identifier: Apache-2.0
"""Detections matched to true boxes, and what follows from it: precision, recall, average precision, FROC.

Items (frames) are matched once; a resample of patients only weights them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from echo_plugin.geometry import FloatArray, box_iou
from echo_plugin.metrics import ratio_or_nan

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
