# SPDX-License-Identifier: Apache-2.0
"""``patients.csv`` of an import that is run again: what a person wrote into it stays, the rest follows the data set.

Three tables are compared: what the last import wrote (``.import_patients.csv``), what stands in ``patients.csv`` now,
and what the data set says now. A value that differs from the last import's is a person's, as is a line that is not from
an import, and a line that is gone. New cines of a patient whom the person gave another id get that id, and a person's
part of the split holds for all the patient's cines. Other columns, and the order of lines, are kept.
"""

from __future__ import annotations

import contextlib
import csv
import io
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from echo_plugin.errors import AnnotationError
from echo_plugin.io.atomic_file import write_atomically
from echo_plugin.io.image_id import escape_path
from echo_plugin.io.patients_file import PATIENTS_FILE, read_patients, write_patients

LAST_IMPORT_FILE = ".import_patients.csv"
COLUMNS = ("image_id", "patient_id", "split")


@dataclass(frozen=True)
class Said:
    """What the data set, or the header of the file, says of one cine; ``part`` : train, validation, test or ""."""

    patient: str | None = field(repr=False)
    part: str = ""
    is_by_header: bool = False


@dataclass(frozen=True)
class MergedPatients:
    """The table as it is now: ``patients`` by image id, ``parts`` by patient; ``notes`` : what a person must know."""

    patients: Mapping[str, str] = field(repr=False)
    parts: Mapping[str, str] = field(repr=False)
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Line:
    patient: str
    part: str


@dataclass(frozen=True)
class _Table:
    """``cells`` : every line as written, with the image id it is about."""

    header: list[str]
    cells: list[tuple[str, list[str]]]
    lines: Mapping[str, _Line]


def merge_patients(out: Path, said: Mapping[str, Said]) -> MergedPatients:
    """Write what an import says into ``patients.csv`` of the folder ``out``, and return the table.

    ``said`` : by image id, every cine that the data set has now.

    Raises
    ------
    AnnotationError
        If ``patients.csv`` is malformed.
    """
    last = _last_import(out)
    table = _read_table(out / PATIENTS_FILE, {*said, *last})
    now = table.lines if table else {}
    last = last if table else {}
    patients = _merge_ids(said, now, last)
    lines = {image_id: now.get(image_id, _Line("", "")) for image_id in [*now, *said]}
    lines = {i: _Line(patients.get(i, line.patient) or "", line.part) for i, line in lines.items()}
    lines = {image_id: line for image_id, line in lines.items() if line.patient}
    merged, torn = _merge_parts(lines, said, now, last)
    _write(out / PATIENTS_FILE, table, merged)
    remembered = _remembered(merged, now, last)  # after the table: without it, all that stands there is a person's
    write_patients(out / LAST_IMPORT_FILE, [(i, line.patient, line.part) for i, line in remembered.items()])
    return MergedPatients(
        {image_id: line.patient for image_id, line in merged.items()},
        {line.patient: line.part for line in merged.values() if line.part},
        tuple(_notes(said, merged, last, torn)),
    )


def _merge_ids(said: Mapping[str, Said], now: Mapping[str, _Line], last: Mapping[str, _Line]) -> dict[str, str | None]:
    """Return the ids that the import decides; a cine that is not in it is a person's affair."""
    names = _renamed(said, now, last)
    decided: dict[str, str | None] = {}
    for image_id, word in said.items():
        is_ours = image_id in now and image_id in last and now[image_id].patient == last[image_id].patient
        if is_ours or (image_id not in now and image_id not in last):
            decided[image_id] = word.patient if word.is_by_header else names.get(word.patient or "", word.patient)
    return decided


def _renamed(said: Mapping[str, Said], now: Mapping[str, _Line], last: Mapping[str, _Line]) -> dict[str, str]:
    """Return the one other id that a person gave all cines of a patient of the last import."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for image_id, line in last.items():
        if image_id in now and not (image_id in said and said[image_id].is_by_header):
            found[line.patient].add(now[image_id].patient)
    return {patient: next(iter(ids)) for patient, ids in found.items() if len(ids) == 1}


def _merge_parts(
    lines: Mapping[str, _Line], said: Mapping[str, Said], now: Mapping[str, _Line], last: Mapping[str, _Line]
) -> tuple[dict[str, _Line], int]:
    """Return the lines with their parts, and how many patients the data set's own split tears apart."""
    by_person, by_set, by_earlier = (defaultdict[str, set[str]](set) for _ in range(3))  # parts by patient
    ours = set()
    for image_id, line in lines.items():
        before = last.get(image_id)
        if image_id not in now or (before and line.part == before.part):
            ours.add(image_id)
            found, part = (by_set, said[image_id].part) if image_id in said else (by_earlier, line.part)
            if part:
                found[line.patient].add(part)
        elif before or line.part:
            by_person[line.patient].add(line.part)
    words = {**by_earlier, **by_set, **by_person}
    sole = {patient: next(iter(parts)) for patient, parts in words.items() if len(parts) == 1}
    merged = {i: _Line(x.patient, sole.get(x.patient, "") if i in ours else x.part) for i, x in lines.items()}
    return merged, len(words.keys() - sole.keys() - by_person.keys())


