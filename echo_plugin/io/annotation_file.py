# SPDX-License-Identifier: Apache-2.0
"""The canonical JSON of an annotation: one object, keys in a fixed order, pixels and 0-based frames.

    {"schema": "monailabel-echo/annotation", "version": 1,
     "image_id": "1.2.840.1", "revision": 3, "author": "reader-2", "saved_at": "2026-01-31T12:00:00+00:00",
     "view": "A4C", "defect": "ASD", "defect_size_mm": 6.5,
     "annotated_frames": [0, 7],
     "boxes": [{"frame_index": 7, "x1": 10.5, "y1": 20.0, "x2": 60.0, "y2": 80.25,
                "septum": "interatrial", "score": null}]}

The last three lines' fields are required; others may be absent: not said. ``"unusable": true`` is written of a cine
that nobody should learn from, ``"defect_visible"`` where somebody said whether the cine shows the defect. Equal
annotations give equal bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from enum import Enum
from typing import TypeVar

from echo_plugin.anatomy import Defect, Septum, View
from echo_plugin.annotations import Annotation, SeptalBox
from echo_plugin.errors import AnnotationError, UnknownImageError

SCHEMA = "monailabel-echo/annotation"
VERSION = 1

_REQUIRED = ("schema", "version", "image_id", "annotated_frames", "boxes")
_OPTIONAL = ("revision", "author", "saved_at", "view", "defect", "defect_size_mm", "defect_visible", "unusable")
_CORNERS = ("x1", "y1", "x2", "y2")
_BOX_REQUIRED = ("frame_index", *_CORNERS, "septum")
_BOX_OPTIONAL = ("score",)

EnumType = TypeVar("EnumType", bound=Enum)


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


def _list(value: object, where: str) -> list[object]:
    if not isinstance(value, list):
        msg = f"{where} is {str(value)[:40]!r}; a list is accepted."
        raise _FieldError(msg)
    return value


def _whole(value: object, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        msg = f"{where} is {str(value)[:40]!r}; a whole number from 0 is accepted."
        raise _FieldError(msg)
    return value


def _flag(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        msg = f"{where} is {str(value)[:40]!r}; true or false is accepted."
        raise _FieldError(msg)
    return value


def _number(value: object, where: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300:
        return float(value)
    msg = f"{where} is {str(value)[:40]!r}; a finite number is accepted."
    raise _FieldError(msg)


def _number_or_none(value: object, where: str) -> float | None:
    return None if value is None else _number(value, where)


def _text(value: object, where: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    msg = f"{where} is {str(value)[:40]!r}; a text is accepted."
    raise _FieldError(msg)


def _member(kind: type[EnumType], value: object, where: str) -> EnumType:
    members = {member.value: member for member in kind}
    if not isinstance(value, str) or value not in members:
        msg = f"{where} is {str(value)[:40]!r}; {list(members)} are accepted."
        raise _FieldError(msg)
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
