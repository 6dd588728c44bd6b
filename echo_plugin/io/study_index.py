# SPDX-License-Identifier: Apache-2.0
"""What is known of the files of a study folder, in SQLite: a copy that can always be made again from the files.

Looked at are regular files in nested folders with a suffix of a cine, or named by a UID, and the structured reports
below ``annotations/reports``, which are about cines and are none. A link to a file counts as a file, wherever it
points: nothing that comes over the network makes links, so one was put there on purpose. Links to directories are not
followed (they can run in circles). Names that begin with a dot, and all else in ``annotations``, are ours.

Of a DICOM file it also holds what a query of DICOMweb may ask for (PS3.18 10.6).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any

from pydicom import dcmread
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from echo_plugin.cine import escape_path, is_uid
from echo_plugin.durable import SqliteFile, user_cache
from echo_plugin.errors import UnreadableCineError
from echo_plugin.io.cine_file import CINE_SUFFIXES, read_cine
from echo_plugin.io.dicom_header import is_dicom

logger = logging.getLogger(__name__)

INDEX_FILE = ".echo_index.sqlite"
_VERSION = 2
ANNOTATIONS_DIRECTORY = "annotations"
REPORTS_DIRECTORY = f"{ANNOTATIONS_DIRECTORY}/reports"
"""Where structured reports are stored that came by DICOMweb."""
Stamp = tuple[int, int]
"""(mtime_ns, size) of a file; (-1, -1) where the system does not tell."""

_NO_STAMP = (-1, -1)


STUDY_KEYWORDS = (
    "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "PatientName", "PatientID",
    "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyID", "StudyDescription", "TimezoneOffsetFromUTC",
)  # fmt: skip
SERIES_KEYWORDS = (
    "Modality", "SeriesDate", "SeriesTime", "SeriesDescription", "SeriesInstanceUID", "SeriesNumber",
    "BodyPartExamined", "Manufacturer", "PerformedProcedureStepStartDate", "PerformedProcedureStepStartTime",
)  # fmt: skip
INSTANCE_KEYWORDS = (
    "SOPClassUID", "SOPInstanceUID", "InstanceNumber", "Rows", "Columns", "BitsAllocated", "NumberOfFrames",
    "ContentDate", "ContentTime", "FrameTime",
)  # fmt: skip
_READ = (*STUDY_KEYWORDS, *SERIES_KEYWORDS, *INSTANCE_KEYWORDS, "SpecificCharacterSet")


def tag_of(keyword: str) -> str:
    """Return the eight hexadecimal digits by which DICOM JSON names an attribute.

    >>> tag_of("PatientID")
    '00100020'
    """
    return f"{Tag(tag_for_keyword(keyword) or 0):08X}".upper()


@dataclass(frozen=True)
class DicomInstance:
    """One SOP instance in a file; ``attributes`` is DICOM JSON (PS3.18 F) of those that a query may ask for."""

    path: Path
    stamp: Stamp
    study_uid: str
    series_uid: str
    sop_uid: str
    transfer_syntax_uid: str
    attributes: Mapping[str, Any] = field(repr=False)

    def text(self, keyword: str) -> str:
        """Return the first value of an indexed attribute as text; empty where there is none."""
        values = self.attributes.get(tag_of(keyword), {}).get("Value") or [""]
        return str(values[0])


@dataclass(frozen=True)
class IndexedFile:
    """One file as it was when it was read.

    ``path`` : relative to the study folder, as the system's bytes. ``mtime_ns, size`` : when it was looked at.
    ``sop_instance_uid`` and the rest: None where not known. ``error`` : why it cannot be read; None: it can.
    ``is_cine`` : False of a report. ``dicom`` : the record of a `DicomInstance` as JSON; None: it is none, or, of a
    file that comes from the index, not asked for.
    """

    path: bytes
    mtime_ns: int
    size: int
    image_id: str
    sop_instance_uid: str | None = None
    study_instance_uid: str | None = None
    series_instance_uid: str | None = None
    patient_id: str | None = field(default=None, repr=False)
    frames: int | None = None
    height: int | None = None
    width: int | None = None
    frame_time_ms: float | None = None
    error: str | None = None
    is_cine: bool = True
    dicom: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class CineEntry:
    """One image file of a study folder.

    ``frames, height, width`` : None where the file cannot be read. ``patient_id``, the UIDs, ``frame_time_ms`` : None
    where not known. ``error`` : why the file is not used, one sentence; None: it is. ``header_patient_id`` : who the
    file itself says, whatever patients.csv does; None: it does not.
    """

    image_id: str
    path: Path
    patient_id: str | None = field(default=None, repr=False)
    study_instance_uid: str | None = None
    series_instance_uid: str | None = None
    frames: int | None = None
    height: int | None = None
    width: int | None = None
    frame_time_ms: float | None = None
    error: str | None = None
    header_patient_id: str | None = field(default=None, repr=False)


_COLUMNS = [column.name for column in fields(IndexedFile)]
_SCHEMA = (
    f"CREATE TABLE files ({', '.join(_COLUMNS)}, PRIMARY KEY (path))",
    "CREATE INDEX files_by_image_id ON files (image_id)",
)
_SELECT = f"SELECT {', '.join(_COLUMNS[:-1])} FROM files WHERE is_cine"


class StudyIndex:
    """The table of files at ``path``; several programs may use one.

    Raises
    ------
    sqlite3.Error, OSError
        If the file can be neither opened nor made.
    """

    def __init__(self, path: Path) -> None:
        self._file = SqliteFile(path, _SCHEMA, _VERSION)

    def stamps(self) -> dict[bytes, Stamp]:
        """Return (mtime_ns, size) by path."""
        return {
            path: (mtime_ns, size) for path, mtime_ns, size in self._file.rows("SELECT path, mtime_ns, size FROM files")
        }

    def put(self, files: Iterable[IndexedFile]) -> None:
        """Add files, or replace what was known of them."""
        places = ", ".join("?" * len(_COLUMNS))
        with self._file.changing() as connection:
            connection.executemany(f"INSERT OR REPLACE INTO files VALUES ({places})", [astuple(f) for f in files])

    def remove(self, paths: Iterable[bytes]) -> None:
        """Forget files."""
        with self._file.changing() as connection:
            connection.executemany("DELETE FROM files WHERE path = ?", [(path,) for path in paths])

    def files(self) -> list[IndexedFile]:
        """Return all image files in the order of their paths."""
        return [IndexedFile(*row) for row in self._file.rows(f"{_SELECT} ORDER BY path")]

    def image_ids(self) -> list[str]:
        """Return the image ids of the files that can be read, in the order of their paths, copies once."""
        rows = self._file.rows("SELECT image_id FROM files WHERE is_cine AND error IS NULL ORDER BY path")
        return list(dict.fromkeys(image_id for (image_id,) in rows))

    def files_of(self, image_id: str) -> list[IndexedFile]:
        """Return the image files that have an image id, in the order of their paths."""
        return [IndexedFile(*row) for row in self._file.rows(f"{_SELECT} AND image_id = ? ORDER BY path", (image_id,))]

    def instances(self, root: Path) -> dict[str, DicomInstance]:
        """Return the DICOM instances, reports too, by SOP Instance UID in the order of paths; of one UID the first."""
        found: dict[str, DicomInstance] = {}
        query = "SELECT path, mtime_ns, size, dicom FROM files WHERE dicom IS NOT NULL ORDER BY path"
        for path, mtime_ns, size, record in self._file.rows(query):
            instance = DicomInstance(root / os.fsdecode(path), (mtime_ns, size), *json.loads(record))
            found.setdefault(instance.sop_uid, instance)
        return found


def open_index(root: Path, index_path: Path | None = None) -> StudyIndex:
    """Return the index of the study folder ``root``: at ``index_path``, in the folder, or in the user's cache.

    Raises
    ------
    sqlite3.Error
        If an ``index_path`` is given and cannot be used, or no place can be written to.
    """
    if index_path is not None:
        return StudyIndex(index_path)
    try:
        return StudyIndex(root / INDEX_FILE)
    except (sqlite3.Error, OSError) as exc:
        cache = user_cache()
        name = f"{hashlib.sha256(os.fsencode(root)).hexdigest()[:24]}.sqlite"
        logger.warning("Study folder cannot be written to (%s); its index is kept in the user's cache: %s", exc, name)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        cache.chmod(0o700)  # the index names patients: other users of this machine may have no right to the study
        return StudyIndex(cache / name)
    except (sqlite3.Error, OSError) as exc:
        logger.warning("The user's cache cannot be written to (%s); the index is made anew at every start", exc)
        return StudyIndex(Path(tempfile.mkdtemp(prefix="monailabel-echo-")) / name)


def find_files(root: Path) -> dict[bytes, Stamp]:
    """Return the stamps of all image files and reports, by their path relative to ``root`` in the system's bytes."""
    found = dict(_walk(str(root), ""))
    reports = root / REPORTS_DIRECTORY
    if reports.is_dir():
        found |= dict(_walk(str(reports), REPORTS_DIRECTORY))
    return {os.fsencode(relative): stamp for relative, stamp in found.items()}


