# SPDX-License-Identifier: Apache-2.0
"""A hospital's DICOMweb archive as a client sees it: list ultrasound instances, fetch one, store a report.

Credentials come from the environment or from a file that only its owner may read, and are never logged. Connections
stay open; an archive ends those that were quiet for a while, sometimes in the moment when the next question is under
way, so a question that met a closed one is asked again.

Own code where `dicomweb_client.web` (0.60) could have been. That one reads answers of any length, follows redirects,
logs the addresses of searches, which name patients, and leaves the port out of ``Host``; it re-reads an instance in
memory, so that other bytes are kept than the archive has; and it sends an instance again after an error, and takes it
for stored if the reason for a failure comes as ``application/dicom+json;charset=utf-8``.

References
----------
PS3.18 F.2 (DICOM JSON), 10.5.3 (answer to STOW-RS), PS3.7 annex C (failure reasons)
"""

from __future__ import annotations

import base64
import json
import logging
import os
import re
import stat
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from echo_plugin.errors import EchoError
from echo_plugin.host.dicomweb_media import DICOM, DICOM_JSON, PartsToFiles

CREDENTIALS_VARIABLE = "MONAILABEL_ECHO_PACS_CREDENTIALS"
"""A file with one line, ``user:password`` or ``Bearer <token>``."""
AUTHORIZATION_VARIABLE = "MONAILABEL_ECHO_PACS_AUTHORIZATION"
"""The same line itself."""
_PAGE = 500
_MOST_INSTANCES = 200_000
_LARGEST_INSTANCE_BYTES = 2 << 30
_FIELDS = "StudyInstanceUID,SeriesInstanceUID,PatientID,NumberOfFrames,Rows,Columns,FrameTime"
TIMEOUT = httpx.Timeout(60.0, connect=10.0)
ATTEMPTS = 3
_HARMLESS = ("GET", "HEAD")
_SAY_ADDRESSES = ("httpx", "httpcore.http11")
"""Loggers that write what was asked, or the headers of an answer, where a redirect repeats it."""
_ENDED = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)
LONGEST_BYTES = 256 << 20
"""The longest answer that is read: 200,000 studies, or 130,000 instances by an archive that sends no pages, or the
headers of 40,000 (Orthanc says 1.3, 2.0 and 6.7 KB of each). What is longer does not end, or would take the memory of
all who are at work: parsed, an answer is six times as large."""
DUPLICATE = "273"
"""Failure reason 0111H: an instance of this UID is there already."""


class PacsError(EchoError):
    """Raised when the archive cannot be reached or answers with an error."""


def read_whole(answer: httpx.Response, host: str) -> bytes:
    """Return the content of an opened answer, decompressed.

    Raises
    ------
    PacsError
        If it has more than ``LONGEST_BYTES``; the rest is not read.
    """
    content = bytearray()
    for chunk in answer.iter_bytes():
        content += chunk
        _require_bounded(content, host)
    return bytes(content)


async def read_whole_async(answer: httpx.Response, host: str) -> bytes:
    """Do what ``read_whole`` does, in an event loop."""
    content = bytearray()
    async for chunk in answer.aiter_bytes():
        content += chunk
        _require_bounded(content, host)
    return bytes(content)


def _require_bounded(content: bytearray, host: str) -> None:
    if len(content) > LONGEST_BYTES:
        msg = f"The archive {host} answered with more than {LONGEST_BYTES >> 20} MiB of JSON; ask for less (limit=100)."
        raise PacsError(msg)


def first_value(item: Mapping[str, Any], tag: str) -> str:
    """Return the first value of an attribute in DICOM JSON as text; empty where there is none."""
    values = (item.get(tag) or {}).get("Value") or [""]
    return str(values[0])


def failure_reasons(answer: bytes, media_type: str) -> set[str]:
    """Return why instances were not stored, as decimal numbers; some archives say it with a status of success.

    Raises
    ------
    ValueError
        If the answer says that it is JSON and is not.
    """
    if not answer or "json" not in media_type:
        return set()
    content = json.loads(answer)
    failed = content.get("00081198") if isinstance(content, dict) else None
    return {first_value(item, "00081197") for item in (failed or {}).get("Value") or ()}


class _Transport(httpx.HTTPTransport):
    """Ask again what can be asked twice; an instance is stored once."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        for _ in range(ATTEMPTS - 1):
            if request.method in _HARMLESS:
                try:
                    return super().handle_request(request)
                except _ENDED:
                    continue
        return super().handle_request(request)


class _AsyncTransport(httpx.AsyncHTTPTransport):
    """The same for an event loop."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        for _ in range(ATTEMPTS - 1):
            if request.method in _HARMLESS:
                try:
                    return await super().handle_async_request(request)
                except _ENDED:
                    continue
        return await super().handle_async_request(request)


