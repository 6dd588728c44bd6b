# SPDX-License-Identifier: Apache-2.0
"""STOW-RS into the study folder: ultrasound images and structured reports, looked at before they are kept.

A report that a person saved in OHIF ("Create SR") also becomes a revision of the annotations of the cines it is about.

References
----------
PS3.18 10.5 (store), PS3.18 table 10.5.3-1 and PS3.7 annex C (failure reasons)
"""

from __future__ import annotations

import filecmp
import logging
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydicom import dcmread, uid
from pydicom.dataset import Dataset

from echo_plugin.errors import EchoError
from echo_plugin.host.dicom_archive import DicomArchive
from echo_plugin.host.dicomweb import archive, base_url, dicom_json
from echo_plugin.host.multipart_stream import parts_to_files
from echo_plugin.host.report_submission import annotate_from_report
from echo_plugin.host.request_parts import run_heavy
from echo_plugin.io.atomic_file import make_directory, write_atomically
from echo_plugin.io.dicom_catalogue import REPORTS_DIRECTORY
from echo_plugin.io.dicom_header import is_dicom
from echo_plugin.io.image_id import is_uid

logger = logging.getLogger(__name__)

router = APIRouter(prefix="/dicom-web")

IMAGE_CLASSES = frozenset(
    {uid.UltrasoundImageStorage, uid.UltrasoundMultiFrameImageStorage}
    | {"1.2.840.10008.5.1.4.1.1.6", "1.2.840.10008.5.1.4.1.1.3"}  # their retired predecessors
)
REPORT_CLASSES = frozenset(
    {uid.BasicTextSRStorage, uid.EnhancedSRStorage, uid.ComprehensiveSRStorage, uid.Comprehensive3DSRStorage}
)
LARGEST_REPORT_BYTES = 16 << 20
_STORING = threading.Lock()
"""One instance is kept at a time, so that none replaces another of its UID."""
CANNOT_UNDERSTAND, NOT_SUPPORTED, DUPLICATE, NOT_AS_ADDRESSED = 0xC000, 0x0122, 0x0111, 0xA900


