# SPDX-License-Identifier: Apache-2.0
"""Which labels a person has confirmed: looked at again and submitted as they were. Those are not doubted once more.

Whether the label was shown as doubtful then is not known, for judgements are kept of the latest revision only. What is
known is who saved each revision and when: the same again from the same person counts after `LOOKED_AGAIN_AFTER` only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise

import numpy as np

from echo_plugin.annotations import Annotation, SeptalBox
from echo_plugin.errors import AnnotationError
from echo_plugin.io.study_folder import StudyFolder

SAME_PX = 0.01
"""3D Slicer returns a box that nobody moved as mm in a volume; in pixels it is off by less than this."""

LOOKED_AGAIN_AFTER = timedelta(seconds=60)
"""The same from the same person within this time is Submit pressed twice: no detector has judged the label so soon."""


def says_the_same(one: Annotation, other: Annotation) -> bool:
    """Return whether two annotations say the same, whoever saved them and when."""
    ours, theirs = (sorted(annotation.boxes, key=_order) for annotation in (one, other))
    rest = [replace(a, boxes=(), author=None, saved_at=None, revision=0) for a in (one, other)]
    return (
        rest[0] == rest[1]
        and [(box.frame_index, box.septum) for box in ours] == [(box.frame_index, box.septum) for box in theirs]
        and all(np.abs(a.xyxy - b.xyxy).max() < SAME_PX for a, b in zip(ours, theirs, strict=True))
    )


def _order(box: SeptalBox) -> tuple[object, ...]:
    return box.frame_index, box.septum.value, *box.xyxy


class Confirmed:
    """Asks the history of each label once for each of its revisions."""

    def __init__(self, studies: StudyFolder) -> None:
        self._studies = studies
        self._known: dict[str, tuple[int, bool]] = {}

    def __call__(self, image_id: str, revision: int) -> bool:
        """Return whether this revision says what was looked at again; no if the history cannot be read.

        Another person submitted it as it was, or the same one `LOOKED_AGAIN_AFTER`; nothing changed since.
        """
        if revision < 2:
            return False
        known = self._known.get(image_id)
        if known is None or known[0] != revision:
            known = self._known[image_id] = (revision, self._look(image_id, revision))
        return known[1]

    def _look(self, image_id: str, revision: int) -> bool:
        try:
            history = [a for a in self._studies.history(image_id) if a.revision <= revision]
        except AnnotationError:
            return False
        return bool(history) and history[-1].revision == revision and _was_looked_at_again(history)


def _was_looked_at_again(history: Sequence[Annotation]) -> bool:
    for later, earlier in pairwise(reversed(history)):
        if not says_the_same(later, earlier):
            return False
        if not _is_pressed_twice(earlier, later):
            return True
    return False


def _is_pressed_twice(earlier: Annotation, later: Annotation) -> bool:
    if earlier.author != later.author or earlier.saved_at is None or later.saved_at is None:
        return False  # what has no time did not come by Submit
    return later.saved_at - earlier.saved_at < LOOKED_AGAIN_AFTER