def is_report(relative: bytes) -> bool:
    """Whether a file that `find_files` has found is a structured report, no image."""
    return relative.startswith(os.fsencode(ANNOTATIONS_DIRECTORY + os.sep))


def is_image_name(name: str) -> bool:
    """Whether a file of this name is looked at."""
    suffix = Path(name).suffix.lower()
    if name.startswith(".") or name.upper() == "DICOMDIR" or (suffix == ".gz" and not name.lower().endswith(".nii.gz")):
        return False
    return suffix in CINE_SUFFIXES or is_uid(name)


def describe_file(root: Path, relative: bytes, stamp: Stamp) -> IndexedFile:
    """Return what a file says of itself; of an image file that cannot be read, why."""
    path = root / os.fsdecode(relative)
    if is_report(relative):
        return IndexedFile(relative, *stamp, "", is_cine=False, dicom=_dicom_record(path))
    image_id = escape_path(PurePosixPath(Path(os.fsdecode(relative)).as_posix()))
    try:
        cine = read_cine(path, image_id=None)
    except UnreadableCineError as exc:
        return IndexedFile(relative, *stamp, image_id, error=str(exc), dicom=_dicom_record(path))
    except Exception as exc:  # one file must never keep the others from being listed
        logger.exception("File %r stopped its reader", path.name)
        return IndexedFile(
            relative, *stamp, image_id, error=f"File {path.name!r} cannot be read ({type(exc).__name__})."
        )
    return IndexedFile(
        relative,
        *stamp,
        image_id=cine.sop_instance_uid or image_id,
        sop_instance_uid=cine.sop_instance_uid,
        study_instance_uid=cine.study_instance_uid,
        series_instance_uid=cine.series_instance_uid,
        patient_id=cine.patient_id and cine.patient_id.encode(errors="replace").decode(),
        frames=cine.frame_count,
        height=cine.height,
        width=cine.width,
        frame_time_ms=cine.frame_time_ms,
        dicom=_dicom_record(path) if cine.sop_instance_uid else None,
    )


