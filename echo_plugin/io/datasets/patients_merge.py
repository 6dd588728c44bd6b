# SPDX-License-Identifier: Apache-2.0
"""``patients.csv`` of an import that is run again: what a person wrote into it stays, the rest follows the data set.

Three tables are compared: what the last import wrote (``.import_patients.csv``), what stands in ``patients.csv`` now,
and what the data set says now. A value that differs from the last import's is a person's, as is a line that is not from
an import, and a line that is gone. New cines of a patient whom the person gave another id get that id, and a person's
part of the split holds for all the patient's cines. Other columns, and the order of lines, are kept.

One patient from two sources: the header of a DICOM file, and what the data set says of the file.

A study folder always believes a header before patients.csv. So a file whose header is silent must be given the id that
the headers of its patient have: with the data set's own id one patient would be two, and could be in training and test.

``patients.csv`` as a person keeps it: other columns, the order of lines and the way ids are written stay.

``.import_patients.csv``: what the last import wrote into ``patients.csv``, and whom header and data set named.

Two columns more than there: ``header_id`` and ``set_id``, "" where nothing is said. A header that once joined silent
files to a patient may be gone at the next import; what it said is here still.
"""

from __future__ import annotations

import contextlib
import csv
import io
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from echo_plugin.cine import escape_path
from echo_plugin.durable import write_atomically
from echo_plugin.errors import AnnotationError
from echo_plugin.io.patients_file import COLUMNS, PATIENTS_FILE, read_patients

TwoSources = tuple[str | None, str | None]
"""The patient of one cine by its header and by the data set; None: not said."""


def contradictions(sources: Sequence[TwoSources]) -> list[int]:
    """Return the indices of the cines whose header's patients and the data set's do not stand one to one."""
    of_set, of_header = _headers_by_set_id(sources), _headers_by_set_id([(own, header) for header, own in sources])
    return [
        index
        for index, (header, own) in enumerate(sources)
        if header and own and (len(of_set[own]) > 1 or len(of_header[header]) > 1)
    ]


def one_patient_each(sources: Sequence[TwoSources]) -> tuple[list[str | None], tuple[str, ...]]:
    """Return the patient of every cine, in order, and notes of what was joined.

    A header says it; else the headers of the other files that the data set gives to the same patient, if they agree;
    else the data set, if there are none. Where they do not agree nobody knows, and None keeps the cine from learning.

    >>> one_patient_each([("anna", "p1"), (None, "p1"), (None, "p2")])[0]
    ['anna', 'anna', 'p2']
    """
    headers = _headers_by_set_id(sources)
    patients: list[str | None] = []
    joined = unknown = 0
    for header, own in sources:
        found = headers.get(own, set()) if own else set()
        is_silent = bool(own) and not header
        joined += is_silent and found not in (set(), {own}) and len(found) == 1
        unknown += is_silent and len(found) > 1
        patients.append(header or (own if not found else next(iter(found)) if len(found) == 1 else None))
    notes = []
    if joined:
        notes.append(f"{joined} cines without a patient in the header have the id that headers give their patient.")
    if unknown:
        notes.append(
            f"{unknown} cines have no patient: their own header is silent, and those of the files that the data set"
            " holds together with them name several."
        )
    return patients, tuple(notes)


def _headers_by_set_id(sources: Sequence[TwoSources]) -> Mapping[str, set[str]]:
    found: defaultdict[str, set[str]] = defaultdict(set)
    for header, own in sources:
        if header and own:
            found[own].add(header)
    return found


@dataclass(frozen=True)
class Line:
    """The patient and the part of one cine; part "": none."""

    patient: str
    part: str


@dataclass(frozen=True)
class Table:
    """``cells`` : every line as written, with the image id it is about."""

    header: list[str]
    cells: list[tuple[str, list[str]]]
    lines: Mapping[str, Line]


