# SPDX-License-Identifier: Apache-2.0
"""The annotations of a study folder: one current file for each cine, every earlier revision, every upload.

    annotations/<image_id>.json                          the current revision
    annotations/history/<image_id>/<revision>.json       each earlier one, as it was
    annotations/history/<image_id>/<revision>.upload.*   what the viewer sent for that revision, byte by byte

Nothing is ever deleted or overwritten: a file that a person edited or put back by hand is kept as <revision>.<n>.json,
one that cannot be read as unreadable.<n>.json. A save first copies the current file to history, then replaces it in one
step; whoever is killed in between leaves the old revision current. Writers of all threads and programs take turns by
the lock of ``annotations/.lock``; readers need none.

A file is canonical JSON: one object, keys in a fixed order, pixels and 0-based frames; equal annotations give equal
bytes.

    {"schema": "monailabel-echo/annotation", "version": 1,
     "image_id": "1.2.840.1", "revision": 3, "author": "reader-2", "saved_at": "2026-01-31T12:00:00+00:00",
     "view": "A4C", "defect": "ASD", "defect_size_mm": 6.5,
     "annotated_frames": [0, 7],
     "boxes": [{"frame_index": 7, "x1": 10.5, "y1": 20.0, "x2": 60.0, "y2": 80.25,
                "septum": "interatrial", "score": null}]}

Schema, version, image_id, annotated_frames and boxes are required; others may be absent: not said. ``"unusable": true``
is written of a cine that nobody should learn from, ``"defect_visible"`` where somebody said whether it shows a defect.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from echo_plugin.anatomy import Defect, Septum, View
from echo_plugin.annotations import Annotation, SeptalBox, require_image_id
from echo_plugin.durable import locked, make_directory, remove_abandoned, write_atomically
from echo_plugin.errors import AnnotationConflictError, AnnotationError, UnknownImageError

logger = logging.getLogger(__name__)

SCHEMA = "monailabel-echo/annotation"
VERSION = 1

_REQUIRED = ("schema", "version", "image_id", "annotated_frames", "boxes")
_OPTIONAL = ("revision", "author", "saved_at", "view", "defect", "defect_size_mm", "defect_visible", "unusable")
_CORNERS = ("x1", "y1", "x2", "y2")
_BOX_REQUIRED = ("frame_index", *_CORNERS, "septum")
_BOX_OPTIONAL = ("score",)
LOCK_TIMEOUT_S = 60.0
_ARCHIVED = re.compile(r"(\d+)(?:\.(\d+))?\.json")
_UPLOADED = re.compile(r"(\d+)\.upload(?:\.[a-z0-9]+)+")
_UPLOAD_SUFFIX = re.compile(r"(?:\.[a-z0-9]{1,10}){1,3}")

EnumType = TypeVar("EnumType", bound=Enum)


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
        with locked(self._directory / ".lock", timeout_s=LOCK_TIMEOUT_S):
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
        except TimeoutError as exc:
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


def annotation_to_json(annotation: Annotation) -> str:
    """Return the canonical JSON text, with a newline at its end."""
    return json.dumps(_document(annotation), indent=1, allow_nan=False) + "\n"


def digest_of_label(annotation: Annotation) -> str:
    """Return the SHA-256 of what an annotation says, without who said it, when, and as which revision."""
    said = _document(annotation) | {"author": None, "saved_at": None, "revision": 0}
    return hashlib.sha256(json.dumps(said, separators=(",", ":"), allow_nan=False).encode()).hexdigest()


def _document(annotation: Annotation) -> dict[str, object]:
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "image_id": annotation.image_id,
        "revision": int(annotation.revision),
        "author": annotation.author,
        "saved_at": annotation.saved_at.isoformat() if annotation.saved_at else None,
        "view": annotation.view.value if annotation.view else None,
        "defect": annotation.defect.value if annotation.defect else None,
        "defect_size_mm": _float_or_none(annotation.defect_size_mm),
        **({} if annotation.is_defect_visible is None else {"defect_visible": annotation.is_defect_visible}),
        "annotated_frames": [int(frame_index) for frame_index in annotation.annotated_frames],
        "boxes": [_box_to_dict(box) for box in annotation.boxes],
        **({"unusable": True} if annotation.is_unusable else {}),
    }


def annotation_from_json(text: str, *, source: str = "Annotation") -> Annotation:
    """Return the annotation of a JSON text; ``source`` is what messages call it, such as its file name.

    Raises
    ------
    AnnotationError
        If the text is no annotation of this or an earlier version; the message names the source and the field.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as exc:
        msg = f"{source}: not JSON ({type(exc).__name__}); an annotation of schema {SCHEMA!r} is accepted."
        raise AnnotationError(msg) from exc
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        msg = f"{source}: no object of schema {SCHEMA!r}."
        raise AnnotationError(msg)
    version = _whole(document.get("version"), f"{source}: 'version'")
    if version > VERSION:
        msg = f"{source}: version {version} was written by a newer program; up to {VERSION} is read here."
        raise AnnotationError(msg)
    _require_fields(document, _REQUIRED, _OPTIONAL, source)
    try:
        return Annotation(
            image_id=_text(document["image_id"], f"{source}: 'image_id'") or "",
            boxes=_read_boxes(document["boxes"], source),
            annotated_frames=tuple(
                _whole(frame, f"{source}: 'annotated_frames'")
                for frame in _list(document["annotated_frames"], f"{source}: 'annotated_frames'")
            ),
            view=_member_or_none(View, document.get("view"), f"{source}: 'view'"),
            defect=_member_or_none(Defect, document.get("defect"), f"{source}: 'defect'"),
            defect_size_mm=_number_or_none(document.get("defect_size_mm"), f"{source}: 'defect_size_mm'"),
            author=_text(document.get("author"), f"{source}: 'author'"),
            saved_at=_time(document.get("saved_at"), f"{source}: 'saved_at'"),
            revision=_whole(document.get("revision", 0), f"{source}: 'revision'"),
            is_defect_visible=None
            if document.get("defect_visible") is None
            else _flag(document["defect_visible"], f"{source}: 'defect_visible'"),
            is_unusable=_flag(document.get("unusable", False), f"{source}: 'unusable'"),
        )
    except _FieldError:
        raise
    except (AnnotationError, UnknownImageError) as exc:  # each field reads well, together they cannot be true
        msg = f"{source}: {exc}"
        raise AnnotationError(msg) from exc


