# SPDX-License-Identifier: Apache-2.0
"""Septal boxes over time: what the frames beside it say of every box, and the one course of each septum that is shown.

A wall moves a little from frame to frame and does not jump. So boxes of neighbouring frames that overlap are joined to
courses; along a course scores and corners are averaged, which raises a box that its neighbours confirm and lowers one
that stands alone (as tubelet rescoring does: Han et al. 2016, Seq-NMS, arXiv 1602.08465), and short gaps are bridged.
A picture shows each wall once, so where one course is sure the others are not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from echo_plugin.anatomy import Septum
from echo_plugin.annotations import SeptalBox
from echo_plugin.geometry import FloatArray, box_iou
from echo_plugin.model_card import DetectorDecision, ModelCard

FADING = 0.85
"""The weight of a neighbour falls by this with every frame of distance."""

SCORE_REACH, CORNER_REACH = 4, 2
"""So many frames to either side are averaged: corners over fewer, since a wall moves."""

SHOWN_PART = 0.92
"""Averaged scores are a little lower than the single ones in which a detector's operating score was found."""


_NONE = np.zeros(0, dtype=np.intp)


def operating_score(card: ModelCard) -> float | None:
    """Return the score of best F1 that a detector's card names; None: not said."""
    return card.decision_as(DetectorDecision).operating_score


@dataclass(frozen=True)
class TrackOptions:
    """How boxes of one septum are joined.

    ``operating_score`` : of single boxes; a course is shown when its mean averaged score reaches SHOWN_PART of it.
    ``least_overlap`` : the IoU from which a box goes on with a course.
    ``longest_gap`` : frames without a box that a bridge may span; beyond it the septum may be anywhere.
    ``bridge_weight`` : a bridged box has this part of its weaker neighbour's score.
    """

    operating_score: float = 0.3
    least_overlap: float = 0.4
    longest_gap: int = 4
    bridge_weight: float = 0.5

    def for_detector(self, card: ModelCard) -> TrackOptions:
        """Return the options with the operating score that a detector's card found best on validation patients."""
        score = operating_score(card)
        return self if score is None else dataclasses.replace(self, operating_score=score)


@dataclass(frozen=True)
class Course:
    """One possible septum through a cine: (N,) ``frames`` 0-based ascending, (N, 4) ``corners`` px, (N,) ``scores``."""

    septum: Septum
    frames: NDArray[np.int_]
    corners: FloatArray
    scores: FloatArray

    def boxes(self) -> list[SeptalBox]:
        """Return it frame by frame."""
        rows = zip(self.frames.tolist(), self.corners.tolist(), self.scores.tolist(), strict=True)
        return [
            SeptalBox(frame, x1, y1, x2, y2, self.septum, min(score, 1.0)) for frame, (x1, y1, x2, y2), score in rows
        ]


def link_boxes(
    candidates: Sequence[SeptalBox], frame_indices: Sequence[int], options: TrackOptions | None = None
) -> tuple[SeptalBox, ...]:
    """Return at most one box per septum and frame, ordered by frame, then as ``anatomy`` has the septa.

    Parameters
    ----------
    candidates
        Scored boxes of a detector, several per frame allowed.
    frame_indices
        The frames looked at, 0-based ascending: bridges are built on these only.
    """
    options = options or TrackOptions()
    shown: dict[tuple[int, Septum], SeptalBox] = {}
    for course in sorted(_all_courses(candidates, frame_indices, options), key=lambda c: -float(c.scores.sum())):
        if course.scores.mean() >= SHOWN_PART * options.operating_score:
            for box in course.boxes():
                shown.setdefault((box.frame_index, box.septum), box)
    return _in_order(shown.values())


def weigh_boxes(
    candidates: Sequence[SeptalBox], frame_indices: Sequence[int], options: TrackOptions | None = None
) -> tuple[SeptalBox, ...]:
    """Return every box with the score and the corners that the frames beside it give it, and the bridges.

    What `link_boxes` shows is chosen from these; a precision-recall curve needs the weak ones too. On each frame the
    boxes of a septum beside its best one lose as much of their score as that one has.
    """
    groups: dict[tuple[int, Septum], list[SeptalBox]] = {}
    for course in _all_courses(candidates, frame_indices, options or TrackOptions()):
        for box in course.boxes():
            groups.setdefault((box.frame_index, box.septum), []).append(box)
    weighed = []
    for boxes in groups.values():
        best, *others = sorted(boxes, key=_score, reverse=True)
        weighed += [best, *(dataclasses.replace(o, score=_score(o) * (1.0 - _score(best))) for o in others)]
    return _in_order(weighed)


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


