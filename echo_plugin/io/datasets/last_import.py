# SPDX-License-Identifier: Apache-2.0
"""``.import_patients.csv``: what the last import wrote into ``patients.csv``, and whom header and data set named.

Two columns more than there: ``header_id`` and ``set_id``, "" where nothing is said. A header that once joined silent
files to a patient may be gone at the next import; what it said is here still.
"""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Mapping
from pathlib import Path

from echo_plugin.errors import AnnotationError
from echo_plugin.io.atomic_file import write_atomically
from echo_plugin.io.datasets.header_patients import TwoSources
from echo_plugin.io.datasets.patients_table import COLUMNS, Line, read_table

LAST_IMPORT_FILE = ".import_patients.csv"
_SOURCES = ("header_id", "set_id")


def read_last_import(out: Path) -> Mapping[str, Line]:
    """Return what the last import into the folder ``out`` said; {}: nobody knows, and every line is a person's."""
    with contextlib.suppress(AnnotationError):
        table = read_table(out / LAST_IMPORT_FILE, None)
        return table.lines if table else {}
    return {}


def read_last_sources(out: Path) -> dict[str, TwoSources]:
    """Return, by image id, the patient by the header and by the data set as imports so far found them."""
    if not read_last_import(out):
        return {}
    with (out / LAST_IMPORT_FILE).open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    return {row[COLUMNS[0]]: (row.get(_SOURCES[0]) or None, row.get(_SOURCES[1]) or None) for row in rows}


def write_last_import(out: Path, lines: Mapping[str, Line], sources: Mapping[str, TwoSources]) -> None:
    """Write the lines, and the ``sources`` of each that has them, in the order of image ids."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*COLUMNS, *_SOURCES])
    for image_id, line in sorted(lines.items()):
        header, own = sources.get(image_id, (None, None))
        table.writerow([image_id, line.patient, line.part, header or "", own or ""])
    write_atomically(out / LAST_IMPORT_FILE, text.getvalue().encode())
