# SPDX-License-Identifier: Apache-2.0
"""Defects and views of many cines from one CSV: what a hospital has in a table becomes labels of a study folder.

Columns: ``image_id``, ``file`` (path in the folder) or ``patient_id`` (all cines of a child) says which cines a line is
about; ``defect``, ``defect_size_mm``, ``defect_visible`` (yes or no: whether the cine shows the defect that the child
has) and ``view`` what is said. Others are passed over, empty cells say nothing. Boxes and whatever the line does not
say stay as they are. Every line is checked before anything is written.
"""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from echo_plugin.anatomy import Defect, View
from echo_plugin.annotations import Annotation
from echo_plugin.cine import escape_path
from echo_plugin.errors import AnnotationError
from echo_plugin.io.study_folder import StudyFolder
from echo_plugin.progress import Progress

WHICH = ("image_id", "file", "patient_id")
SAID = ("defect", "defect_size_mm", "defect_visible", "view")
VISIBLE = {"yes": True, "no": False}


@dataclass(frozen=True)
class LabelCounts:
    """How many cines were labelled anew, and how many said the same before."""

    changed: int
    unchanged: int


def set_labels(studies: Path, table: Path, *, author: str, progress: Progress | None = None) -> LabelCounts:
    """Label the cines that ``table`` names; each change is a new revision by ``author``.

    Raises
    ------
    AnnotationError
        If the table cannot be read, names no cine of the folder, contradicts itself, or says what cannot be; the
        message names the line, never a patient. Nothing is written then.
    """
    folder = StudyFolder(studies)
    wanted = _read_table(table, folder)
    changes = []
    for image_id, said in wanted.items():
        before = folder.annotation(image_id) or Annotation(image_id)
        after = _labelled(before, said)
        if after != before:
            changes.append((after, before.revision))
    for number, (after, revision) in enumerate(changes):
        folder.save_annotation(after, author=author, based_on_revision=revision)
        if progress is not None:
            progress(number + 1, len(changes), "")
    return LabelCounts(len(changes), len(wanted) - len(changes))


def _labelled(before: Annotation, said: Mapping[str, object]) -> Annotation:
    """Return the annotation with what a line says; what was known of another defect goes with that one."""
    if said.get("defect", before.defect) is not before.defect:
        said = {"defect_size_mm": None, "is_defect_visible": None, **said}
    return dataclasses.replace(before, **said)  # type: ignore[arg-type]


def _read_table(table: Path, folder: StudyFolder) -> dict[str, dict[str, object]]:
    """Return what is said of each cine, by image id."""
    by_patient: dict[str, list[str]] = {}
    entries = [entry for entry in folder.entries() if entry.error is None]  # no other can be annotated
    for entry in entries:
        if entry.patient_id is not None:
            by_patient.setdefault(entry.patient_id, []).append(entry.image_id)
    known = {entry.image_id for entry in entries}
    by_path = {
        escape_path(PurePosixPath(entry.path.relative_to(folder.root).as_posix())): entry.image_id for entry in entries
    }
    wanted: dict[str, dict[str, object]] = {}
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            columns = set(rows.fieldnames or ())
            if not columns & set(WHICH) or not columns & set(SAID):
                msg = f"{table.name}: its first line needs one of {list(WHICH)} and one of {list(SAID)}."
                raise AnnotationError(msg)
            for row in rows:
                place = f"{table.name}: line {rows.line_num}"
                said = _said(row, place)
                for image_id in _cines_of(row, place, known, by_path, by_patient):
                    _add(wanted.setdefault(image_id, {}), said, place)
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        msg = f"{table.name}: cannot be read ({type(exc).__name__}); comma-separated UTF-8 text is accepted."
        raise AnnotationError(msg) from exc
    return wanted


def _cines_of(
    row: Mapping[str, str | None],
    place: str,
    known: set[str],
    by_path: Mapping[str, str],
    by_patient: Mapping[str, list[str]],
) -> list[str]:
    image_id, file, patient = ((row.get(name) or "").strip() for name in WHICH)
    if image_id:
        found = [image_id] if image_id in known else []
    elif file:
        found = [by_path[escaped] for escaped in [escape_path(PurePosixPath(file))] if escaped in by_path]
    else:
        found = by_patient.get(patient, [])
    if not found:
        can_be = ("image", "that can be read") if image_id or file else ("patient", "with a cine that can be read")
        msg = f"{place} names no {can_be[0]} of the study folder {can_be[1]}."
        raise AnnotationError(msg)
    return found


def _said(row: Mapping[str, str | None], place: str) -> dict[str, object]:
    said: dict[str, object] = {}
    for name, kind in (("defect", Defect), ("view", View)):
        text = (row.get(name) or "").strip()
        if text:
            named = {member.value.lower(): member for member in kind}
            if text.lower() not in named:
                msg = f"{place}: {name} is {text[:40]!r}; {', '.join(member.value for member in kind)} are accepted."
                raise AnnotationError(msg)
            said[name] = named[text.lower()]
    text = (row.get("defect_size_mm") or "").strip()
    if text:
        size = _number(text)
        if not (math.isfinite(size) and size > 0) or said.get("defect") is Defect.NORMAL:
            msg = f"{place}: defect_size_mm is {text[:40]!r}; a positive length of a defect is accepted."
            raise AnnotationError(msg)
        said["defect_size_mm"] = size
    text = (row.get("defect_visible") or "").strip()
    if text:
        if text.lower() not in VISIBLE or said.get("defect") is Defect.NORMAL:
            msg = f"{place}: defect_visible is {text[:40]!r}; yes or no is accepted, of a defect."
            raise AnnotationError(msg)
        said["is_defect_visible"] = VISIBLE[text.lower()]
    return said


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _add(before: dict[str, object], said: Mapping[str, object], place: str) -> None:
    for name, value in said.items():
        if before.setdefault(name, value) != value:
            msg = f"{place} gives a cine another {name.removeprefix('is_')} than a line before."
            raise AnnotationError(msg)
