# SPDX-License-Identifier: Apache-2.0
"""``patients.csv``: who is on a cine whose file does not say.

Two columns: ``image_id`` (or the path in the study folder) and ``patient_id``; others are passed over.
"""

from __future__ import annotations

import csv
from pathlib import Path, PurePosixPath

from echo_plugin.errors import AnnotationError
from echo_plugin.io.image_id import escape_path

PATIENTS_FILE = "patients.csv"
_COLUMNS = ("image_id", "patient_id")


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
            if not set(_COLUMNS) <= set(rows.fieldnames or ()):
                msg = f"{path.name}: the columns {list(_COLUMNS)} are not both in its first line."
                raise AnnotationError(msg)
            for row in rows:
                _add(patients, row, f"{path.name}: line {rows.line_num}")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, csv.Error) as exc:
        msg = f"{path.name}: cannot be read ({type(exc).__name__}); comma-separated UTF-8 text is accepted."
        raise AnnotationError(msg) from exc
    return patients


def _add(patients: dict[str, str], row: dict[str, str], line: str) -> None:
    image, patient_id = ((row[column] or "").strip() for column in _COLUMNS)
    if not image or not patient_id:
        msg = f"{line} has an empty 'image_id' or 'patient_id'."
        raise AnnotationError(msg)
    for image_id in {image, escape_path(PurePosixPath(image))}:
        if patients.setdefault(image_id, patient_id) != patient_id:
            msg = f"{line} gives an image to a second patient."
            raise AnnotationError(msg)
