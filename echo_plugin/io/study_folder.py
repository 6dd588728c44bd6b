# SPDX-License-Identifier: Apache-2.0
"""A folder of cines and what people said about them.

    <root>/**                    image files, nested as one likes (``study_scan`` says which are looked at)
    <root>/annotations/          one JSON file for each cine, with history (``annotation_store``)
    <root>/patients.csv          optional: patient ids of files that bring none (``patients_file``)
    <root>/.echo_index.sqlite    an index that can be deleted at any time (``study_index``)
    <root>/.removed/             image files taken out by ``remove_image``

The image id is the SOP Instance UID of a DICOM file, else the escaped path in the folder. Safe for several threads and
programs at a time.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from echo_plugin.annotations import Annotation, require_image_id
from echo_plugin.cine import Cine
from echo_plugin.errors import AnnotationError, UnknownImageError, UnreadableCineError
from echo_plugin.io.annotation_store import AnnotationStore
from echo_plugin.io.cine_file import read_cine
from echo_plugin.io.image_upload import LARGEST_UPLOAD_BYTES, move_out, place_upload
from echo_plugin.io.patients_file import PATIENTS_FILE, read_patients
from echo_plugin.io.study_index import CineEntry, IndexedFile, cine_entry, open_index
from echo_plugin.io.study_scan import ANNOTATIONS_DIRECTORY, describe_file, find_image_files

__all__ = ["CineEntry", "StudyFolder"]

logger = logging.getLogger(__name__)

_FILES_AT_ONCE = 200
"""As many are read between two commits, so that a first look at a large folder can be interrupted."""


class StudyFolder:
    """The study folder at ``root``, an existing directory; looks through it once when made.

    ``index_path`` : where the index is kept; None: in the folder, or in the user's cache if that is read-only.
    """

    def __init__(self, root: Path, *, index_path: Path | None = None) -> None:
        if not root.is_dir():
            msg = f"Study folder {root.name!r} is no directory; a directory of cines is accepted."
            raise NotADirectoryError(msg)
        self.root = root.absolute()
        self._index = open_index(self.root, index_path)
        self._store = AnnotationStore(self.root / ANNOTATIONS_DIRECTORY)
        self._refreshing = threading.Lock()
        self._patients: dict[str, str] = {}
        self._found: dict[bytes, tuple[int, int]] = {}
        self.generation = 0  # another number after every refresh that found other files or patients
        self.refresh()

    def refresh(self, progress: Callable[[int, int], None] | None = None) -> int:
        """Look for new, changed and vanished files; return how many had to be read.

        ``progress`` is called with (files read, files to read).

        Raises
        ------
        AnnotationError
            If patients.csv is malformed.
        """
        with self._refreshing:
            patients = read_patients(self.root / PATIENTS_FILE)
            found, known = find_image_files(self.root), self._index.stamps()
            self._index.remove([path for path in known if path not in found])
            changed = sorted(path for path, stamp in found.items() if known.get(path) != stamp)
            for start in range(0, len(changed), _FILES_AT_ONCE):
                paths = changed[start : start + _FILES_AT_ONCE]
                self._index.put([describe_file(self.root, path, found[path]) for path in paths])
                if progress:
                    progress(start + len(paths), len(changed))
            self.generation += (found, patients) != (self._found, self._patients)
            self._found, self._patients = found, patients
        if changed:
            problems = self.problems()
            logger.info("Study folder: %d files read, %d of %d not used", len(changed), len(problems), len(found))
        return len(changed)

    def entries(self) -> list[CineEntry]:
        """Return every image file in the order of paths, with those that are not used and why."""
        first: dict[str, IndexedFile] = {}
        return [self._entry(file, first.setdefault(file.image_id, file)) for file in self._index.files()]

    def problems(self) -> list[CineEntry]:
        """Return the files that are not used: unreadable, or one more copy of a SOP instance."""
        return [entry for entry in self.entries() if entry.error]

    def image_ids(self) -> list[str]:
        """Return the ids of the readable cines in the order of their paths."""
        return self._index.image_ids()

    def entry(self, image_id: str) -> CineEntry:
        """Return what is known of one image; of several copies, the first path.

        Raises
        ------
        UnknownImageError
            If the id is malformed or not in the folder.
        """
        files = self._index.files_of(require_image_id(image_id))
        if not files:
            msg = f"Image {image_id} is not in the study folder; refresh it if the file is new."
            raise UnknownImageError(msg)
        return self._entry(files[0], files[0])

    def read_cine(self, image_id: str) -> Cine:
        """Return the cine of an image; frames are decoded when asked for.

        Raises
        ------
        UnknownImageError
            If the id is malformed or not in the folder.
        UnreadableCineError
            If the file cannot be read, or has become another SOP instance.
        """
        path = self.entry(image_id).path
        cine = read_cine(path, image_id=image_id)
        if cine.sop_instance_uid not in (None, image_id):
            msg = (
                f"File {path.name!r} holds another SOP instance than image {image_id} by now; refresh the study folder."
            )
            raise UnreadableCineError(msg)
        return cine

    def annotation(self, image_id: str) -> Annotation | None:
        """Return the current annotation; None: there is none. Raises AnnotationError if its file cannot be read."""
        return self._store.current(image_id)

    def history(self, image_id: str) -> list[Annotation]:
        """Return every revision of an annotation, the current one last."""
        return self._store.history(image_id)

    def uploads(self, image_id: str) -> dict[int, Path]:
        """Return the files that viewers sent, byte by byte, by the revision they became."""
        return self._store.uploads(image_id)

    def annotated_ids(self) -> list[str]:
        """Return the ids of the readable cines that have an annotation, in the order of their paths."""
        annotated = self._store.annotated_ids()
        return [image_id for image_id in self.image_ids() if image_id in annotated]

    def save_annotation(
        self,
        annotation: Annotation,
        *,
        author: str | None,
        based_on_revision: int | None = None,
        upload: bytes | None = None,
        upload_suffix: str = ".json",
        now: datetime | None = None,
    ) -> Annotation:
        """Store an annotation of a cine in the folder; return it as stored (see ``AnnotationStore.save``).

        Raises
        ------
        UnknownImageError
            If the image is not in the folder.
        AnnotationConflictError
            If a revision other than ``based_on_revision`` is current.
        AnnotationError
            If it names a frame that the cine does not have, has a box outside its picture, or cannot be stored.
        """
        _require_fits(annotation, self.entry(annotation.image_id))
        return self._store.save(
            annotation,
            author=author,
            based_on_revision=based_on_revision,
            upload=upload,
            upload_suffix=upload_suffix,
            now=now,
        )

    def remove_annotation(self, image_id: str) -> None:
        """Make a cine unannotated; its annotation stays in history."""
        self._store.remove(image_id)

    def add_image(self, source: bytes | Path, name: str, *, max_bytes: int = LARGEST_UPLOAD_BYTES) -> str:
        """Put an image file into the folder under ``name`` and return its id; sending the same bytes again is harmless.

        Raises
        ------
        UnreadableCineError
            If the name is none of an image file, the bytes are too many or no cine, or another image has the name or
            the SOP Instance UID; nothing is left behind then.
        """
        with self._changing(f"File {name!r} cannot be stored"):
            path = place_upload(self.root, source, name, max_bytes=max_bytes, path_of=self._path_of)
        self.refresh()
        relative = os.fsencode(path.relative_to(self.root))
        return next(file.image_id for file in self._index.files() if file.path == relative)

    def remove_image(self, image_id: str) -> None:
        """Take an image out of the folder: its file moves to ``.removed``, its annotation to history.

        Raises
        ------
        UnknownImageError
            If it is not in the folder.
        """
        entry = self.entry(image_id)
        self._store.remove(image_id)
        with self._changing(f"Image {image_id} cannot be removed"):
            move_out(self.root, entry.path, image_id)
        self.refresh()

    @contextmanager
    def _changing(self, failure: str) -> Iterator[None]:
        """Hold the lock of the folder; turn what the system refuses into a sentence."""
        try:
            with self._store.locked():
                yield
        except OSError as exc:
            msg = f"{failure} in the study folder ({exc.strerror or exc}); one that can be written to is needed."
            raise UnreadableCineError(msg) from exc

    def _path_of(self, sop_instance_uid: str) -> Path | None:
        files = self._index.files_of(sop_instance_uid)
        return self.root / os.fsdecode(files[0].path) if files else None

    def _entry(self, file: IndexedFile, first: IndexedFile) -> CineEntry:
        return cine_entry(self.root, file, first, self._patients.get(file.image_id))


def _require_fits(annotation: Annotation, entry: CineEntry) -> None:
    """Refuse an annotation that cannot be one of this image."""
    if entry.frames is None or entry.height is None or entry.width is None:
        msg = f"Image {annotation.image_id} cannot be annotated: {entry.error}"
        raise AnnotationError(msg)
    if annotation.annotated_frames and annotation.annotated_frames[-1] >= entry.frames:
        msg = (
            f"Annotation of {annotation.image_id} names frame index {annotation.annotated_frames[-1]} (0-based);"
            f" the cine has 0 to {entry.frames - 1}."
        )
        raise AnnotationError(msg)
    for box in annotation.boxes:
        if box.x2 <= 0 or box.y2 <= 0 or box.x1 >= entry.width or box.y1 >= entry.height:
            msg = (
                f"Annotation of {annotation.image_id} has a box from ({box.x1:.1f}, {box.y1:.1f}) to ({box.x2:.1f},"
                f" {box.y2:.1f}) px, outside the picture of {entry.width} x {entry.height} px."
            )
            raise AnnotationError(msg)