def _remembered(merged: Mapping[str, _Line], now: Mapping[str, _Line], last: Mapping[str, _Line]) -> dict[str, _Line]:
    """Return what the next import must take for an import's: not what a person changed, nor a person's own lines."""
    lines = {image_id: line for image_id, line in last.items() if image_id not in now}
    for image_id, line in merged.items():
        was, before = now.get(image_id), last.get(image_id)
        if was is None:
            lines[image_id] = line
        elif before is not None:
            patient = line.patient if was.patient == before.patient else before.patient
            lines[image_id] = _Line(patient, line.part if was.part == before.part else before.part)
    return lines


def _notes(
    said: Mapping[str, Said], merged: Mapping[str, _Line], last: Mapping[str, _Line], torn: int
) -> Iterable[str]:
    if torn:
        yield f"The data set's split tears {torn} patients apart; it is not kept for them."
    differ = [i for i, word in said.items() if word.patient and i in merged and merged[i].patient != word.patient]
    against = sum(said[image_id].is_by_header for image_id in differ)
    if len(differ) > against:
        yield f"{len(differ) - against} cines have the patient that patients.csv gives them, not the data set's."
    if against:
        yield f"{against} lines of patients.csv name another patient than the header of their file, which goes first."
    gone = sum(image_id in last and image_id not in merged for image_id, word in said.items() if word.patient)
    if gone:
        yield f"{gone} cines stay without the line that was taken out of patients.csv."


def _last_import(out: Path) -> Mapping[str, _Line]:
    """Return what the last import said; {}: nobody knows, and every line is a person's."""
    with contextlib.suppress(AnnotationError):
        table = _read_table(out / LAST_IMPORT_FILE, None)
        return table.lines if table else {}
    return {}


def _read_table(path: Path, known: Container[str] | None) -> _Table | None:
    """Return the table, where an image has its id, one of ``known``, or its path. None: only ids; no such file."""
    if not path.is_file():
        return None
    read_patients(path)
    with path.open(newline="", encoding="utf-8-sig") as file:
        header, *rows = [row for row in csv.reader(file) if row]
    places = [header.index(name) if name in header else None for name in COLUMNS]
    cells: list[tuple[str, list[str]]] = []
    lines: dict[str, _Line] = {}
    for row in rows:
        image, patient, part = (row[k].strip() if k is not None and k < len(row) else "" for k in places)
        image_id = image if known is None or image in known else escape_path(PurePosixPath(image))
        cells.append((image_id, row))
        lines[image_id] = _Line(patient, part or (lines[image_id].part if image_id in lines else ""))
    return _Table(header, cells, lines)


def _write(path: Path, table: _Table | None, lines: Mapping[str, _Line]) -> None:
    """Write the lines: those that are in the table in their places, new ones after them by image id."""
    header = list(table.header) if table else list(COLUMNS)
    if COLUMNS[2] not in header and any(line.part for line in lines.values()):
        header.append(COLUMNS[2])
    old = [(i, cells) for i, cells in (table.cells if table else ()) if i in lines]
    new = sorted(set(lines) - {image_id for image_id, _ in old})
    rows = [_with_values(header, cells, lines[i]) for i, cells in old]
    rows += [_with_values(header, _at(header, COLUMNS[0], i), lines[i]) for i in new]
    if table and header == table.header and rows == [cells for _, cells in table.cells]:
        return  # byte for byte as the person left it
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_atomically(path, text.getvalue().encode())


def _at(header: Sequence[str], column: str, value: str) -> list[str]:
    return [value if name == column else "" for name in header]


def _with_values(header: Sequence[str], cells: Sequence[str], line: _Line) -> list[str]:
    """Return the cells with the patient and the part of a line; cells that say so already are as they were."""
    row = list(cells)
    for column, value in zip(COLUMNS[1:], (line.patient, line.part), strict=True):
        place = header.index(column) if column in header else len(header)
        found = row[place].strip() if place < len(row) else ""
        if found != value:
            row += [""] * (place + 1 - len(row))
            row[place] = value
    return row
