# SPDX-License-Identifier: Apache-2.0
"""A study folder whose cines are in a hospital's archive: each is fetched when it is looked at, by its SOP instance.

    <root>/pacs/<SOP Instance UID>.dcm   what was fetched; may be deleted, and is when there is too much of it
    <root>/annotations/                  as in any study folder

A folder made here belongs to its owner only. A training reads it like any other: an annotated cine has been fetched.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from echo_plugin.annotations import Annotation, require_image_id
from echo_plugin.cine import Cine, is_uid
from echo_plugin.durable import fsync_directory, make_directory
from echo_plugin.errors import UnknownImageError, UnreadableCineError
from echo_plugin.host.pacs import Pacs, PacsError, first_value
from echo_plugin.io.cine_file import read_cine
from echo_plugin.io.study_folder import CineEntry, StudyFolder

logger = logging.getLogger(__name__)

RELIST_AFTER_S = 60.0
"""The archive is asked for its instances at most this often."""
KEPT_BYTES = 8 << 30
"""The cines longest unused go when all that nobody annotated exceed this; a training reads the annotated ones."""
IN_USE_S = 600.0
"""A cine that was read within this time stays: somebody may still be reading its frames."""


class PacsFolder(StudyFolder):
    """The ultrasound instances of ``pacs``, with what was fetched and annotated below ``root``."""

    def __init__(self, root: Path, pacs: Pacs, *, kept_bytes: int = KEPT_BYTES) -> None:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)  # one that is there keeps the rights it was given
        self.pacs = pacs
        self.kept_bytes = kept_bytes
        self._listed: dict[str, dict[str, Any]] = {}
        self._listed_at = -RELIST_AFTER_S
        self._fetching: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        super().__init__(root)

    def refresh(self, progress: Callable[[int, int], None] | None = None) -> int:
        """Look for files, and ask the archive for its instances; one that does not answer leaves the list as it is."""
        if time.monotonic() - self._listed_at > RELIST_AFTER_S:
            self._listed_at = time.monotonic()
            try:
                items = self.pacs.instances()
                before = self._listed.keys()
                self._listed = {uid: item for item in items if is_uid(uid := first_value(item, "00080018"))}
                self.generation += before != self._listed.keys()
            except PacsError as exc:
                logger.warning("Cines of the archive are those known before: %s", exc)
        return super().refresh(progress)

    def entries(self) -> list[CineEntry]:
        """Return every image file that is here, then what the archive lists besides; the path of that is no file."""
        here = super().entries()
        known = {entry.image_id for entry in here if entry.error is None}
        return [*here, *(self._listed_entry(uid, item) for uid, item in self._listed.items() if uid not in known)]

    def image_ids(self) -> list[str]:
        """Return the ids of the cines that were fetched, then of those in the archive."""
        return list(dict.fromkeys([*super().image_ids(), *self._listed]))

    def entry(self, image_id: str) -> CineEntry:
        """Return what is known of one image, without fetching it.

        Raises
        ------
        UnknownImageError
            If the id is malformed, or neither here nor in the archive.
        """
        item = self._listed.get(require_image_id(image_id))
        try:
            return super().entry(image_id)
        except UnknownImageError:
            if item is None:
                raise
        return self._listed_entry(image_id, item)

    def _listed_entry(self, image_id: str, item: dict[str, Any]) -> CineEntry:
        return CineEntry(
            image_id=image_id,
            path=self._path(image_id),
            patient_id=first_value(item, "00100020") or None,
            study_instance_uid=first_value(item, "0020000D") or None,
            series_instance_uid=first_value(item, "0020000E") or None,
            frames=_whole(item, "00280008"),
            height=_whole(item, "00280010"),
            width=_whole(item, "00280011"),
        )

    def read_cine(self, image_id: str) -> Cine:
        """Return a cine, fetched if it is not here yet.

        Raises
        ------
        UnknownImageError
            If it is neither here nor in the archive.
        UnreadableCineError
            If it cannot be read.
        PacsError
            If the archive does not send it.
        """
        self._fetch(image_id)
        return super().read_cine(image_id)

    def save_annotation(self, annotation: Annotation, **how: Any) -> Annotation:
        """Store an annotation beside its cine, which is fetched first: a training needs both (see ``StudyFolder``)."""
        self._fetch(annotation.image_id)
        return super().save_annotation(annotation, **how)

    def add_image(self, source: bytes | Path, name: str, **_limits: int) -> str:
        """Refuse: new images belong into the archive."""
        msg = f"File {name!r} is not taken in here; store it in the archive {self.pacs.host}."
        raise UnreadableCineError(msg)

    def remove_image(self, image_id: str) -> None:
        """Refuse: what the archive holds is not ours to remove."""
        msg = f"Image {image_id} is in the archive {self.pacs.host}, which keeps it."
        raise UnreadableCineError(msg)

    def _path(self, image_id: str) -> Path:
        return self.root / "pacs" / f"{image_id}.dcm"

    def _fetch(self, image_id: str) -> None:
        """Bring a cine here in one step, once, whoever asks at the same time."""
        with self._fetching[require_image_id(image_id)]:
            entry = self.entry(image_id)
            if entry.path.is_file():
                _mark_used(entry.path)
                return
            study, series = entry.study_instance_uid or "", entry.series_instance_uid or ""
            if not (is_uid(study) and is_uid(series) and is_uid(image_id)):
                msg = f"Image {image_id} cannot be fetched: the archive does not say its study and series."
                raise UnreadableCineError(msg)
            target = self._path(image_id)
            make_directory(target.parent)
            with tempfile.TemporaryDirectory(dir=self.root, prefix=".fetching-") as folder:
                received = self.pacs.fetch(study, series, image_id, Path(folder))
                cine = read_cine(received)
                if cine.sop_instance_uid != image_id:
                    msg = f"The archive {self.pacs.host} sent another instance than {image_id}."
                    raise PacsError(msg)
                shutil.move(received, target)
            fsync_directory(target.parent)
            self._drop_unused(target)
            super().refresh()

    def _drop_unused(self, newest: Path) -> None:
        """Delete fetched cines, the longest unused first, until what nobody annotated fits into ``kept_bytes``.

        Only what the archive lists goes: it can be fetched again.
        """
        droppable = self._listed.keys() - self._store.annotated_ids()
        kept = []
        for path in newest.parent.glob("*.dcm"):
            if path.stem in droppable:
                with suppress(FileNotFoundError):  # another thread has dropped it
                    kept.append((path.stat(), path))
        total = sum(status.st_size for status, _ in kept)
        for status, path in sorted(kept, key=lambda pair: pair[0].st_atime_ns):
            if total <= self.kept_bytes or time.time() - status.st_atime < IN_USE_S:
                break
            if self._drop(path):
                total -= status.st_size

    def _drop(self, path: Path) -> bool:
        """Delete a fetched cine unless somebody has begun to read or annotate it; return whether it is gone."""
        fetching = self._fetching[path.stem]
        if not fetching.acquire(blocking=False):
            return False
        try:
            is_unused = time.time() - path.stat().st_atime >= IN_USE_S
            if is_unused:
                path.unlink()
        except FileNotFoundError:
            return True
        finally:
            fetching.release()
        return is_unused


def _mark_used(path: Path) -> None:
    """Note that a file was used in its time of access, which a file system need not keep by itself."""
    with suppress(OSError):  # it may belong to somebody else
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))


def _whole(item: dict[str, Any], tag: str) -> int | None:
    text = first_value(item, tag)
    return int(text) if text.isdecimal() and int(text) > 0 else (1 if tag == "00280008" else None)