def read_table(path: Path, known: Container[str] | None) -> Table | None:
    """Return the table, where an image has its id, one of ``known``, or its path; None: there is no such file.

    ``known`` : None where every image has its id.
    """
    if not path.is_file():
        return None
    read_patients(path)
    with path.open(newline="", encoding="utf-8-sig") as file:
        header, *rows = [row for row in csv.reader(file) if row]
    places = [header.index(name) if name in header else None for name in COLUMNS]
    cells: list[tuple[str, list[str]]] = []
    lines: dict[str, Line] = {}
    for row in rows:
        image, patient, part = (row[k].strip() if k is not None and k < len(row) else "" for k in places)
        image_id = image if known is None or image in known else escape_path(PurePosixPath(image))
        cells.append((image_id, row))
        lines[image_id] = Line(patient, part or (lines[image_id].part if image_id in lines else ""))
    return Table(header, cells, lines)


def write_table(path: Path, table: Table | None, lines: Mapping[str, Line]) -> None:
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


def _with_values(header: Sequence[str], cells: Sequence[str], line: Line) -> list[str]:
    """Return the cells with the patient and the part of a line; cells that say so already are as they were."""
    row = list(cells)
    for column, value in zip(COLUMNS[1:], (line.patient, line.part), strict=True):
        place = header.index(column) if column in header else len(header)
        found = row[place].strip() if place < len(row) else ""
        if found != value:
            row += [""] * (place + 1 - len(row))
            row[place] = value
    return row


LAST_IMPORT_FILE = ".import_patients.csv"
_HEADER, _SET = "header_id", "set_id"


@dataclass(frozen=True)
class LastImport:
    """By image id, the ``lines`` that were written, and the ``sources`` as imports so far found them."""

    lines: Mapping[str, Line] = field(default_factory=dict, repr=False)
    sources: Mapping[str, TwoSources] = field(default_factory=dict, repr=False)


def read_last_import(out: Path) -> LastImport:
    """Return what the last import into the folder ``out`` said; nothing: nobody knows, and every line is a person's."""
    with contextlib.suppress(AnnotationError):
        table = read_table(out / LAST_IMPORT_FILE, None)
        if table:
            named = [(image_id, dict(zip(table.header, cells, strict=False))) for image_id, cells in table.cells]
            return LastImport(table.lines, {i: (row.get(_HEADER) or None, row.get(_SET) or None) for i, row in named})
    return LastImport()


def write_last_import(out: Path, lines: Mapping[str, Line], sources: Mapping[str, TwoSources]) -> None:
    """Write the lines, and the ``sources`` of each that has them, in the order of image ids."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*COLUMNS, _HEADER, _SET])
    for image_id, line in sorted(lines.items()):
        header, own = sources.get(image_id, (None, None))
        table.writerow([image_id, line.patient, line.part, header or "", own or ""])
    write_atomically(out / LAST_IMPORT_FILE, text.getvalue().encode())


@dataclass(frozen=True)
class Said:
    """What the data set, or the header of the file, says of one cine.

    ``part`` : train, validation, test or "". ``own`` : the data set's own id of the patient, whoever ``patient`` is by
    the headers; None: it has none.
    """

    patient: str | None = field(repr=False)
    part: str = ""
    is_by_header: bool = False
    own: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class MergedPatients:
    """The table as it is now: ``patients`` by image id, ``parts`` by patient; ``notes`` : what a person must know."""

    patients: Mapping[str, str] = field(repr=False)
    parts: Mapping[str, str] = field(repr=False)
    notes: tuple[str, ...]


def merge_patients(out: Path, said: Mapping[str, Said]) -> MergedPatients:
    """Write what an import says into ``patients.csv`` of the folder ``out``, and return the table.

    ``said`` : by image id, every cine that the data set has now.

    Raises
    ------
    AnnotationError
        If ``patients.csv`` is malformed.
    """
    earlier = read_last_import(out)
    table = read_table(out / PATIENTS_FILE, {*said, *earlier.lines})
    now, last = (table.lines, earlier.lines) if table else ({}, {})
    patients = _merge_ids(said, now, last)
    lines = {image_id: now.get(image_id, Line("", "")) for image_id in [*now, *said]}
    lines = {i: Line(patients.get(i, line.patient) or "", line.part) for i, line in lines.items()}
    lines = {image_id: line for image_id, line in lines.items() if line.patient}
    merged, torn = _merge_parts(lines, said, now, last)
    write_table(out / PATIENTS_FILE, table, merged)
    remembered = _remembered(merged, now, last)  # after the table: without it, all that stands there is a person's
    sources = {i: (word.patient if word.is_by_header else None, word.own) for i, word in said.items()}
    write_last_import(out, remembered, {**earlier.sources, **sources})
    return MergedPatients(
        {image_id: line.patient for image_id, line in merged.items()},
        {line.patient: line.part for line in merged.values() if line.part},
        tuple(_notes(said, merged, now, last, torn)),
    )


def _merge_ids(said: Mapping[str, Said], now: Mapping[str, Line], last: Mapping[str, Line]) -> dict[str, str | None]:
    """Return the ids that the import decides; a cine that is not in it is a person's affair."""
    names = _renamed(said, now, last)
    decided: dict[str, str | None] = {}
    for image_id, word in said.items():
        is_ours = image_id in now and image_id in last and now[image_id].patient == last[image_id].patient
        if is_ours or (image_id not in now and image_id not in last):
            decided[image_id] = word.patient if word.is_by_header else names.get(word.patient or "", word.patient)
    return decided


