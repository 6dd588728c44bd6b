# SPDX-License-Identifier: Apache-2.0
"""A folder of cines and what people said about them.

    <root>/**                    image files, nested as one likes (``study_index`` says which are looked at)
    <root>/annotations/          one JSON file for each cine, with history (``annotation_store``)
    <root>/annotations/reports/  structured reports that came by DICOMweb
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
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path, PurePosixPath

from echo_plugin.annotations import Annotation, require_image_id
from echo_plugin.cine import Cine, escape_path
from echo_plugin.durable import file_stamp, fsync_directory, make_directory, remove_abandoned, replace_atomically
from echo_plugin.errors import AnnotationError, UnknownImageError, UnreadableCineError
from echo_plugin.io.annotation_store import AnnotationStore
from echo_plugin.io.cine_file import read_cine
from echo_plugin.io.patients_file import PATIENTS_FILE, read_patients
from echo_plugin.io.study_index import (
    ANNOTATIONS_DIRECTORY,
    CineEntry,
    DicomInstance,
    IndexedFile,
    Stamp,
    describe_file,
    find_files,
    is_image_name,
    is_report,
    open_index,
)

__all__ = ["CineEntry", "StudyFolder"]

logger = logging.getLogger(__name__)

LARGEST_UPLOAD_BYTES = 2 << 30
RESCAN_AFTER_S = 2.0
"""DICOM instances are listed as they were so long ago at most."""
_FILES_AT_ONCE = 200
"""As many are read between two commits, so that a first look at a large folder can be interrupted."""
_LONGEST_NAME = 120
_FORBIDDEN = frozenset('<>:"/\\|?*')
_CHUNK_BYTES = 1 << 20


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
        self._found: dict[bytes, Stamp] = {}
        self._looked_at = 0.0
        self._instances: Mapping[str, DicomInstance] | None = None
        self.generation = 0  # another number after every refresh that found other image files or patients
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
            self.generation += patients != self._patients
            self._patients = patients
            return self._look(progress)

    def _look(self, progress: Callable[[int, int], None] | None = None) -> int:
        """Look for files; for one who holds the lock of refreshing."""
        found, known = find_files(self.root), self._index.stamps()
        if gone := [path for path in known if path not in found]:
            self._index.remove(gone)
        changed = sorted(path for path, stamp in found.items() if known.get(path) != stamp)
        for start in range(0, len(changed), _FILES_AT_ONCE):
            paths = changed[start : start + _FILES_AT_ONCE]
            self._index.put([describe_file(self.root, path, found[path]) for path in paths])
            if progress:
                progress(start + len(paths), len(changed))
        if found != self._found:
            self._instances = None
            self.generation += _images(found) != _images(self._found)
        self._found, self._looked_at = found, time.monotonic()
        if changed:
            problems = self.problems()
            logger.info("Study folder: %d files read, %d of %d not used", len(changed), len(problems), len(found))
        return len(changed)

    def instances(self) -> Mapping[str, DicomInstance]:
        """Return the DICOM instances, reports too, by SOP Instance UID; files of the last seconds may be missing.

        In the order of paths; of several files with one UID the first counts.
        """
        with self._refreshing:
            if time.monotonic() - self._looked_at > RESCAN_AFTER_S:
                self._look()
            if self._instances is None:
                self._instances = self._index.instances(self.root)
            return self._instances

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
        """Return the entry of ``file``; ``first`` is the file that is used for its image id."""
        path, error = self.root / os.fsdecode(file.path), file.error
        if file is not first:
            used = os.fsdecode(first.path)
            error = f"File {path.name!r} holds the SOP instance {file.image_id} once more; {used!r} is used."
        return CineEntry(
            image_id=file.image_id,
            path=path,
            patient_id=file.patient_id or self._patients.get(file.image_id),
            study_instance_uid=file.study_instance_uid,
            series_instance_uid=file.series_instance_uid,
            frames=file.frames,
            height=file.height,
            width=file.width,
            frame_time_ms=file.frame_time_ms,
            error=error,
            header_patient_id=file.patient_id,
        )


def _images(found: Mapping[bytes, Stamp]) -> dict[bytes, Stamp]:
    return {path: stamp for path, stamp in found.items() if not is_report(path)}


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


def read_study_cine(path: Path) -> Cine:
    """Return the cine of a file as its study folder, the nearest one above it, knows it; of a file in none as it is.

    Raises
    ------
    UnreadableCineError
        If the file cannot be read as a cine.
    AnnotationError
        If the patients.csv of the study folder is malformed.
    """
    cine = read_cine(path)
    place = path.parent.resolve() / path.name  # a link to a file counts as a file of the folder that the link is in
    root = next((folder for folder in place.parents if _is_study_folder(folder)), None)
    if root is None:
        return cine
    image_id = cine.sop_instance_uid or escape_path(PurePosixPath(place.relative_to(root).as_posix()))
    table = root / PATIENTS_FILE
    return replace(
        cine, image_id=image_id, patient_id=cine.patient_id or _patients(table, file_stamp(table)).get(image_id)
    )


def _is_study_folder(folder: Path) -> bool:
    return (folder / ANNOTATIONS_DIRECTORY).is_dir() or (folder / PATIENTS_FILE).is_file()


@lru_cache(maxsize=4)
def _patients(table: Path, _stamp: tuple[int, int] | None) -> dict[str, str]:
    """Return the patients of a table as it was at that stamp: once for all the cines of a folder."""
    return read_patients(table)


def require_upload_name(name: str) -> str:
    """Return ``name`` if it is that of an image file, without any path, on every system.

    Raises
    ------
    UnreadableCineError
        If it is not.
    """
    is_plain = name.isprintable() and not _FORBIDDEN & set(name) and len(name.encode(errors="replace")) <= _LONGEST_NAME
    if not name or not is_plain or not is_image_name(name) or name.endswith((".", " ")):
        msg = (
            f"File name {name[:80]!r} is not accepted; a plain name of up to {_LONGEST_NAME} bytes with the suffix of a"
            " DICOM, video, picture or volume file is."
        )
        raise UnreadableCineError(msg)
    return name


def place_upload(
    root: Path, source: bytes | Path, name: str, *, max_bytes: int, path_of: Callable[[str], Path | None]
) -> Path:
    """Write a cine to ``root``/``name`` in one step and return its path; for one who holds the folder's lock.

    ``path_of`` : the file in the folder that has a SOP Instance UID, or None. Where the same bytes are there already,
    their path is returned.

    Raises
    ------
    UnreadableCineError
        If the name, size or content is not accepted, or another file has the name or UID; nothing is left behind.
    """
    target = root / require_upload_name(name)
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    if not 0 < size <= max_bytes:
        msg = f"File {name!r} has {size} bytes; 1 to {max_bytes} are accepted."
        raise UnreadableCineError(msg)
    remove_abandoned(root, is_image_name)  # whoever holds the lock is the only one to upload

    def receive(temporary: Path) -> None:
        _copy(source, temporary, max_bytes)
        _require_new(temporary, target, path_of)

    try:
        replace_atomically(target, receive)
    except _ThereAlreadyError as exc:
        return exc.path
    return target


class _ThereAlreadyError(Exception):
    """Raised where the same bytes are in the folder already, at ``path``."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.path = path


