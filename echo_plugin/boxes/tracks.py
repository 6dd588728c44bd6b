# SPDX-License-Identifier: Apache-2.0
"""Septal boxes over time: the one course of each septum through a cine that its detections support best.

A wall moves a little from frame to frame and does not jump, so a strong detection elsewhere on a single frame is
refused, a short gap is bridged, and corners are averaged with those of the neighbouring frames.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from echo_plugin.anatomy import Septum
from echo_plugin.annotations import SeptalBox
from echo_plugin.geometry import box_iou
from echo_plugin.model_card import ModelCard

FREE_IOU = 0.5
"""Steps between boxes that overlap so much cost nothing: that is how far a wall moves between frames."""


@dataclass(frozen=True)
class TrackOptions:
    """How boxes of one septum are joined.

    ``operating_score`` : a stretch of boxes is kept when its mean score reaches it; boxes below a quarter of it are
    not looked at. ``jump_cost`` : in scores, of a step between boxes that do not overlap.
    ``longest_gap`` : frames without a box that a bridge may span; beyond it the septum may be anywhere.
    ``bridge_weight`` : a bridged box has this part of its weaker neighbour's score.
    """

    operating_score: float = 0.3
    jump_cost: float = 1.5
    longest_gap: int = 4
    bridge_weight: float = 0.5

    def for_detector(self, card: ModelCard) -> TrackOptions:
        """Return the options with the operating score that a detector's card found best on validation patients."""
        score = card.config.get("operating_score")
        return dataclasses.replace(self, operating_score=score) if isinstance(score, float) else self


def link_boxes(
    candidates: Sequence[SeptalBox], frame_indices: Sequence[int], options: TrackOptions | None = None
) -> tuple[SeptalBox, ...]:
    """Return at most one box per septum and frame, ordered by frame, then as ``candidates`` name the septa.

    Parameters
    ----------
    candidates
        Scored boxes of a detector, several per frame allowed.
    frame_indices
        The frames looked at, 0-based ascending: bridges are built on these only.
    """
    options = options or TrackOptions()
    septa = list(Septum)
    linked = [
        box
        for septum in septa
        for box in _link_septum([c for c in candidates if c.septum is septum], frame_indices, options)
    ]
    return tuple(sorted(linked, key=lambda box: (box.frame_index, septa.index(box.septum))))


def choose_frames(
    boxes: Mapping[int, Sequence[SeptalBox]], frame_indices: Sequence[int], count: int
) -> dict[int, Sequence[SeptalBox]]:
    """Return up to ``count`` frames with their boxes: of each equal part of the frames with boxes, the best scored.

    Without any box, ``count`` of ``frame_indices`` evenly spread, each without boxes.
    """
    if not boxes:
        parts = np.array_split(np.asarray(frame_indices), min(count, len(frame_indices)))
        return {int(part[len(part) // 2]): () for part in parts if len(part)}
    parts = np.array_split(np.array(sorted(boxes)), min(count, len(boxes)))
    best = [max(part.tolist(), key=lambda f: sum(_score(box) for box in boxes[f])) for part in parts]
    return {frame_index: boxes[frame_index] for frame_index in best}


def _link_septum(candidates: list[SeptalBox], frame_indices: Sequence[int], options: TrackOptions) -> list[SeptalBox]:
    seen = [box for box in candidates if _score(box) >= options.operating_score / 4]
    kept: list[SeptalBox] = []
    for stretch in _stretches(_best_course(seen, options), options.longest_gap):
        if np.mean([_score(box) for box in stretch]) >= options.operating_score:
            kept += _bridge(_smooth(stretch), frame_indices, options)
    return kept


def _best_course(candidates: list[SeptalBox], options: TrackOptions) -> list[SeptalBox]:
    """Return the boxes, at most one per frame, whose scores less the costs of their jumps sum to the most."""
    boxes = sorted(candidates, key=lambda box: box.frame_index)
    if not boxes:
        return []
    frames = np.array([box.frame_index for box in boxes])
    scores = np.array([_score(box) for box in boxes])
    corners = np.stack([box.xyxy for box in boxes])
    gain, previous = scores.copy(), np.full(len(boxes), -1)
    for i in range(1, len(boxes)):
        before = np.flatnonzero(frames[:i] < frames[i])
        if len(before):
            is_near = frames[i] - frames[before] <= options.longest_gap + 1
            iou = box_iou(corners[i], corners[before[is_near]])[0]
            through = gain[before]
            through[is_near] -= options.jump_cost * np.clip(1.0 - iou / FREE_IOU, 0.0, None)
            best = int(np.argmax(through))
            if through[best] > 0:
                gain[i], previous[i] = scores[i] + through[best], before[best]
    course, i = [], int(np.argmax(gain))
    while i >= 0:
        course.append(boxes[i])
        i = int(previous[i])
    return course[::-1]


def _stretches(course: list[SeptalBox], longest_gap: int) -> list[list[SeptalBox]]:
    """Return the course cut where it misses more than ``longest_gap`` frames."""
    stretches: list[list[SeptalBox]] = []
    for box in course:
        if stretches and box.frame_index - stretches[-1][-1].frame_index <= longest_gap + 1:
            stretches[-1].append(box)
        else:
            stretches.append([box])
    return stretches


def _smooth(stretch: list[SeptalBox]) -> list[SeptalBox]:
    """Return the boxes with corners averaged over the frame before and after, by score, itself counting twice."""
    corners = np.stack([box.xyxy for box in stretch])
    weights = np.maximum([_score(box) for box in stretch], 1e-6)
    frames = np.array([box.frame_index for box in stretch])
    smooth = []
    for i, box in enumerate(stretch):
        near = np.flatnonzero(np.abs(frames - frames[i]) <= 1)
        weight = weights[near] * np.where(near == i, 2.0, 1.0)
        smooth.append(_moved(box, np.average(corners[near], axis=0, weights=weight)))
    return smooth


def _bridge(stretch: list[SeptalBox], frame_indices: Sequence[int], options: TrackOptions) -> list[SeptalBox]:
    """Return the stretch with boxes in between, on the missing ones of ``frame_indices``."""
    bridged = [stretch[0]]
    for before, after in pairwise(stretch):
        span = after.frame_index - before.frame_index
        for frame_index in frame_indices:
            if before.frame_index < frame_index < after.frame_index:
                part = (frame_index - before.frame_index) / span
                score = options.bridge_weight * min(_score(before), _score(after))
                box = _moved(before, (1 - part) * before.xyxy + part * after.xyxy)
                bridged.append(dataclasses.replace(box, frame_index=frame_index, score=score))
        bridged.append(after)
    return bridged


def _moved(box: SeptalBox, corners: NDArray[np.float64]) -> SeptalBox:
    x1, y1, x2, y2 = (float(corner) for corner in corners)
    return dataclasses.replace(box, x1=x1, y1=y1, x2=x2, y2=y2)


def _score(box: SeptalBox) -> float:
    return 1.0 if box.score is None else box.score
