# SPDX-License-Identifier: Apache-2.0
"""What a person or a model says about a cine: septal boxes, defect, view.

Objects here are immutable and valid. Files of them are in ``io.annotation_store`` and ``io.markups``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from echo_plugin.anatomy import Defect, Septum, View
from echo_plugin.errors import AnnotationError, UnknownImageError

IMAGE_ID_PATTERN = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._%-]{0,198}[A-Za-z0-9_%-])?")
"""An image id: a SOP Instance UID or an escaped relative path; safe as a file name on every system."""

_HALF_TURN_DEG = 180.0 + 1e-4  # pi as float32 is a little more than pi


def require_image_id(image_id: str) -> str:
    """Return ``image_id`` if it is well-formed.

    Raises
    ------
    UnknownImageError
        If it has characters that could leave the study folder, is empty or longer than 200.
    """
    if not isinstance(image_id, str) or not IMAGE_ID_PATTERN.fullmatch(image_id) or ".." in image_id:
        msg = (
            f"Image id {str(image_id)[:80]!r} is malformed; 1 to 200 letters, digits, '.', '_', '-', '%'"
            " without '..' are accepted."
        )
        raise UnknownImageError(msg)
    return image_id


@dataclass(frozen=True)
class SeptalBox:
    """A box around the imaged septum, end to end, on one frame.

    ``x1, y1, x2, y2`` : px of the file, continuous, outer corners, x1 < x2, y1 < y2 (may leave the picture slightly).
    ``frame_index`` : 0-based.
    ``score`` : 0..1 of a detector; None: drawn by a person.
    """

    frame_index: int
    x1: float
    y1: float
    x2: float
    y2: float
    septum: Septum
    score: float | None = None

    def __post_init__(self) -> None:
        corners = (self.x1, self.y1, self.x2, self.y2)
        if not isinstance(self.frame_index, int | np.integer) or self.frame_index < 0:
            msg = f"Septal box has frame_index {self.frame_index!r}; a 0-based whole number is accepted."
            raise AnnotationError(msg)
        if not isinstance(self.septum, Septum):
            msg = f"Septal box has septum {self.septum!r}; {[s.value for s in Septum]} are accepted."
            raise AnnotationError(msg)
        if not all(math.isfinite(c) for c in corners) or not (self.x1 < self.x2 and self.y1 < self.y2):
            msg = (
                f"Septal box on frame index {self.frame_index} has corners {corners};"
                " finite x1 < x2 and y1 < y2 in px are accepted."
            )
            raise AnnotationError(msg)
        if self.score is not None and not 0.0 <= self.score <= 1.0:
            msg = f"Septal box on frame index {self.frame_index} has score {self.score}; 0 to 1 or None is accepted."
            raise AnnotationError(msg)

    @property
    def xyxy(self) -> NDArray[np.float64]:
        """The corners as a (4,) float64 array."""
        return np.array([self.x1, self.y1, self.x2, self.y2], dtype=np.float64)


@dataclass(frozen=True)
class Annotation:
    """All that a person said about one cine.

    ``annotated_frames`` : 0-based, ascending; a frame listed here without a box is a true negative ("no septum").
    ``view``, ``defect`` : None: not said. ``defect_size_mm`` : the largest diameter; None: not measured.
    ``is_defect_visible`` : whether this cine shows the defect that the child has; None: not said.
    ``saved_at`` : with time zone. ``revision`` : 1 for the first save; 0 for one not stored yet.
    ``is_unusable`` : nobody should annotate or learn from this cine; what was said before stays with it.
    """

    image_id: str
    boxes: tuple[SeptalBox, ...] = ()
    annotated_frames: tuple[int, ...] = ()
    view: View | None = None
    defect: Defect | None = None
    defect_size_mm: float | None = None
    author: str | None = None
    saved_at: datetime | None = None
    revision: int = 0
    is_unusable: bool = False
    is_defect_visible: bool | None = None

    def __post_init__(self) -> None:
        require_image_id(self.image_id)
        frames = self.annotated_frames
        if not _are_frame_indices(frames) or list(frames) != sorted(set(frames)):
            msg = f"Annotation of {self.image_id}: annotated_frames {frames[:8]} must ascend from 0 as whole numbers."
            raise AnnotationError(msg)
        strays = {box.frame_index for box in self.boxes} - set(frames)
        if strays:
            msg = (
                f"Annotation of {self.image_id}: boxes on frames {sorted(strays)[:8]} (0-based)"
                " that annotated_frames does not list; list every frame that was looked at."
            )
            raise AnnotationError(msg)
        self._require_a_possible_heart()
        if self.saved_at is not None and self.saved_at.tzinfo is None:
            msg = f"Annotation of {self.image_id}: saved_at {self.saved_at.isoformat()} has no time zone."
            raise AnnotationError(msg)
        if not isinstance(self.is_unusable, bool):
            msg = f"Annotation of {self.image_id}: is_unusable is {self.is_unusable!r}; True or False is accepted."
            raise AnnotationError(msg)
        if self.revision < 0:
            msg = f"Annotation of {self.image_id}: revision is {self.revision}; 0 or more is accepted."
            raise AnnotationError(msg)

    def _require_a_possible_heart(self) -> None:
        for name, value, kind in (("view", self.view, View), ("defect", self.defect, Defect)):
            if value is not None and not isinstance(value, kind):
                msg = f"Annotation of {self.image_id}: {name} is {value!r}; {[m.value for m in kind]} are accepted."
                raise AnnotationError(msg)
        if self.is_defect_visible is not None and self.defect in (None, Defect.NORMAL):
            msg = (
                f"Annotation of {self.image_id}: is_defect_visible is {self.is_defect_visible} without a defect;"
                " it is accepted with one, or None."
            )
            raise AnnotationError(msg)
        if self.defect_size_mm is not None and not (math.isfinite(self.defect_size_mm) and self.defect_size_mm > 0):
            msg = f"Annotation of {self.image_id}: defect_size_mm is {self.defect_size_mm}; a positive length or None."
            raise AnnotationError(msg)
        if self.defect_size_mm is not None and self.defect is Defect.NORMAL:
            msg = (
                f"Annotation of {self.image_id}: defect_size_mm is {self.defect_size_mm} with the defect Normal;"
                " a size is accepted with a defect, or where none is said."
            )
            raise AnnotationError(msg)

    def boxes_on(self, frame_index: int) -> tuple[SeptalBox, ...]:
        """Return the boxes of one frame (0-based)."""
        return tuple(box for box in self.boxes if box.frame_index == frame_index)


def _are_frame_indices(frames: Sequence[object]) -> bool:
    return all(isinstance(f, int | np.integer) and f >= 0 for f in frames)


def _require_frame_indices(what: str, frames: tuple[int, ...]) -> None:
    if not _are_frame_indices(frames):
        msg = f"{what} prediction has frame_indices {frames[:8]}; 0-based whole numbers are accepted."
        raise ValueError(msg)


def _require_distribution(what: str, probabilities: Mapping[object, float]) -> None:
    total = sum(probabilities.values())
    if not probabilities or min(probabilities.values()) < 0 or not math.isclose(total, 1.0, abs_tol=1e-3):
        msg = f"{what} probabilities sum to {total:.4f}; non-negative values that sum to 1 are accepted."
        raise ValueError(msg)


@dataclass(frozen=True)
class ViewPrediction:
    """The view of a cine: ``probabilities`` sum to 1; ``frame_indices`` are the 0-based frames looked at.

    ``is_still`` : a single frame was answered, without motion. ``is_standard`` : whether it is one of the standard
    views at all; None: the model has no limit for it.
    """

    view: View
    probabilities: Mapping[View, float]
    frame_indices: tuple[int, ...]
    is_still: bool = False
    is_standard: bool | None = None

    def __post_init__(self) -> None:
        _require_distribution("View", self.probabilities)  # type: ignore[arg-type]
        _require_frame_indices("View", self.frame_indices)
        if self.view not in self.probabilities:
            msg = f"Predicted view {self.view.value} is not among its probabilities."
            raise ValueError(msg)

    @property
    def probability(self) -> float:
        """The probability of the predicted view."""
        return self.probabilities[self.view]

    @property
    def words(self) -> str:
        """What a person reads of it."""
        return view_words(self.view.value, self.probability, is_still=self.is_still, is_standard=self.is_standard)


def view_words(view: str, probability: float, *, is_still: bool, is_standard: bool | None) -> str:
    """Return what a person reads of a predicted view.

    >>> view_words("A4C", 0.41, is_still=False, is_standard=False)
    'no standard view (A4C 0.41)'
    """
    named = f"{view} {probability:.2f}{' (one frame)' if is_still else ''}"
    return f"no standard view ({named})" if is_standard is False else named


@dataclass(frozen=True)
class DefectPrediction:
    """The defect of a cine or patient.

    ``probabilities`` sum to 1. ``angles_deg`` : the angle between embedding and each class centre, 0..180.
    ``frame_indices`` : 0-based frames looked at. ``crops`` : the (frame_index, box) regions that were embedded.
    ``is_whole_frame`` : no septum was found, so whole frames were embedded instead of crops.
    ``abstained`` : why this is no answer to rely on, as a phrase; None: it is one.
    """

    defect: Defect
    probabilities: Mapping[Defect, float]
    angles_deg: Mapping[Defect, float]
    frame_indices: tuple[int, ...]
    crops: tuple[SeptalBox, ...] = ()
    is_whole_frame: bool = False
    abstained: str | None = None

    def __post_init__(self) -> None:
        _require_distribution("Defect", self.probabilities)  # type: ignore[arg-type]
        _require_frame_indices("Defect", self.frame_indices)
        if self.defect not in self.probabilities or set(self.angles_deg) != set(self.probabilities):
            msg = f"Defect prediction {self.defect.value}: probabilities and angles must name the same classes."
            raise ValueError(msg)
        angles = list(self.angles_deg.values())
        if not all(0.0 <= angle <= _HALF_TURN_DEG for angle in angles):
            msg = f"Defect prediction {self.defect.value} has the angles {angles}; 0 to 180 degrees are accepted."
            raise ValueError(msg)

    @property
    def probability(self) -> float:
        """The probability of the predicted defect."""
        return self.probabilities[self.defect]