def move_out(root: Path, path: Path, image_id: str) -> Path:
    """Move an image file (or the link to one) to ``.removed``/``image_id`` and return where it is now."""
    directory = _place_of_removed(root, image_id)
    make_directory(directory)
    target, n = directory / path.name, 0
    while os.path.lexists(target):
        n += 1
        target = directory / f"{n}.{path.name}"
    path.replace(target)
    fsync_directory(directory)
    fsync_directory(path.parent)
    return target


def is_moved_out(root: Path, image_id: str) -> bool:
    """Whether `move_out` has taken an image out of a study folder."""
    return _place_of_removed(root, image_id).is_dir()


def _place_of_removed(root: Path, image_id: str) -> Path:
    return root / ".removed" / image_id


def _copy(source: bytes | Path, temporary: Path, max_bytes: int) -> None:
    """Write ``source`` to a new file."""
    with temporary.open("xb") as file:
        if isinstance(source, bytes):
            file.write(source)
        else:
            with source.open("rb") as original:
                while chunk := original.read(_CHUNK_BYTES):
                    file.write(chunk)
                    if file.tell() > max_bytes:
                        msg = f"File {source.name!r} has more than {max_bytes} bytes."
                        raise UnreadableCineError(msg)


def _require_new(temporary: Path, target: Path, path_of: Callable[[str], Path | None]) -> None:
    """Refuse an upload that is no cine, or whose name or UID another file has."""
    try:
        cine = read_cine(temporary)
        cine.read_frames([0])
    except UnreadableCineError as exc:
        msg = str(exc).replace(temporary.name, target.name)
        raise UnreadableCineError(msg) from exc
    other = path_of(cine.sop_instance_uid) if cine.sop_instance_uid else None
    for there in (other, target):
        if there is None or not os.path.lexists(there):
            continue
        if _are_equal(there, temporary):
            raise _ThereAlreadyError(there)
        what = "the same SOP Instance UID" if there is other else "this name"
        msg = f"File {target.name!r}: another image of the study folder has {what}; nothing is overwritten."
        raise UnreadableCineError(msg)


def _are_equal(one: Path, other: Path) -> bool:
    if not one.is_file() or one.stat().st_size != other.stat().st_size:
        return False
    with one.open("rb") as a, other.open("rb") as b:
        while chunk := a.read(_CHUNK_BYTES):
            if chunk != b.read(_CHUNK_BYTES):
                return False
    return True
