# SPDX-License-Identifier: Apache-2.0
"""``patients.csv`` as a person keeps it: other columns, the order of lines and the way ids are written stay."""

from __future__ import annotations

import csv
import io
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from echo_plugin.io.atomic_file import write_atomically
from echo_plugin.io.image_id import escape_path
from echo_plugin.io.patients_file import COLUMNS, read_patients


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