def _all_courses(candidates: Sequence[SeptalBox], frame_indices: Sequence[int], options: TrackOptions) -> list[Course]:
    looked_at = np.asarray(sorted(frame_indices), dtype=int)
    found = []
    for septum in Septum:
        of_septum = [box for box in candidates if box.septum is septum]
        if of_septum:
            found += [_bridged(_averaged(c, looked_at), looked_at, options) for c in _courses(of_septum, options)]
    return found


def _courses(boxes: Sequence[SeptalBox], options: TrackOptions) -> list[Course]:
    """Return the boxes of one septum as courses, each grown both ways from the best box that is left."""
    boxes = sorted(boxes, key=lambda box: (-_score(box), box.frame_index, *box.xyxy))
    frames = np.array([box.frame_index for box in boxes])
    scores, corners = np.array([_score(box) for box in boxes]), np.stack([box.xyxy for box in boxes])
    order = np.argsort(frames, kind="stable")
    numbers, firsts = np.unique(frames[order], return_index=True)
    on_frame = dict(zip(numbers.tolist(), np.split(order, firsts[1:]), strict=True))
    is_free = np.ones(len(boxes), dtype=bool)

    def following(end: int, step: int) -> int | None:
        """Return the box that goes on, on the nearest frame that has one: surest and overlapping most."""
        for frame in range(int(frames[end]) + step, int(frames[end]) + step * (options.longest_gap + 2), step):
            here = on_frame.get(frame, _NONE)
            here = here[is_free[here]]
            overlaps = box_iou(corners[[end]], corners[here])[0] if len(here) else _NONE
            if len(here) and overlaps.max() >= options.least_overlap:
                return int(here[np.where(overlaps >= options.least_overlap, overlaps * scores[here], -1.0).argmax()])
        return None

    courses = []
    for seed in range(len(boxes)):
        if is_free[seed]:
            course, is_free[seed] = [seed], False
            for step in (1, -1):
                end: int | None = seed
                while end is not None and (end := following(end, step)) is not None:
                    course.append(end)
                    is_free[end] = False
            members = np.array(sorted(course, key=lambda i: int(frames[i])))
            courses.append(Course(boxes[0].septum, frames[members], corners[members], scores[members]))
    return courses


def _averaged(course: Course, looked_at: NDArray[np.int_]) -> Course:
    """Return the course with scores and corners averaged over neighbouring frames.

    A frame that was looked at and has no box counts as a score of 0; corners are weighted by the scores.
    """
    among, weights = np.zeros(len(course.frames)), np.zeros(len(course.frames))
    scores, corners = np.zeros_like(course.scores), np.zeros_like(course.corners)
    for offset in range(-SCORE_REACH, SCORE_REACH + 1):  # a band: a long course has few neighbours and many frames
        fading, wanted = FADING ** abs(offset), course.frames + offset
        among += fading * (np.searchsorted(looked_at, wanted, "right") - np.searchsorted(looked_at, wanted))
        here = np.minimum(np.searchsorted(course.frames, wanted), len(course.frames) - 1)
        there = fading * (course.frames[here] == wanted)
        scores += there * course.scores[here]
        if abs(offset) <= CORNER_REACH:
            weight = there * np.maximum(course.scores[here], 1e-6)
            weights += weight
            corners += weight[:, None] * course.corners[here]
    return dataclasses.replace(course, corners=corners / weights[:, None], scores=scores / among)


def _bridged(course: Course, looked_at: NDArray[np.int_], options: TrackOptions) -> Course:
    """Return the course with a box on every frame looked at between its first and its last."""
    inside = (looked_at > course.frames[0]) & (looked_at < course.frames[-1])
    missing = np.setdiff1d(looked_at[inside], course.frames)
    if not len(missing):
        return course
    after = np.searchsorted(course.frames, missing)
    corners = [np.interp(missing, course.frames, course.corners[:, side]) for side in range(4)]
    weaker = np.minimum(course.scores[after - 1], course.scores[after])
    frames = np.concatenate([course.frames, missing])
    order = np.argsort(frames, kind="stable")
    return Course(
        course.septum,
        frames[order],
        np.concatenate([course.corners, np.stack(corners, axis=1)])[order],
        np.concatenate([course.scores, options.bridge_weight * weaker])[order],
    )


def _in_order(boxes: Iterable[SeptalBox]) -> tuple[SeptalBox, ...]:
    septa = list(Septum)
    return tuple(sorted(boxes, key=lambda b: (b.frame_index, septa.index(b.septum), -_score(b))))


def _score(box: SeptalBox) -> float:
    return 1.0 if box.score is None else box.score
