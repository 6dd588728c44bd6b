# SPDX-License-Identifier: Apache-2.0
"""A cine by its path alone, with the image id and the patient that it has in the study folder it lies in.

A study folder is told by its annotations or its patients.csv. Nothing is written: a folder that is none gets no index.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path, PurePosixPath

from echo_plugin.cine import Cine
from echo_plugin.io.cine_file import read_cine
from echo_plugin.io.file_stamp import file_stamp
from echo_plugin.io.image_id import escape_path
from echo_plugin.io.patients_file import PATIENTS_FILE, read_patients
from echo_plugin.io.study_scan import ANNOTATIONS_DIRECTORY


def read_study_cine(path: Path) -> Cine:
    """Return the cine of a file as its study folder, the nearest one above it, knows it; of a file in none as it is.

    Raises
    ------
    UnreadableCineError
        If the file cannot be read as a cine.
    AnnotationError
        If the patients.csv of the study folder is malformed.
    """
    cine = read_cine(path)
    place = path.parent.resolve() / path.name  # a link to a file counts as a file of the folder that the link is in
    root = next((folder for folder in place.parents if _is_study_folder(folder)), None)
    if root is None:
        return cine
    image_id = cine.sop_instance_uid or escape_path(PurePosixPath(place.relative_to(root).as_posix()))
    table = root / PATIENTS_FILE
    return replace(
        cine, image_id=image_id, patient_id=cine.patient_id or _patients(table, file_stamp(table)).get(image_id)
    )


def _is_study_folder(folder: Path) -> bool:
    return (folder / ANNOTATIONS_DIRECTORY).is_dir() or (folder / PATIENTS_FILE).is_file()


@lru_cache(maxsize=4)
def _patients(table: Path, _stamp: tuple[int, int] | None) -> dict[str, str]:
    """Return the patients of a table as it was at that stamp: once for all the cines of a folder."""
    return read_patients(table)
