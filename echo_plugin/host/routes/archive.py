# SPDX-License-Identifier: Apache-2.0
"""The routes of /dicom-web with ``--pacs``: passed through to the archive as they are, and to nowhere else.

Query string, Accept, status and body are the archive's. Only the paths of DICOMweb below its base address can be named;
a redirect is not followed. In DICOM JSON the archive's own address becomes ours, so that a browser asks here for bulk
data too. A report that a person saved in OHIF also becomes a revision of the annotations it is about.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import tempfile
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO

import httpx
from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from echo_plugin.errors import EchoError
from echo_plugin.host.dicomweb_media import DICOM_JSON, PartsToFiles
from echo_plugin.host.pacs import Pacs, PacsError, first_value, read_whole_async
from echo_plugin.host.reports import annotate_from_report
from echo_plugin.host.routes import echo_app, run_heavy
from echo_plugin.host.routes.dicomweb import base_url
from echo_plugin.io.dicom_sr import read_report

logger = logging.getLogger(__name__)


@asynccontextmanager
async def _connections(_app: object) -> AsyncIterator[None]:
    """Close the connections to the archive with the server."""
    yield
    await pacs().streams.aclose()


router = APIRouter(prefix="/dicom-web", include_in_schema=False, lifespan=_connections)

_PATH = re.compile(r"(?:studies|series|instances|bulkdata)(?:/[A-Za-z0-9_,~-]+(?:\.[A-Za-z0-9_,~-]+)*)*")
"""No empty part, and none that begins with a dot: nothing that could climb out of the base address."""
_ASKED = ("accept", "content-type", "if-none-match", "if-modified-since", "range")
_ANSWERED = (
    "content-type", "content-encoding", "content-location", "etag", "last-modified", "cache-control", "warning",
    "content-range", "retry-after",
)  # fmt: skip
_ENCODINGS = ("gzip", "deflate", "identity")
_LARGEST_REPORT_BYTES = 16 << 20


def pacs() -> Pacs:
    """Return the archive that is served."""
    found = echo_app().pacs
    assert found is not None
    return found


@router.api_route("/{path:path}", methods=["GET", "HEAD", "POST"])
async def pass_through(http: Request, path: str) -> Response:
    """Ask the archive what was asked here, and answer what it answers."""
    archive, asked = pacs(), path.rstrip("/")
    if not _PATH.fullmatch(asked) or "%" in http.scope.get("raw_path", b"").decode("latin-1"):
        raise HTTPException(404, f"Address {path[:80]!r} is none of DICOMweb.")
    query = http.scope["query_string"].decode("latin-1")
    url = f"{archive.url}/{asked}" + (f"?{query}" if query else "")
    headers = {name: http.headers[name] for name in _ASKED if name in http.headers} | archive.headers
    headers["accept-encoding"] = _readable_encodings(http.headers.get("accept-encoding", ""))
    body: BinaryIO | None = await _spooled(http) if http.method == "POST" else None
    try:
        request = archive.streams.build_request(
            http.method, url, headers=headers, content=_chunks(body) if body else None
        )
        answer = await archive.streams.send(request, stream=True)
    except httpx.TimeoutException:
        return JSONResponse({"detail": f"The archive {archive.host} did not answer in time."}, 504)
    except httpx.HTTPError as exc:
        return JSONResponse({"detail": f"The archive {archive.host} cannot be reached ({type(exc).__name__})."}, 502)
    if 300 <= answer.status_code < 400 and answer.status_code != 304:
        await answer.aclose()
        return JSONResponse({"detail": f"The archive {archive.host} redirects elsewhere, which is refused."}, 502)
    return await _answer(http, archive, answer, body if answer.is_success else None)


async def _answer(http: Request, archive: Pacs, answer: httpx.Response, stored: BinaryIO | None) -> Response:
    """Return what the archive answered; ``stored`` : the instances that were sent to it."""
    headers = {name: answer.headers[name] for name in _ANSWERED if name in answer.headers}
    if not answer.headers.get("content-type", "").startswith((DICOM_JSON, "application/json")):
        if "content-length" in answer.headers:
            headers["content-length"] = answer.headers["content-length"]
        if stored is not None:
            logger.warning("No report became an annotation: the archive does not say in JSON what it has stored.")
        return _Streamed(answer, headers)
    try:
        content = await read_whole_async(answer, archive.host)
    except PacsError as exc:
        return JSONResponse({"detail": str(exc)}, 502)
    except httpx.HTTPError as exc:
        return JSONResponse({"detail": f"The archive {archive.host} broke off ({type(exc).__name__})."}, 502)
    finally:
        await answer.aclose()
    if stored is not None:
        try:
            await run_heavy(
                lambda: annotate_from_body(stored, http.headers.get("content-type", ""), stored_uids(content))
            )
        except Exception as exc:  # the archive has it: what fails here must not look like a failure to store
            logger.warning("Reports that the archive has stored became no annotation (%s).", type(exc).__name__)
    headers.pop("content-encoding", None)  # it has been read
    return Response(content.replace(archive.url.encode(), base_url(http).encode()), answer.status_code, headers)


def _readable_encodings(accepted: str) -> str:
    """Return those of the encodings a client accepts that are undone here, where DICOM JSON is read.

    >>> _readable_encodings("gzip, deflate;q=0.5, br, zstd")
    'gzip, deflate;q=0.5'
    """
    names = [name.strip() for name in accepted.split(",")]
    return ", ".join(name for name in names if name.partition(";")[0].strip() in _ENCODINGS) or "identity"


class _Streamed(StreamingResponse):
    """An answer of the archive as it arrives; closed in the end, also when whoever asked has gone."""

    def __init__(self, answer: httpx.Response, headers: dict[str, str]) -> None:
        super().__init__(answer.aiter_raw(), answer.status_code, headers)
        self._opened = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await asyncio.shield(self._opened.aclose())


async def _spooled(http: Request) -> BinaryIO:
    """Return the body of a request, whole, in memory or a temporary file."""
    body: BinaryIO = tempfile.SpooledTemporaryFile(max_size=16 << 20)  # type: ignore[assignment]  # noqa: SIM115
    async for chunk in http.stream():
        body.write(chunk)
    body.seek(0)
    return body


async def _chunks(body: BinaryIO) -> AsyncIterator[bytes]:
    while chunk := body.read(1 << 20):
        yield chunk


def stored_uids(content: bytes) -> set[str]:
    """Return the SOP instances that an answer to a STOW request says are stored (PS3.18 10.5.3).

    >>> stored_uids(b'{"00081199": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": ["1.2"]}}]}}')
    {'1.2'}
    """
    items = (json.loads(content).get("00081199") or {}).get("Value") or []
    return {first_value(item, "00081155") for item in items} - {""}


def annotate_from_body(body: BinaryIO, content_type: str, taken: Collection[str]) -> None:
    """Turn the reports that the archive has ``taken`` into annotations; images among them are passed over."""
    body.seek(0)
    with tempfile.TemporaryDirectory() as folder:
        parts = PartsToFiles(content_type, Path(folder))
        while chunk := body.read(1 << 20):
            parts.write(chunk)
        parts.close()
        for path in parts.paths:
            if path.stat().st_size > _LARGEST_REPORT_BYTES:
                continue
            try:
                content = path.read_bytes()
                if str(read_report(content).get("SOPInstanceUID", "")) in taken:
                    annotate_from_report(echo_app().datastore().studies, content)
            except (EchoError, ValueError) as exc:
                logger.warning("A report that the archive has stored became no annotation: %s", exc)
            except Exception as exc:  # the other reports may be readable
                logger.warning("A report that the archive has stored became no annotation (%s).", type(exc).__name__)
