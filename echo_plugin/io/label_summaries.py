# SPDX-License-Identifier: Apache-2.0
"""What the annotations of a study folder say, in short and in memory: thousands of cines without opening a file twice.

An annotation is read when its file is new or has changed. Every save replaces a file, which changes the directory's
own time; while that stands still nothing is looked at. A file that is edited in place is seen at the next full look.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from echo_plugin.anatomy import Defect, Septum, View
from echo_plugin.annotations import Annotation
from echo_plugin.errors import AnnotationError, UnknownImageError
from echo_plugin.io.study_folder import StudyFolder
from echo_plugin.io.study_index import ANNOTATIONS_DIRECTORY

logger = logging.getLogger(__name__)

FULL_LOOK_AFTER_S = 60.0
_CLOCK_STEP_NS = 50_000_000
"""Two saves within one step of the file system's clock give the directory one time; it is trusted once older."""

Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class LabelSummary:
    """An annotation without its boxes: ``frames`` annotated, ``septa`` that boxes name; the rest as in Annotation."""

    image_id: str
    revision: int
    author: str | None
    saved_at: datetime | None
    frames: int
    septa: frozenset[Septum]
    view: View | None
    defect: Defect | None
    is_unusable: bool

    @property
    def is_empty(self) -> bool:
        """Whether it says nothing, so that the cine still waits for a label."""
        return not (self.frames or self.view or self.defect or self.is_unusable)

    def names_any(self, labels: Sequence[str]) -> bool:
        """Whether it names one of these septa, views or defects."""
        said = {what.value for what in (*self.septa, self.view, self.defect) if what is not None}
        return any(label in said for label in map(str, labels))


def summarise(annotation: Annotation) -> LabelSummary:
    """Return the summary of an annotation."""
    return LabelSummary(
        annotation.image_id,
        annotation.revision,
        annotation.author,
        annotation.saved_at,
        len(annotation.annotated_frames),
        frozenset(box.septum for box in annotation.boxes),
        annotation.view,
        annotation.defect,
        annotation.is_unusable,
    )


class LabelSummaries:
    """The labels of a study folder; safe for several threads."""

    def __init__(self, studies: StudyFolder) -> None:
        self._studies = studies
        self._directory = str(studies.root / ANNOTATIONS_DIRECTORY)
        self._lock = threading.Lock()
        self._stamps: dict[str, Stamp] = {}
        self._summaries: dict[str, LabelSummary] = {}
        self._directory_time = -1
        self._looked_at = -FULL_LOOK_AFTER_S
        self._generation = 0

    def current(self) -> Mapping[str, LabelSummary]:
        """Return the summaries that say something, by image id. An annotation that cannot be read counts as none."""
        return self.with_generation()[1]

    def with_generation(self) -> tuple[int, Mapping[str, LabelSummary]]:
        """Return them with a number that is another one whenever they are."""
        with self._lock:
            if self._may_have_changed():
                self._look()
            return self._generation, self._summaries

    def _may_have_changed(self) -> bool:
        try:
            directory_time = os.stat(self._directory).st_mtime_ns  # noqa: PTH116 - a string, as scandir takes it
        except FileNotFoundError:
            directory_time = 0
        changed = directory_time != self._directory_time or time.monotonic() - self._looked_at > FULL_LOOK_AFTER_S
        is_settled = abs(time.time_ns() - directory_time) > _CLOCK_STEP_NS
        self._directory_time = directory_time if is_settled else -1
        return changed

    def _look(self) -> None:
        self._looked_at = time.monotonic()
        stamps = self._read_stamps()
        changed = [image_id for image_id, stamp in stamps.items() if self._stamps.get(image_id) != stamp]
        vanished = self._stamps.keys() - stamps.keys()
        if not changed and not vanished:
            return
        summaries = {image_id: s for image_id, s in self._summaries.items() if image_id not in vanished}
        for image_id in changed:
            summary = self._read(image_id)
            if summary is None or summary.is_empty:
                summaries.pop(image_id, None)
            else:
                summaries[image_id] = summary
        self._stamps, self._summaries = stamps, summaries
        self._generation += 1

    def _read_stamps(self) -> dict[str, Stamp]:
        stamps: dict[str, Stamp] = {}
        try:
            with os.scandir(self._directory) as entries:
                for entry in entries:
                    if entry.name.endswith(".json") and not entry.name.startswith("."):
                        with contextlib.suppress(FileNotFoundError):  # replaced or withdrawn this very moment
                            status = entry.stat()
                            stamps[entry.name[:-5]] = (status.st_mtime_ns, status.st_size, status.st_ino)
        except FileNotFoundError:
            return stamps
        return stamps

    def _read(self, image_id: str) -> LabelSummary | None:
        try:
            annotation = self._studies.annotation(image_id)
        except (AnnotationError, UnknownImageError) as exc:
            logger.warning("Counted as no label: %s", exc)
            return None
        return None if annotation is None else summarise(annotation)
