# SPDX-License-Identifier: Apache-2.0
"""TMED-2 (Tufts 2022): stills of 112 x 112 px with view labels and grades of aortic stenosis.

    <table>.csv: query_key (PNG file), SourceFolder, view_label, view_classifier_split
    <SourceFolder>/<query_key>

No table names the patients; ``query_key`` begins with the patient's number, "s" and the study's (5269s1_0.png), the
data set's own naming. Grades of aortic stenosis are no septal defect and are not carried.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from echo_plugin.anatomy import View
from echo_plugin.errors import DataSetError
from echo_plugin.io.datasets.source_cine import (
    PARTS,
    DataSet,
    LeftOut,
    NotTakenError,
    SourceCine,
    named_file,
    read_table,
)

VIEWS: dict[str, View | None] = {
    "PLAX": View.PLAX_LV,
    "PSAX": View.PSAX_AV,
    "A2C": View.A2C,
    "A4C": View.A4C,
    "A4CorA2CorOther": None,
    "Not_Provided": None,
}
COLUMNS = ("query_key", "SourceFolder", "view_label", "view_classifier_split")
NOTES = (
    "PSAX is taken as PSAX-AV: the set is about the aortic valve.",
    "A4CorA2CorOther and Not_Provided are taken without a view.",
    "Grades of aortic stenosis are not carried.",
)
_PATIENT = re.compile(r"(\d+)s\d+_")


def read_tmed2(src: Path) -> DataSet:
    """Return the stills of every table in ``src`` that has TMED-2's columns.

    Tables that split the same stills in several ways are folds: the split of the one that splits most stills is kept,
    of equals the first by name, and a note says so.

    Raises
    ------
    DataSetError
        If no table has them.
    """
    tables = {path.name: read_table(path, COLUMNS) for path in sorted(src.glob("*.csv")) if _has_columns(path)}
    if not tables:
        msg = f"Folder {src.name!r} has no table of TMED-2; a CSV with the columns {', '.join(COLUMNS)} is accepted."
        raise DataSetError(msg)
    splits = {table: _split(rows) for table, rows in tables.items()}
    kept = max(splits, key=lambda table: len(splits[table]))
    parts, others = dict(splits[kept]), []
    for table, split in splits.items():
        if all(parts.get(name, part) == part for name, part in split.items()):
            parts |= split
        else:
            others.append(table)
    note = f"The split is that of {kept}; those of {', '.join(others)} are others and are not kept."
    return DataSet(_stills(src, tables, parts), (*NOTES, note) if others else NOTES)


def _split(rows: Sequence[Mapping[str, str]]) -> dict[str, str]:
    parts = {_name(row): PARTS.get(row["view_classifier_split"].lower()) for row in rows}
    return {name: part for name, part in parts.items() if part is not None}


def _name(row: Mapping[str, str]) -> str:
    return f"{row['SourceFolder']}/{row['query_key']}"


def _stills(
    src: Path, tables: Mapping[str, Sequence[Mapping[str, str]]], parts: Mapping[str, str]
) -> Iterator[SourceCine | LeftOut]:
    seen: dict[str, str] = {}
    for table, rows in tables.items():
        for row in rows:
            name, view = _name(row), row["view_label"]
            if name in seen:
                if seen[name] != view:
                    yield LeftOut(f"{name} in {table}", f"an earlier line calls it {seen[name]}, this one {view}")
                continue
            seen[name] = view
            try:
                if view not in VIEWS:
                    msg = f"view_label {view!r} is none of {', '.join(VIEWS)}"
                    raise NotTakenError(msg)
                source = named_file(src, name)
            except NotTakenError as exc:
                yield LeftOut(name, str(exc))
                continue
            match = _PATIENT.match(source.name)
            patient = match[1] if match else None
            yield SourceCine(PurePosixPath(name), source, patient, VIEWS[view], part=parts.get(name))
    unnamed = Counter(
        path.parent.relative_to(src).as_posix()
        for path in sorted(src.rglob("*"))
        if path.suffix.lower() == ".png" and path.relative_to(src).as_posix() not in seen
    )
    for folder, count in unnamed.items():
        yield LeftOut(folder, "no table names these pictures", count)


def _has_columns(path: Path) -> bool:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            found = next(csv.reader(file), [])
    except (OSError, UnicodeDecodeError, csv.Error):
        return False
    return set(COLUMNS) <= {name.strip() for name in found}
