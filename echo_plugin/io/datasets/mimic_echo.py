# SPDX-License-Identifier: Apache-2.0
"""MIMIC-IV-ECHO (PhysioNet, credentialed): DICOM cines of adults without labels.

    echo-record-list.csv: subject_id, study_id, acquisition_datetime, dicom_filepath
    files/pNN/p<subject_id>/s<study_id>/<study_id>_NNNN.dcm

The patient is the table's ``subject_id``, never the path's. In the study folder a file stands in the folder of its
study, so that no path names a patient.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from echo_plugin.io.datasets.source_cine import (
    AbsentFileError,
    DataSet,
    LeftOut,
    NotTakenError,
    SourceCine,
    folder_in,
    named_file,
    read_table,
)
from echo_plugin.io.study_index import is_image_name

COLUMNS = ("subject_id", "study_id", "dicom_filepath")
NOTES = ("The data set has no labels of views or defects: cines to label, or to learn from without labels.",)


def read_mimic_echo(src: Path) -> DataSet:
    """Return those cines of MIMIC-IV-ECHO whose files are in ``src``.

    Raises
    ------
    DataSetError
        If the table is missing or lacks a column.
    """
    root = folder_in(src, ("",), "echo-record-list.csv", "echo-record-list.csv beside files/")
    return DataSet(_cines(root, read_table(root / "echo-record-list.csv", COLUMNS)), NOTES)


def _cines(root: Path, rows: list[dict[str, str]]) -> Iterator[SourceCine | LeftOut]:
    absent, named = 0, set()
    for row in rows:
        named.add(PurePosixPath(row["dicom_filepath"]))
        name = PurePosixPath(row["dicom_filepath"]).name
        try:
            source = named_file(root, row["dicom_filepath"])
            if not row["subject_id"] or not row["study_id"].isalnum():
                msg = "the table lacks its subject_id or study_id"
                raise NotTakenError(msg)
        except AbsentFileError:  # half a million rows: most people hold a part of the files
            absent += 1
            continue
        except NotTakenError as exc:
            yield LeftOut(name, str(exc))
            continue
        yield SourceCine(PurePosixPath(row["study_id"], name), source, row["subject_id"])
    if absent:
        yield LeftOut("echo-record-list.csv", "the table names them, but the files are not there", absent)
    found = (path.relative_to(root) for path in (root / "files").rglob("*") if is_image_name(path.name))
    if unnamed := sum(PurePosixPath(path.as_posix()) not in named and (root / path).is_file() for path in found):
        yield LeftOut("files", "echo-record-list.csv does not name them", unnamed)
