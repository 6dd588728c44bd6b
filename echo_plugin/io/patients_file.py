# SPDX-License-Identifier: Apache-2.0
"""``patients.csv``: who is on a cine whose file does not say.

Two columns: ``image_id`` (or the path in the study folder) and ``patient_id``. A third, ``split``, may put a patient in
the part train, validation or test that a data set comes with; others are passed over.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from echo_plugin.cine import escape_path
from echo_plugin.durable import write_atomically
from echo_plugin.errors import AnnotationError

PATIENTS_FILE = "patients.csv"
COLUMNS = ("image_id", "patient_id", "split")
_NEEDED = COLUMNS[:2]
_PARTS = ("train", "validation", "test")


def read_patients(path: Path) -> dict[str, str]:
    """Return the patient ids by image id, and by the image id of what is written if it is a path; {}: no such file.

    Raises
    ------
    AnnotationError
        If the file lacks a column, or gives one cine to two patients; the message names the line, not the patient.
    """
    patients: dict[str, str] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if not set(_NEEDED) <= set(rows.fieldnames or ()):
                msg = f"{path.name}: the columns {list(_NEEDED)} are not both in its first line."
                raise AnnotationError(msg)
            for row in rows:
                _add(patients, row, f"{path.name}: line {rows.line_num}")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, csv.Error) as exc:
        msg = f"{path.name}: cannot be read ({type(exc).__name__}); comma-separated UTF-8 text is accepted."
        raise AnnotationError(msg) from exc
    return patients


def read_parts(path: Path) -> dict[str, str]:
    """Return the part (train, validation or test) of every patient that has one; {}: no such file or column.

    Raises
    ------
    AnnotationError
        As `read_patients`, and if a part has another name or a patient two parts; the message names the line.
    """
    if not read_patients(path):
        return {}
    parts: dict[str, str] = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        for row in rows:
            part = (row.get(COLUMNS[2]) or "").strip()
            if part and part not in _PARTS:
                msg = f"{path.name}: line {rows.line_num} has the split {part!r}; {', '.join(_PARTS)} are accepted."
                raise AnnotationError(msg)
            if part and parts.setdefault(row["patient_id"].strip(), part) != part:
                msg = f"{path.name}: line {rows.line_num} puts a patient in a second part of the split."
                raise AnnotationError(msg)
    return parts


def write_patients(path: Path, rows: Iterable[tuple[str, str, str | None]]) -> None:
    """Write (image_id, patient_id, part) rows in the order of image ids; part None: the patient has none."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    table.writerows((image_id, patient, part or "") for image_id, patient, part in sorted(rows, key=lambda row: row[0]))
    write_atomically(path, text.getvalue().encode())


def _add(patients: dict[str, str], row: dict[str, str], line: str) -> None:
    image, patient_id = ((row[column] or "").strip() for column in _NEEDED)
    if not image or not patient_id:
        msg = f"{line} has an empty 'image_id' or 'patient_id'."
        raise AnnotationError(msg)
    for image_id in {image, escape_path(PurePosixPath(image))}:
        if patients.setdefault(image_id, patient_id) != patient_id:
            msg = f"{line} gives an image to a second patient."
            raise AnnotationError(msg)