class StoreError(EchoError):
    """Raised when an instance is not kept; ``reason`` is its DICOM failure code."""

    def __init__(self, reason: int, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


@dataclass(frozen=True)
class Outcome:
    """What became of one instance; ``problem``: None where it is stored."""

    study_uid: str = ""
    series_uid: str = ""
    sop_class_uid: str = ""
    sop_uid: str = ""
    problem: StoreError | None = None
    note: str | None = None


@router.post("/studies", summary="Store instances")
@router.post("/studies/{study}", summary="Store instances of a study")
async def store(http: Request) -> Response:
    """Store ultrasound images and structured reports; nothing is ever overwritten."""
    study, here = http.path_params.get("study"), archive()
    with tempfile.TemporaryDirectory() as folder:
        paths = await parts_to_files(http.stream(), http.headers.get("content-type", ""), Path(folder))
        if not paths:
            msg = "The body has no part; at least one DICOM instance is accepted."
            raise ValueError(msg)

        def keep() -> list[Outcome]:
            with _STORING:
                outcomes = [store_file(here, path, study) for path in paths]
            here.catalogue.refresh()
            return outcomes

        outcomes = await run_heavy(keep)
    failed = sum(outcome.problem is not None for outcome in outcomes)
    return dicom_json(_answer(outcomes, base_url(http)), 409 if failed == len(outcomes) else 202 if failed else 200)


def store_file(here: DicomArchive, path: Path, study: str | None) -> Outcome:
    """Keep one file in the study folder if it may be kept; ``study``: the one it must belong to, None: any."""
    outcome = Outcome()
    try:
        dataset = _read(path)
        outcome = _identified(dataset)
        _require_addressed(outcome, study)
        note = None
        if outcome.sop_class_uid in IMAGE_CLASSES:
            _keep_image(here, path, outcome)
        elif outcome.sop_class_uid in REPORT_CLASSES:
            note = _keep_report(here, path, outcome, dataset)
        else:
            sentence = f"SOP class {outcome.sop_class_uid[:64]!r} is not kept here; ultrasound images and reports are."
            raise StoreError(NOT_SUPPORTED, sentence)
    except StoreError as exc:
        logger.info("Not stored: %s", exc)
        return replace(outcome, problem=exc)
    return replace(outcome, note=note)


def _identified(dataset: Dataset) -> Outcome:
    return Outcome(
        study_uid=str(dataset.get("StudyInstanceUID", "")),
        series_uid=str(dataset.get("SeriesInstanceUID", "")),
        sop_class_uid=str(dataset.get("SOPClassUID", "")),
        sop_uid=str(dataset.get("SOPInstanceUID", "")),
    )


def _read(path: Path) -> Dataset:
    with path.open("rb") as file:
        if not is_dicom(file.read(4096)):
            raise StoreError(CANNOT_UNDERSTAND, "A part is no DICOM file.")
    try:
        return dcmread(path, stop_before_pixels=True, force=True)
    except Exception as exc:  # parsers of damaged bytes raise nearly everything
        sentence = f"A part has a DICOM header that cannot be parsed ({type(exc).__name__})."
        raise StoreError(CANNOT_UNDERSTAND, sentence) from exc


def _require_addressed(outcome: Outcome, study: str | None) -> None:
    if not all(map(is_uid, (outcome.study_uid, outcome.series_uid, outcome.sop_uid))):
        raise StoreError(CANNOT_UNDERSTAND, "An instance lacks a valid study, series or SOP instance UID.")
    if study not in (None, outcome.study_uid):
        raise StoreError(NOT_AS_ADDRESSED, f"Instance {outcome.sop_uid} is of another study than the address says.")


def _keep_image(here: DicomArchive, path: Path, outcome: Outcome) -> None:
    if _is_there(here, path, outcome):
        return
    try:
        here.studies.add_image(path, f"{outcome.sop_uid}.dcm")
    except EchoError as exc:
        raise StoreError(CANNOT_UNDERSTAND, str(exc).replace(path.name, outcome.sop_uid)) from exc


def _keep_report(here: DicomArchive, path: Path, outcome: Outcome, dataset: Dataset) -> str | None:
    """Keep a report; return why it did not become an annotation, if it should have."""
    if path.stat().st_size > LARGEST_REPORT_BYTES:
        sentence = f"Report {outcome.sop_uid} has more than {LARGEST_REPORT_BYTES >> 20} MiB."
        raise StoreError(CANNOT_UNDERSTAND, sentence)
    if "ContentSequence" not in dataset:
        raise StoreError(CANNOT_UNDERSTAND, f"Report {outcome.sop_uid} has no (0040,A730) 'Content Sequence'.")
    if _is_there(here, path, outcome):
        return None
    content, folder = path.read_bytes(), here.studies.root / REPORTS_DIRECTORY
    try:
        make_directory(folder)
        write_atomically(folder / f"{outcome.sop_uid}.dcm", content)
    except OSError as exc:
        sentence = f"Report {outcome.sop_uid} cannot be written to the study folder ({exc.strerror})."
        raise StoreError(0xA700, sentence) from exc
    here.catalogue.refresh()
    try:
        annotate_from_report(here.studies, content)
    except (EchoError, ValueError) as exc:
        logger.warning("Report %s is kept, but became no annotation: %s", outcome.sop_uid, exc)
        return str(exc)
    except Exception as exc:  # it is kept, and the other instances must be too
        logger.warning("Report %s is kept, but became no annotation (%s)", outcome.sop_uid, type(exc).__name__)
        return f"Report {outcome.sop_uid} became no annotation ({type(exc).__name__})."
    return None


def _is_there(here: DicomArchive, path: Path, outcome: Outcome) -> bool:
    """Whether the same bytes are kept already; another instance of the same UID is refused."""
    known = here.catalogue.instances().get(outcome.sop_uid)
    if known is None:
        return False
    if filecmp.cmp(known.path, path, shallow=False):
        return True
    sentence = f"Instance {outcome.sop_uid} is there already with other content; nothing is overwritten."
    raise StoreError(DUPLICATE, sentence)


def _answer(outcomes: Sequence[Outcome], url: str) -> dict[str, Any]:
    stored, failed = [], []
    for outcome in outcomes:
        item: dict[str, Any] = {
            "00081150": {"vr": "UI", "Value": [outcome.sop_class_uid]},
            "00081155": {"vr": "UI", "Value": [outcome.sop_uid]},
        }
        sentence = str(outcome.problem) if outcome.problem else outcome.note
        if sentence:
            item["00000902"] = {"vr": "LO", "Value": [sentence]}
        if outcome.problem is not None:
            failed.append(item | {"00081197": {"vr": "US", "Value": [outcome.problem.reason]}})
            continue
        place = f"{url}/studies/{outcome.study_uid}/series/{outcome.series_uid}/instances/{outcome.sop_uid}"
        stored.append(item | {"00081190": {"vr": "UR", "Value": [place]}})
    answer: dict[str, Any] = {"00081199": {"vr": "SQ", "Value": stored}} if stored else {}
    return answer | ({"00081198": {"vr": "SQ", "Value": failed}} if failed else {})