class _FieldError(AnnotationError):
    """A message that names source and field already."""


def _box_to_dict(box: SeptalBox) -> dict[str, object]:
    corners = zip(_CORNERS, box.xyxy.tolist(), strict=True)
    return {
        "frame_index": int(box.frame_index),
        **dict(corners),
        "septum": box.septum.value,
        "score": _float_or_none(box.score),
    }


def _read_boxes(value: object, source: str) -> tuple[SeptalBox, ...]:
    boxes = []
    for number, item in enumerate(_list(value, f"{source}: 'boxes'")):
        where = f"{source}: 'boxes[{number}]'"
        if not isinstance(item, dict):
            msg = f"{where} is {str(item)[:40]!r}; an object is accepted."
            raise _FieldError(msg)
        _require_fields(item, _BOX_REQUIRED, _BOX_OPTIONAL, where)
        septum = _member(Septum, item["septum"], f"{where} 'septum'")
        frame_index = _whole(item["frame_index"], f"{where} 'frame_index'")
        x1, y1, x2, y2 = (_number(item[key], f"{where} {key!r}") for key in _CORNERS)
        score = _number_or_none(item.get("score"), f"{where} 'score'")
        boxes.append(SeptalBox(frame_index, x1, y1, x2, y2, septum, score))
    return tuple(boxes)


def _require_fields(
    item: Mapping[str, object], required: tuple[str, ...], optional: tuple[str, ...], where: str
) -> None:
    missing = [key for key in required if key not in item]
    unknown = [key for key in item if key not in required + optional]
    if missing or unknown:
        found = f"lacks the fields {missing}" if missing else f"has the unknown fields {unknown[:4]}"
        msg = f"{where} {found}; {list(required)} and, if wanted, {list(optional)} are accepted."
        raise _FieldError(msg)


def _float_or_none(number: float | None) -> float | None:
    return None if number is None else float(number)


def _require(is_accepted: bool, value: object, where: str, accepted: str) -> None:
    if not is_accepted:
        msg = f"{where} is {str(value)[:40]!r}; {accepted} accepted."
        raise _FieldError(msg)


def _list(value: Any, where: str) -> list[object]:
    _require(isinstance(value, list), value, where, "a list is")
    return value


def _whole(value: Any, where: str) -> int:
    is_whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    _require(is_whole, value, where, "a whole number from 0 is")
    return value


def _flag(value: Any, where: str) -> bool:
    _require(isinstance(value, bool), value, where, "true or false is")
    return value


def _number(value: Any, where: str) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    _require(is_number, value, where, "a finite number is")
    return float(value)


def _number_or_none(value: object, where: str) -> float | None:
    return None if value is None else _number(value, where)


def _text(value: Any, where: str) -> str | None:
    _require(value is None or isinstance(value, str), value, where, "a text is")
    return value


def _member(kind: type[EnumType], value: object, where: str) -> EnumType:
    members = {member.value: member for member in kind}
    _require(isinstance(value, str) and value in members, value, where, f"{list(members)} are")
    return members[value]


def _member_or_none(kind: type[EnumType], value: object, where: str) -> EnumType | None:
    return None if value is None else _member(kind, value, where)


def _time(value: object, where: str) -> datetime | None:
    text = _text(value, where)
    try:
        return None if text is None else datetime.fromisoformat(text)
    except ValueError as exc:
        msg = f"{where} is {text!r}; a time such as '2026-01-31T12:00:00+00:00' is accepted."
        raise _FieldError(msg) from exc