def archive_client(headers: dict[str, str]) -> httpx.Client:
    """Return a client for threads that sends ``headers`` with all it asks."""
    _keep_addresses_out_of_logs()
    return httpx.Client(transport=_Transport(**_trusting()), headers=headers, **_plain())


def archive_streams() -> httpx.AsyncClient:
    """Return a client for one event loop."""
    _keep_addresses_out_of_logs()
    return httpx.AsyncClient(transport=_AsyncTransport(**_trusting()), **_plain())


def _keep_addresses_out_of_logs() -> None:
    """Drop what is said below a warning of each request: its address, and a search for a patient names one.

    A filter, and here rather than at import: a process that asks no archive logs as it did, and one that does keeps
    its addresses to itself at whatever level its logging is set to, before or after.
    """
    for name in _SAY_ADDRESSES:
        logging.getLogger(name).addFilter(_is_warning)  # once, however many clients there are


def _is_warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING


def _trusting() -> dict[str, Any]:
    """Return by which authorities an archive is known: also the system's, a hospital's own is among them."""
    authorities = httpx.create_ssl_context(trust_env=False)
    authorities.load_default_certs()
    return {"verify": authorities, "trust_env": False}


def _plain() -> dict[str, Any]:
    """Return that no proxy of the environment is asked and no cookie is kept: what passes is patient data."""
    return {"timeout": TIMEOUT, "trust_env": False, "cookies": CookieJar(DefaultCookiePolicy(allowed_domains=()))}


