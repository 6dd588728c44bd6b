# SPDX-License-Identifier: Apache-2.0
"""How well annotators agree: what different people said of the same cine, from the history of its revisions.

Of each annotator the last revision counts. Whoever came second saw what the first had drawn, so these figures say how
much was changed, not what two people would draw by themselves; the report says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from echo_plugin.anatomy import DETECTED_SEPTA
from echo_plugin.annotations import Annotation
from echo_plugin.geometry import box_iou
from echo_plugin.training.datasets import unsought_labels


@dataclass(frozen=True)
class Agreement:
    """Over all pairs of annotators and cines; None: nothing to compare.

    ``cines``, ``pairs``, ``frames`` : how many. ``mean_iou`` : of boxes of the same septum on the same frame. ``kappa``
    : Cohen's, by what is asked: whether a septum is on a frame, the view, the defect.
    """

    cines: int
    pairs: int
    frames: int
    mean_iou: float | None
    kappa: dict[str, float | None]


def agreement(histories: Iterable[Sequence[Annotation]]) -> Agreement:
    """Return the agreement in the histories of several cines."""
    cines = pairs = frames = 0
    overlaps: list[float] = []
    asked = [*(septum.value for septum in DETECTED_SEPTA), "view", "defect"]
    answers: dict[str, list[tuple[str, str]]] = {what: [] for what in asked}
    for history in histories:
        by_author = {annotation.author: annotation for annotation in history if annotation.author}
        between = list(combinations(by_author.values(), 2))
        cines += bool(between)
        pairs += len(between)
        for one, other in between:
            common = sorted(set(one.annotated_frames) & set(other.annotated_frames))
            frames += len(common)
            for frame in common:
                overlaps += _compare_frame(one, other, frame, answers)
            for what in ("view", "defect"):
                said = (getattr(one, what), getattr(other, what))
                if None not in said:
                    answers[what].append((said[0].value, said[1].value))
    kappa = {what: cohens_kappa(given) for what, given in answers.items()}
    return Agreement(cines, pairs, frames, float(np.mean(overlaps)) if overlaps else None, kappa)


def _compare_frame(
    one: Annotation, other: Annotation, frame: int, answers: dict[str, list[tuple[str, str]]]
) -> list[float]:
    """Return the IoUs of one frame and add to ``answers``; a septum that either did not look for is left out."""
    overlaps = []
    unsought = {label for annotation in (one, other) for label in unsought_labels(annotation, frame)}
    for label, septum in enumerate(DETECTED_SEPTA):
        if label in unsought:
            continue
        boxes = [[box.xyxy for box in a.boxes_on(frame) if box.septum is septum] for a in (one, other)]
        answers[septum.value].append(("box" if boxes[0] else "none", "box" if boxes[1] else "none"))
        if all(boxes):
            overlaps.append(float(box_iou(np.array(boxes[0]), np.array(boxes[1])).max()))
    return overlaps


def cohens_kappa(pairs: Sequence[tuple[str, str]]) -> float | None:
    """Return Cohen's kappa of pairs of answers: agreement beyond chance, 1 at most; None: no pairs.

    Where both always gave one and the same answer, chance explains everything and kappa is not defined: None too.
    """
    if not pairs:
        return None
    names = sorted({answer for pair in pairs for answer in pair})
    table = np.zeros((len(names), len(names)))
    for first, second in pairs:
        table[names.index(first), names.index(second)] += 1
    table /= table.sum()
    by_chance = float(table.sum(axis=1) @ table.sum(axis=0))
    return None if by_chance >= 1.0 else float((np.trace(table) - by_chance) / (1.0 - by_chance))