def _renamed(said: Mapping[str, Said], now: Mapping[str, Line], last: Mapping[str, Line]) -> dict[str, str]:
    """Return the one other id that a person gave all cines of a patient of the last import."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for image_id, line in last.items():
        if image_id in now and not (image_id in said and said[image_id].is_by_header):
            found[line.patient].add(now[image_id].patient)
    return {patient: next(iter(ids)) for patient, ids in found.items() if len(ids) == 1}


def _merge_parts(
    lines: Mapping[str, Line], said: Mapping[str, Said], now: Mapping[str, Line], last: Mapping[str, Line]
) -> tuple[dict[str, Line], int]:
    """Return the lines with their parts, and how many patients the data set's own split tears apart."""
    by_person, by_moved, by_set, by_earlier = (defaultdict[str, set[str]](set) for _ in range(4))  # parts by patient
    ours = set()
    for image_id, line in lines.items():
        before, was = last.get(image_id), now.get(image_id)
        is_moved = was is not None and was.patient != line.patient
        is_by_person = was is not None and (before is None or line.part != before.part)
        if is_by_person and (before or line.part):  # of a cine that moves: chosen for the patient it had until now
            (by_moved if is_moved else by_person)[line.patient].add(line.part)
        if is_moved or not is_by_person:
            ours.add(image_id)
            found, part = (by_set, said[image_id].part) if image_id in said else (by_earlier, line.part)
            if part:
                found[line.patient].add(part)
    agreed = {patient: parts for patient, parts in by_moved.items() if len(parts) == 1}
    words = {**by_earlier, **by_set, **agreed, **by_person}
    sole = {patient: next(iter(parts)) for patient, parts in words.items() if len(parts) == 1}
    merged = {i: Line(x.patient, sole.get(x.patient, "") if i in ours else x.part) for i, x in lines.items()}
    return merged, len(words.keys() - sole.keys() - by_person.keys())


def _remembered(merged: Mapping[str, Line], now: Mapping[str, Line], last: Mapping[str, Line]) -> dict[str, Line]:
    """Return what the next import must take for an import's: not what a person changed, nor a person's own lines."""
    lines = {image_id: line for image_id, line in last.items() if image_id not in now}
    for image_id, line in merged.items():
        was, before = now.get(image_id), last.get(image_id)
        if was is None:
            lines[image_id] = line
        elif before is not None:
            patient = line.patient if was.patient == before.patient else before.patient
            is_ours = was.part == before.part or line.part != was.part
            lines[image_id] = Line(patient, line.part if is_ours else before.part)
    return lines


def _notes(
    said: Mapping[str, Said],
    merged: Mapping[str, Line],
    now: Mapping[str, Line],
    last: Mapping[str, Line],
    torn: int,
) -> Iterable[str]:
    changed = sum(image_id not in merged or merged[image_id].patient != line.patient for image_id, line in now.items())
    if changed:
        yield (
            f"{changed} cines had another patient in the last import; models trained before know them by the old id:"
            " train them anew."
        )
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