@dataclass(frozen=True)
class Pacs:
    """The archive at ``url``, the base of its DICOMweb service (it ends without a slash).

    Raises
    ------
    PacsError
        If the address is none of a web service.
    """

    url: str
    authorization: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            msg = f"PACS address {parts.scheme}://{parts.hostname} is not accepted; http(s)://host[:port]/path is."
            raise PacsError(msg)
        if parts.username or parts.password:
            msg = f"PACS address of {parts.hostname} holds a password; put it into {CREDENTIALS_VARIABLE} (a file)."
            raise PacsError(msg)
        object.__setattr__(self, "url", self.url.rstrip("/"))

    @property
    def host(self) -> str:
        """The archive's name, for messages."""
        return urlsplit(self.url).netloc

    @property
    def headers(self) -> dict[str, str]:
        """What every request carries."""
        return {"Authorization": self.authorization} if self.authorization else {}

    def instances(self, modality: str = "US") -> list[dict[str, Any]]:
        """Return the DICOM JSON of every instance of a modality, asked for page by page.

        Raises
        ------
        PacsError
            If the archive cannot be asked.
        """
        found: dict[str, dict[str, Any]] = {}
        while len(found) < _MOST_INSTANCES:
            parameters = {"Modality": modality, "includefield": _FIELDS, "limit": _PAGE, "offset": len(found)}
            page = self._get_json("/instances", parameters)
            new = {uid: item for item in page if (uid := first_value(item, "00080018")) and uid not in found}
            found |= new
            if not new:  # a short page is no end: archives send fewer than asked, or know no paging and repeat
                break
        return list(found.values())

    def fetch(self, study_uid: str, series_uid: str, sop_uid: str, folder: Path) -> Path:
        """Write one instance to a new file in ``folder`` and return its path.

        Raises
        ------
        PacsError
            If the archive does not send it.
        """
        url = f"{self.url}/studies/{study_uid}/series/{series_uid}/instances/{sop_uid}"
        accept = f'multipart/related; type="{DICOM}"; transfer-syntax=*'
        with answering(self.host), self._client.stream("GET", url, headers={"Accept": accept}) as answer:
            self._require_ok(answer)
            paths = _received(answer, folder)
        if len(paths) != 1:
            msg = f"The archive {self.host} sent {len(paths)} parts for instance {sop_uid}; one is expected."
            raise PacsError(msg)
        return paths[0]

    def holds(self, sop_uid: str) -> bool:
        """Return whether the archive has an instance.

        Raises
        ------
        PacsError
            If the archive cannot be asked.
        """
        found = self._get_json("/instances", {"SOPInstanceUID": sop_uid, "limit": 1})
        return any(first_value(item, "00080018") == sop_uid for item in found)  # it may have filtered nothing

    def store(self, content: bytes) -> None:
        """Store one instance.

        Raises
        ------
        PacsError
            If the archive does not take it.
        """
        boundary = uuid.uuid4().hex
        head = f"--{boundary}\r\nContent-Type: {DICOM}\r\n\r\n".encode()
        body = head + content + f"\r\n--{boundary}--\r\n".encode()
        kind = f'multipart/related; type="{DICOM}"; boundary={boundary}'
        with answering(self.host):
            headers = {"Content-Type": kind, "Accept": DICOM_JSON}
            with self._client.stream("POST", f"{self.url}/studies", content=body, headers=headers) as answer:
                said = read_whole(answer, self.host)
            reasons = failure_reasons(said, answer.headers.get("content-type", ""))
        if reasons == {DUPLICATE}:
            return  # stored before: what is sent from here has a UID made of its content
        self._require_ok(answer)
        if reasons:
            msg = f"The archive {self.host} did not store an instance (failure reason {', '.join(sorted(reasons))})."
            raise PacsError(msg)

    def _get_json(self, path: str, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
        headers = {"Accept": DICOM_JSON}
        with answering(self.host):
            with self._client.stream("GET", self.url + path, params=parameters, headers=headers) as answer:
                self._require_ok(answer)
                said = read_whole(answer, self.host)
            if answer.status_code == 204:
                return []
            content = json.loads(said)
        if not isinstance(content, list):
            msg = f"The archive {self.host} answered a search with no list; is {self.url} its DICOMweb address?"
            raise PacsError(msg)
        return content

    @cached_property
    def _client(self) -> httpx.Client:
        return archive_client(self.headers)

    @cached_property
    def streams(self) -> httpx.AsyncClient:
        """The client of the routes that pass through, of one event loop; connections stay open between frames."""
        return archive_streams()

    def _require_ok(self, answer: httpx.Response) -> None:
        if not 200 <= answer.status_code < 300:
            msg = f"The archive {self.host} answered with status {answer.status_code}."
            raise PacsError(msg)


@contextmanager
def answering(host: str) -> Iterator[None]:
    """Turn what the network does into a sentence that names the archive and nothing that was asked."""
    try:
        yield
    except (httpx.HTTPError, ValueError, RecursionError) as exc:  # the last two: JSON that is none, or too deep
        msg = f"The archive {host} cannot be used ({type(exc).__name__}); is its address right, is it on?"
        raise PacsError(msg) from exc


def _received(answer: httpx.Response, folder: Path) -> list[Path]:
    """Write the parts of an answer to files; an archive that sends a bare instance is understood too."""
    kind = answer.headers.get("content-type", "")
    if not kind.startswith("multipart/"):
        descriptor, name = tempfile.mkstemp(".dcm", dir=folder)
        with os.fdopen(descriptor, "wb") as file:
            for chunk in _bounded(answer):
                file.write(chunk)
        return [Path(name)]
    parts = PartsToFiles(kind, folder)
    try:
        for chunk in _bounded(answer):
            parts.write(chunk)
        parts.close()
    except ValueError as exc:
        msg = f"The archive's answer cannot be read: {exc}"
        raise PacsError(msg) from exc
    return parts.paths


def _bounded(answer: httpx.Response) -> Iterator[bytes]:
    received = 0
    for chunk in answer.iter_bytes():
        received += len(chunk)
        if received > _LARGEST_INSTANCE_BYTES:
            msg = f"The archive's instance has more than {_LARGEST_INSTANCE_BYTES >> 30} GiB."
            raise PacsError(msg)
        yield chunk


def authorization_from_environment(environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the Authorization header for the archive; None: none is given.

    Raises
    ------
    PacsError
        If the file cannot be read, or others may read it, or the line is malformed; the line is not repeated.
    """
    line, where = environment.get(AUTHORIZATION_VARIABLE), AUTHORIZATION_VARIABLE
    file = environment.get(CREDENTIALS_VARIABLE)
    if line is None and file:
        where = f"{CREDENTIALS_VARIABLE} ({Path(file).name})"
        line = _read_private(Path(file), where)
    if not line or not line.strip():
        return None
    line = line.strip()
    if re.fullmatch(r"(?:Bearer|Basic) [!-~]+", line):
        return line
    if ":" not in line or not line.isprintable():
        msg = f"{where} is malformed; one line user:password or Bearer token is accepted."
        raise PacsError(msg)
    return "Basic " + base64.b64encode(line.encode()).decode()


def _read_private(file: Path, where: str) -> str:
    try:
        if os.name == "posix" and file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            msg = f"{where} may be read by others; `chmod 600` it."
            raise PacsError(msg)
        return file.read_text(encoding="utf-8").strip()
    except OSError as exc:
        msg = f"{where} cannot be read ({exc.strerror})."
        raise PacsError(msg) from exc
