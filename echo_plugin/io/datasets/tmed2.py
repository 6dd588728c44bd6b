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
from collections.abc import Iterator
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

    Raises
    ------
    DataSetError
        If no table has them.
    """
    tables = [path for path in sorted(src.glob("*.csv")) if _has_columns(path)]
    if not tables:
        msg = f"Folder {src.name!r} has no table of TMED-2; a CSV with the columns {', '.join(COLUMNS)} is accepted."
        raise DataSetError(msg)
    return DataSet(_stills(src, tables), NOTES)


def _stills(src: Path, tables: list[Path]) -> Iterator[SourceCine | LeftOut]:
    seen = set()
    for table in tables:
        for row in read_table(table, COLUMNS):
            name = f"{row['SourceFolder']}/{row['query_key']}"
            if name in seen:
                yield LeftOut(name, "an earlier line or table names it")
                continue
            seen.add(name)
            try:
                if row["view_label"] not in VIEWS:
                    msg = f"view_label {row['view_label']!r} is none of {', '.join(VIEWS)}"
                    raise NotTakenError(msg)
                source = named_file(src, name)
            except NotTakenError as exc:
                yield LeftOut(name, str(exc))
                continue
            match = _PATIENT.match(source.name)
            yield SourceCine(
                PurePosixPath(name),
                source,
                match[1] if match else None,
                VIEWS[row["view_label"]],
                part=PARTS.get(row["view_classifier_split"].lower()),
            )


def _has_columns(path: Path) -> bool:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            found = next(csv.reader(file), [])
    except (OSError, UnicodeDecodeError, csv.Error):
        return False
    return set(COLUMNS) <= {name.strip() for name in found}
