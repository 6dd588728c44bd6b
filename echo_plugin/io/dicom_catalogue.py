# SPDX-License-Identifier: Apache-2.0
"""Every DICOM instance of a study folder, images and reports, with what a query may ask of it.

``study_index`` knows the cines; this knows DICOM: also structured reports, and the attributes of PS3.18 10.6. It is an
SQLite file that can be deleted at any time, read into memory once; only files that are new or changed are opened.
Files that are no DICOM are remembered, so that they are not opened again, and never listed.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from echo_plugin.cine import is_uid
from echo_plugin.io.dicom_header import is_dicom
from echo_plugin.io.study_index import ANNOTATIONS_DIRECTORY, Stamp, find_image_files

logger = logging.getLogger(__name__)

REPORTS_DIRECTORY = f"{ANNOTATIONS_DIRECTORY}/reports"
"""Where structured reports are stored that came by DICOMweb: they are about cines, and are none."""

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
_VERSION = 1
_RESCAN_AFTER_S = 2.0
_FILES_AT_ONCE = 200


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


class DicomCatalogue:
    """The instances of the study folder ``root``, remembered at ``index_path``; safe in threads."""

    def __init__(self, root: Path, index_path: Path) -> None:
        self.root = root.absolute()
        self._lock = threading.Lock()
        self._by_path: dict[bytes, tuple[Stamp, DicomInstance | None]] = {}
        self._instances: dict[str, DicomInstance] = {}
        self._scanned_at = -_RESCAN_AFTER_S
        self._database = _open(index_path)
        for path, mtime_ns, size, record in self._database.execute("SELECT path, mtime_ns, size, record FROM files"):
            stamp = (mtime_ns, size)
            self._by_path[path] = (stamp, _instance(self.root, path, stamp, record))

    def instances(self) -> Mapping[str, DicomInstance]:
        """Return all instances by SOP Instance UID, in the order of paths; files of the last seconds may be missing.

        Of several files with one UID the first path counts.
        """
        with self._lock:
            if time.monotonic() - self._scanned_at > _RESCAN_AFTER_S:
                self._scan()
        return self._instances

    def refresh(self) -> None:
        """Look for new, changed and vanished files now."""
        with self._lock:
            self._scan()

    def _scan(self) -> None:
        found = find_image_files(self.root)
        reports = find_image_files(self.root / REPORTS_DIRECTORY) if (self.root / REPORTS_DIRECTORY).is_dir() else {}
        found |= {os.fsencode(REPORTS_DIRECTORY) + b"/" + path: stamp for path, stamp in reports.items()}
        changed = sorted(path for path, stamp in found.items() if self._by_path.get(path, (None,))[0] != stamp)
        gone = [path for path in self._by_path if path not in found]
        for path in gone:
            del self._by_path[path]
        if gone:
            with self._database:
                self._database.executemany("DELETE FROM files WHERE path = ?", [(path,) for path in gone])
        for start in range(0, len(changed), _FILES_AT_ONCE):
            self._read({path: found[path] for path in changed[start : start + _FILES_AT_ONCE]})
        if changed or gone or not self._instances:
            ordered: dict[str, DicomInstance] = {}
            for path in sorted(self._by_path):
                instance = self._by_path[path][1]
                if instance is not None:
                    ordered.setdefault(instance.sop_uid, instance)
            self._instances = ordered
        self._scanned_at = time.monotonic()

    def _read(self, stamps: Mapping[bytes, Stamp]) -> None:
        rows: list[tuple[bytes, int, int, str | None]] = []
        for path, stamp in stamps.items():
            record = _describe(self.root / os.fsdecode(path))
            rows.append((path, *stamp, record))
            self._by_path[path] = (stamp, _instance(self.root, path, stamp, record))
        with self._database:
            self._database.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", rows)


def attributes_of(dataset: Dataset, keywords: Iterable[str]) -> dict[str, Any]:
    """Return the DICOM JSON of those attributes that a data set has, one that cannot be converted left empty."""
    answer: dict[str, Any] = {}
    for keyword in keywords:
        if keyword not in dataset:
            continue
        element = dataset[keyword]
        try:
            answer[tag_of(keyword)] = element.to_json_dict(None, 0)
        except Exception:  # values that are against the Standard raise nearly everything
            answer[tag_of(keyword)] = {"vr": element.VR}
    return answer


def _describe(path: Path) -> str | None:
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
        return json.dumps([*uids, syntax, attributes_of(dataset, _READ)])
    except Exception as exc:  # one damaged file must not keep the others from being listed
        logger.warning("File %r is not in DICOMweb: it cannot be read (%s)", path.name, type(exc).__name__)
        return None


def _instance(root: Path, path: bytes, stamp: Stamp, record: str | None) -> DicomInstance | None:
    return None if record is None else DicomInstance(root / os.fsdecode(path), stamp, *json.loads(record))


def _open(path: Path) -> sqlite3.Connection:
    """Return the index, made anew where it is of another version or damaged; one thread at a time uses it."""
    for attempt in range(2):
        connection = sqlite3.connect(path, timeout=30.0, check_same_thread=False)
        try:
            if connection.execute("PRAGMA user_version").fetchone() != (_VERSION,):
                with connection:
                    connection.execute("DROP TABLE IF EXISTS files")
                    connection.execute("CREATE TABLE files (path PRIMARY KEY, mtime_ns, size, record)")
                    connection.execute(f"PRAGMA user_version = {_VERSION}")
            connection.execute("SELECT record FROM files LIMIT 1").fetchone()
            break
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError:
            connection.close()
            path.unlink(missing_ok=True)
            if attempt:
                raise
    return connection