def _walk(directory: str, relative: str) -> Iterator[tuple[str, Stamp]]:
    """Yield (path relative to the root, stamp) of the image files in and under a directory."""
    try:
        entries = list(os.scandir(directory))
    except OSError as exc:
        logger.warning("Directory %r cannot be listed: %s", relative or ".", exc.strerror)
        return
    for entry in entries:
        here = os.path.join(relative, entry.name)  # noqa: PTH118 - ten thousand Path objects take a second
        if entry.is_dir(follow_symlinks=False):
            if not entry.name.startswith(".") and here != ANNOTATIONS_DIRECTORY:
                yield from _walk(entry.path, here)
        elif is_image_name(entry.name) and (entry.is_file() or _is_broken_link(entry)):
            yield here, _stamp(entry)


def _is_broken_link(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)  # noqa: PTH110 - as above


def _stamp(entry: os.DirEntry[str]) -> Stamp:
    try:
        stat = entry.stat()
    except OSError:
        return _NO_STAMP
    return stat.st_mtime_ns, stat.st_size


def _attributes(dataset: Dataset) -> dict[str, Any]:
    """Return the DICOM JSON of what a query may ask of a data set, one that cannot be converted left empty."""
    answer: dict[str, Any] = {}
    for keyword in _READ:
        if keyword not in dataset:
            continue
        element = dataset[keyword]
        try:
            answer[tag_of(keyword)] = element.to_json_dict(None, 0)
        except Exception:  # values that are against the Standard raise nearly everything
            answer[tag_of(keyword)] = {"vr": element.VR}
    return answer


def _dicom_record(path: Path) -> str | None:
    """Return the record of a file as JSON; None: it is no DICOM instance with the three UIDs."""
    try:
        with path.open("rb") as file:
            if not is_dicom(file.read(4096)):
                return None
            file.seek(0)
            dataset = dcmread(file, stop_before_pixels=True, force=True, specific_tags=list(_READ))
        uids = [str(dataset.get(name) or "") for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")]
        if not all(map(is_uid, uids)):
            return None
        syntax = str(getattr(dataset, "file_meta", Dataset()).get("TransferSyntaxUID") or "1.2.840.10008.1.2")
        return json.dumps([*uids, syntax, _attributes(dataset)])
    except Exception as exc:  # one damaged file must not keep the others from being listed
        logger.warning("File %r is not in DICOMweb: it cannot be read (%s)", path.name, type(exc).__name__)
        return None
