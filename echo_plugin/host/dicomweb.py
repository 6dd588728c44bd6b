# SPDX-License-Identifier: Apache-2.0
"""The routes of /dicom-web over the study folder: search (QIDO-RS) and retrieve (WADO-RS); storing is beside.

Own code where `dicomweb_client.file` could have been: that one keeps a second index which a single thread may use,
does not notice new files, inlines bulk data and reads a file once more for every frame.

References
----------
PS3.18 10.4 (retrieve), 10.6 (search)
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import Response

from echo_plugin.errors import UnreadableCineError
from echo_plugin.host.dicom_archive import DicomArchive
from echo_plugin.host.dicomweb_media import (
    DICOM,
    DICOM_JSON,
    OCTETS,
    frame_media_type,
    multipart,
    require_accepted,
)
from echo_plugin.host.dicomweb_picture import THUMBNAIL_PX, draw, picture_type, viewport
from echo_plugin.host.dicomweb_query import Level, parse_query, search
from echo_plugin.host.request_parts import echo_app, run_heavy
from echo_plugin.io.dicom_catalogue import DicomInstance
from echo_plugin.io.dicom_json import read_bulk_value

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
    """Return an answer in DICOM JSON; NaN and Infinity, which JSON does not know, are null."""
    encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":"))
    try:
        text = encoder.encode(content)
    except ValueError:  # rare: a long list is not gone through twice for it
        text = encoder.encode(_finite(content))
    return Response(text.encode(errors="replace"), status, media_type=DICOM_JSON)


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _search(http: Request, level: Level, study: str | None = None, series: str | None = None) -> Response:
    query = parse_query(http.query_params.multi_items())
    here, url = archive(), base_url(http)
    instances = here.catalogue.instances()
    if study is not None:
        instances = {
            i.sop_uid: i for i in instances.values() if i.study_uid == study and series in (None, i.series_uid)
        }
    return dicom_json(search(instances, query, level, base_url=url, header=lambda i: _header(here, i, url)))


def _header(here: DicomArchive, instance: DicomInstance, url: str) -> dict[str, Any]:
    """Return the header of an instance; empty for a damaged or vanished file, which must not spoil a whole search."""
    try:
        return here.metadata(instance, url)
    except (UnreadableCineError, OSError) as exc:
        logger.warning("Search without the header of %s (%s)", instance.sop_uid, type(exc).__name__)
    return {}


@router.get("/studies", summary="Search for studies")
def search_studies(http: Request) -> Response:
    """Return the studies that match."""
    return _search(http, "study")


@router.get("/series", summary="Search for series")
@router.get(f"{STUDY}/series", summary="Search for series of a study")
def search_series(http: Request, study: str | None = None) -> Response:
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


@router.get(f"{INSTANCE}/rendered", summary="A frame as a picture")
@router.get(f"{INSTANCE}/frames/{{numbers}}/rendered", summary="A frame as a picture")
@router.get(f"{INSTANCE}/thumbnail", summary="A small picture of an instance")
@router.get(f"{SERIES}/thumbnail", summary="A small picture of a series")
@router.get(f"{STUDY}/thumbnail", summary="A small picture of a study")
async def rendered(http: Request, study: str) -> Response:
    """Return one frame, the middle one if none is named, as JPEG or PNG; ``viewport=width,height`` bounds it.

    See ``dicomweb_picture`` for its proportions.
    """
    numbers = http.path_params.get("numbers")
    is_thumbnail = http.url.path.endswith("/thumbnail")
    bounds = viewport(http.query_params.get("viewport")) or ((THUMBNAIL_PX, THUMBNAIL_PX) if is_thumbnail else None)
    media_type = picture_type(http.headers.get("accept", ""))

    def find_and_draw() -> bytes:
        # a report has no picture: the first image of the series or study is shown
        found = [i for i in archive().instances(study, *_below_study(http)) if i.text("Rows")]
        if not found:
            raise HTTPException(406, "There is no picture: the instance is no image.")
        stored = archive().frames(found[0])
        number = _frame_numbers(numbers)[0] if numbers else (stored.shape[0] + 1) // 2
        if not 1 <= number <= stored.shape[0]:
            raise HTTPException(404, f"Frame number {number} does not exist; 1 to {stored.shape[0]} are accepted.")
        return draw(stored, number - 1, bounds, media_type)

    return Response(await run_heavy(find_and_draw), media_type=media_type)


@router.get(f"{INSTANCE}/bulkdata/{{place:path}}", summary="A large value")
def bulk_data(study: str, series: str, sop: str, place: str) -> Response:
    """Return the bytes of a value that metadata name by address."""
    (instance,) = archive().instances(study, series, sop)
    value = read_bulk_value(instance.path, place.split("/"))
    return multipart([(OCTETS, [value])], OCTETS)


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
