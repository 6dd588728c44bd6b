# SPDX-License-Identifier: Apache-2.0
"""The routes of /dicom-web over the study folder: search (QIDO-RS), retrieve (WADO-RS) and store (STOW-RS).

Ultrasound images and structured reports are looked at before they are stored, and nothing is overwritten. A report that
a person saved in OHIF ("Create SR") also becomes a revision of the annotations of the cines it is about.

It does what OHIF asks. Others miss: rendered pictures and thumbnails, transcoding, attributes in a search that are not
indexed (``/metadata`` has them), fuzzy matching. Own code where `dicomweb_client.file` could have been: that one keeps
a second index which a single thread may use, does not notice new files, inlines bulk data and reads a file once more
for every frame.

References
----------
PS3.18 10.4 (retrieve), 10.5 (store), 10.6 (search), PS3.7 annex C (failure reasons)
"""

from __future__ import annotations

import filecmp
import json
import logging
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import Response
from pydicom import dcmread, uid
from pydicom.dataset import Dataset

from echo_plugin.cine import is_uid
from echo_plugin.durable import make_directory, write_atomically
from echo_plugin.errors import EchoError, UnreadableCineError
from echo_plugin.host.dicom_archive import DicomArchive, Level, parse_query, read_bulk_value, search
from echo_plugin.host.dicomweb_media import (
    DICOM,
    DICOM_JSON,
    OCTETS,
    PartsToFiles,
    frame_media_type,
    multipart,
    require_accepted,
)
from echo_plugin.host.reports import annotate_from_report
from echo_plugin.host.routes import echo_app, run_heavy
from echo_plugin.io.dicom_header import is_dicom
from echo_plugin.io.study_index import REPORTS_DIRECTORY

logger = logging.getLogger(__name__)

router = APIRouter(prefix="/dicom-web")
STUDY = "/studies/{study}"
SERIES = f"{STUDY}/series/{{series}}"
INSTANCE = f"{SERIES}/instances/{{sop}}"
_CHUNK_BYTES = 1 << 20


def archive() -> DicomArchive:
    """Return the archive of the app that is served."""
    return echo_app().dicomweb


def base_url(http: Request) -> str:
    """Return the address of /dicom-web as the client wrote it."""
    return f"{str(http.base_url).rstrip('/')}{router.prefix}"


def dicom_json(content: Any, status: int = 200) -> Response:
    """Return an answer in DICOM JSON."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":"))
    return Response(text.encode(errors="replace"), status, media_type=DICOM_JSON)


def _search(http: Request, level: Level, study: str | None = None, series: str | None = None) -> Response:
    query = parse_query(http.query_params.multi_items())
    instances = archive().studies.instances()
    if study is not None:
        instances = {
            i.sop_uid: i for i in instances.values() if i.study_uid == study and series in (None, i.series_uid)
        }
    return dicom_json(search(instances, query, level, base_url=base_url(http)))


@router.get("/studies", summary="Search for studies")
def search_studies(http: Request) -> Response:
    """Return the studies that match."""
    return _search(http, "study")


@router.get("/series", summary="Search for series")
@router.get(f"{STUDY}/series", summary="Search for series of a study")
def search_series(http: Request) -> Response:
    """Return the series that match."""
    return _search(http, "series", http.path_params.get("study"))


@router.get("/instances", summary="Search for instances")
@router.get(f"{STUDY}/instances", summary="Search for instances of a study")
@router.get(f"{SERIES}/instances", summary="Search for instances of a series")
def search_instances(http: Request) -> Response:
    """Return the instances that match."""
    return _search(http, "instance", http.path_params.get("study"), http.path_params.get("series"))


@router.get(f"{STUDY}/metadata", summary="Headers of a study")
@router.get(f"{SERIES}/metadata", summary="Headers of a series")
@router.get(f"{INSTANCE}/metadata", summary="Header of an instance")
def metadata(http: Request, study: str) -> Response:
    """Return every attribute but the bulk data, which are named by address or, for pixels, left out.

    A damaged file is left out, unless there is no other.
    """
    here, url = archive(), base_url(http)
    headers, failures = [], []
    for instance in here.instances(study, *_below_study(http)):
        try:
            headers.append(here.metadata(instance, url))
        except (UnreadableCineError, OSError) as exc:
            logger.warning("Metadata without %s: %s", instance.path.name, exc)
            failures.append(exc)
    if not headers:
        raise failures[0]
    return dicom_json(headers)


@router.get(STUDY, summary="Files of a study")
@router.get(SERIES, summary="Files of a series")
@router.get(INSTANCE, summary="File of an instance")
def retrieve(http: Request, study: str) -> Response:
    """Return the files as they are stored."""
    instances = archive().instances(study, *_below_study(http))
    accept = http.headers.get("accept", "")
    for instance in instances:
        require_accepted(accept, DICOM, instance.transfer_syntax_uid)
    parts = ((f"{DICOM}; transfer-syntax={i.transfer_syntax_uid}", _chunks(i.path)) for i in instances)
    return multipart(parts, DICOM)


@router.get(f"{INSTANCE}/frames/{{numbers}}", summary="Frames as they are stored")
def frames(http: Request, study: str, series: str, sop: str, numbers: str) -> Response:
    """Return frames by their numbers (1-based, comma-separated, none twice), not transcoded."""
    (instance,) = archive().instances(study, series, sop)
    wanted = _frame_numbers(numbers)
    stored = archive().frames(instance)
    media_type, syntax = frame_media_type(instance.transfer_syntax_uid)
    require_accepted(http.headers.get("accept", ""), media_type, syntax)
    try:
        found = [stored.stored_frame(number - 1) for number in wanted]
    except IndexError as exc:
        raise HTTPException(404, str(exc)) from exc
    answer = multipart([(f"{media_type}; transfer-syntax={syntax}", [frame]) for frame in found], media_type)
    answer.headers["Cache-Control"] = "private, max-age=3600"  # a SOP instance never changes
    return answer


@router.get(f"{INSTANCE}/bulkdata/{{digest}}", summary="A large value")
def bulk_data(study: str, series: str, sop: str, digest: str) -> Response:
    """Return the bytes of a value that metadata name by address."""
    (instance,) = archive().instances(study, series, sop)
    return multipart([(OCTETS, [read_bulk_value(instance.path, digest)])], OCTETS)


def _below_study(http: Request) -> tuple[str | None, str | None]:
    return http.path_params.get("series"), http.path_params.get("sop")


def _frame_numbers(text: str) -> list[int]:
    numbers = text.split(",")
    if not all(number.isdecimal() and len(number) < 8 for number in numbers):
        msg = f"Frame list {text[:40]!r} is malformed; 1-based numbers parted by commas are accepted."
        raise ValueError(msg)
    if len(set(map(int, numbers))) < len(numbers):  # an answer could be of any size
        msg = f"Frame list {text[:40]!r} names a frame twice; each number once is accepted."
        raise ValueError(msg)
    return [int(number) for number in numbers]


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


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
        parts = PartsToFiles(http.headers.get("content-type", ""), Path(folder))
        async for chunk in http.stream():
            parts.write(chunk)
        parts.close()
        if not parts.paths:
            msg = "The body has no part; at least one DICOM instance is accepted."
            raise ValueError(msg)

        def keep() -> list[Outcome]:
            with _STORING:
                outcomes = [store_file(here, path, study) for path in parts.paths]
            here.studies.refresh()
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
    here.studies.refresh()
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
    known = here.studies.instances().get(outcome.sop_uid)
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
