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
from dataclasses import dataclass, field
from pathlib import Path

from echo_plugin.errors import AnnotationError
from echo_plugin.io.atomic_file import write_atomically
from echo_plugin.io.datasets.header_patients import TwoSources
from echo_plugin.io.datasets.patients_table import Line, read_table
from echo_plugin.io.patients_file import COLUMNS

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
