# SPDX-License-Identifier: Apache-2.0
"""The annotations of a study folder: one current file for each cine, every earlier revision, every upload.

    annotations/<image_id>.json                          the current revision
    annotations/history/<image_id>/<revision>.json       each earlier one, as it was
    annotations/history/<image_id>/<revision>.upload.*   what the viewer sent for that revision, byte by byte

Nothing is ever deleted or overwritten: a file that a person edited or put back by hand is kept as <revision>.<n>.json,
one that cannot be read as unreadable.<n>.json. A save first copies the current file to history, then replaces it in one
step; whoever is killed in between leaves the old revision current. Writers of all threads and programs take turns by
the lock of ``annotations/.lock``; readers need none.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from echo_plugin.annotations import Annotation, require_image_id
from echo_plugin.errors import AnnotationConflictError, AnnotationError
from echo_plugin.io.annotation_file import annotation_from_json, annotation_to_json
from echo_plugin.io.atomic_file import make_directory, remove_abandoned, write_atomically

logger = logging.getLogger(__name__)

LOCK_TIMEOUT_S = 60.0
_LOCK_POLL_S = 0.005
_ARCHIVED = re.compile(r"(\d+)(?:\.(\d+))?\.json")
_UPLOADED = re.compile(r"(\d+)\.upload(?:\.[a-z0-9]+)+")
_UPLOAD_SUFFIX = re.compile(r"(?:\.[a-z0-9]{1,10}){1,3}")


class AnnotationStore:
    """The directory ``annotations`` of a study folder, made at the first save."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._is_tidy = False

    def annotated_ids(self) -> set[str]:
        """Return the image ids that have a current annotation, whether it can be read or not."""
        try:
            names = [path.name for path in self._directory.iterdir()]
        except FileNotFoundError:
            return set()
        return {name.removesuffix(".json") for name in names if name.endswith(".json") and not name.startswith(".")}

    def current(self, image_id: str) -> Annotation | None:
        """Return the current annotation; None: there is none.

        Raises
        ------
        AnnotationError
            If its file cannot be read; the message names it.
        """
        return _read(self._path(image_id), image_id)

    def history(self, image_id: str) -> list[Annotation]:
        """Return every revision of an annotation, the current one last; empty: never annotated.

        Raises
        ------
        AnnotationError
            If one of the files cannot be read; the message names it.
        """
        archived = [_read(path, image_id) for path in self._archived(image_id)]
        current = self.current(image_id)  # also in history if a writer was killed between copy and replacement
        return [revision for revision in archived if revision and revision != current] + ([current] if current else [])

    def uploads(self, image_id: str) -> dict[int, Path]:
        """Return the files that viewers sent, by the revision they became."""
        directory = self._history(image_id)
        paths = sorted(directory.iterdir()) if directory.is_dir() else []
        return {int(match[1]): path for path in paths if (match := _UPLOADED.fullmatch(path.name))}

    def save(
        self,
        annotation: Annotation,
        *,
        author: str | None,
        based_on_revision: int | None = None,
        upload: bytes | None = None,
        upload_suffix: str = ".json",
        now: datetime | None = None,
    ) -> Annotation:
        """Make ``annotation`` the current one and return it with its author, time and new revision.

        ``based_on_revision`` : the revision that was changed, 0 for none; None: whatever is there.
        ``now`` : with time zone; None takes the clock.

        Raises
        ------
        AnnotationConflictError
            If another revision than the one it is based on is current; nothing is stored.
        AnnotationError
            If it cannot be stored; what was there before is there still.
        """
        image_id = annotation.image_id
        if not _UPLOAD_SUFFIX.fullmatch(upload_suffix):
            msg = f"Upload suffix {upload_suffix!r} is malformed; one such as '.json' or '.nii.gz' is accepted."
            raise AnnotationError(msg)
        with self._writing(image_id):
            current = self._current_or_set_aside(image_id)
            self._require_based_on(image_id, current, based_on_revision)
            revision = 1 + max(self._last_in_history(image_id), current.revision if current else 0)
            saved = replace(annotation, author=author, saved_at=now or datetime.now(UTC), revision=revision)
            content = annotation_to_json(saved).encode()
            if upload is not None:
                make_directory(self._history(image_id))
                write_atomically(self._history(image_id) / f"{revision}.upload{upload_suffix}", upload)
            if current is not None:
                self._archive(image_id, str(current.revision))
            write_atomically(self._path(image_id), content)
        return saved

    def remove(self, image_id: str) -> None:
        """Move the current annotation to history; nothing happens if there is none.

        Raises
        ------
        AnnotationError
            If it cannot be moved.
        """
        with self._writing(image_id):
            current = self._current_or_set_aside(image_id)
            if current is not None:
                self._archive(image_id, str(current.revision))
                self._path(image_id).unlink()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of all who write to this study folder.

        Raises
        ------
        OSError
            If the directory cannot be made or written to.
        """
        make_directory(self._directory)
        lock = FileLock(self._directory / ".lock", timeout=LOCK_TIMEOUT_S, poll_interval=_LOCK_POLL_S)
        with (
            lock
        ):  # a lock object of its own for each turn: one that is shared lets the threads of a program in together
            yield

    @contextmanager
    def _writing(self, image_id: str) -> Iterator[None]:
        """Hold the lock; turn what the system refuses into an AnnotationError."""
        require_image_id(image_id)
        try:
            with self.locked():
                if not self._is_tidy:
                    remove_abandoned(self._directory)
                    self._is_tidy = True
                yield
        except Timeout as exc:
            msg = f"Annotation of {image_id} cannot be saved: another program has held the lock for {LOCK_TIMEOUT_S} s."
            raise AnnotationError(msg) from exc
        except OSError as exc:
            msg = (
                f"Annotation of {image_id} cannot be saved in the study folder ({exc.strerror or exc});"
                " the earlier one is untouched. A folder that can be written to, with space left, is needed."
            )
            raise AnnotationError(msg) from exc

    def _path(self, image_id: str) -> Path:
        return self._directory / f"{require_image_id(image_id)}.json"

    def _history(self, image_id: str) -> Path:
        return self._directory / "history" / require_image_id(image_id)

    def _archived(self, image_id: str) -> list[Path]:
        """Return the files of earlier revisions, ascending."""
        directory = self._history(image_id)
        paths = directory.iterdir() if directory.is_dir() else ()
        found = [(int(m[1]), int(m[2] or 0), path) for path in paths if (m := _ARCHIVED.fullmatch(path.name))]
        return [path for _, _, path in sorted(found)]

    def _last_in_history(self, image_id: str) -> int:
        archived = [int(path.name.split(".")[0]) for path in self._archived(image_id)]
        return max([*archived, *self.uploads(image_id)], default=0)

    def _archive(self, image_id: str, stem: str) -> None:
        """Copy the current file to history as ``stem``.json, beside any other file of that name."""
        content = self._path(image_id).read_bytes()
        directory = self._history(image_id)
        make_directory(directory)
        remove_abandoned(directory)
        path, n = directory / f"{stem}.json", 0
        while path.exists():
            if path.read_bytes() == content:
                return
            n += 1
            path = directory / f"{stem}.{n}.json"
        write_atomically(path, content)

    def _current_or_set_aside(self, image_id: str) -> Annotation | None:
        """Return the current annotation; a file that cannot be read is copied to history and counts as none."""
        try:
            return self.current(image_id)
        except AnnotationError as exc:
            logger.warning("Set aside in history: %s", exc)
            self._archive(image_id, "unreadable")
            return None

    @staticmethod
    def _require_based_on(image_id: str, current: Annotation | None, based_on_revision: int | None) -> None:
        revision = current.revision if current else 0
        if based_on_revision not in (None, revision):
            author = f" by {current.author}" if current and current.author else ""
            msg = (
                f"Annotation of {image_id} has revision {revision}{author} by now, but the change was made to revision"
                f" {based_on_revision}; reload, merge and save again."
            )
            raise AnnotationConflictError(msg)


def _read(path: Path, image_id: str) -> Annotation | None:
    """Return the annotation of a file; None: there is no such file."""
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as exc:
        msg = f"{path.name}: cannot be read ({type(exc).__name__})."
        raise AnnotationError(msg) from exc
    annotation = annotation_from_json(text, source=path.name)
    if annotation.image_id != image_id:
        msg = f"{path.name}: 'image_id' is {annotation.image_id!r}; {image_id!r} is accepted in this place."
        raise AnnotationError(msg)
    return annotation
