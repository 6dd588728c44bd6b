# SPDX-License-Identifier: Apache-2.0
"""What several routes do with a request: find the app, check parameters, take in a file, work off the event loop.

What is refused before it reaches a route: foreign web pages, and bodies that are too large.

The server has no sign-in and holds patient data, so a web page that the annotator happens to open must not be able to
read or write through it. A browser names the page's origin in ``Origin`` and the name it looked up in ``Host``;
3D Slicer and command-line clients send no ``Origin``.
"""

from __future__ import annotations

import ipaddress
import json
import socket
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import anyio
from anyio.to_thread import run_sync
from fastapi import UploadFile
from monailabel.interfaces.utils.app import app_instance
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from echo_plugin.errors import UnreadableCineError
from echo_plugin.host.app import EchoApp
from echo_plugin.io.cine_file import CINE_SUFFIXES

Answer = TypeVar("Answer")

HEAVY = anyio.CapacityLimiter(2)
"""How many predictions and renderings run or wait in threads of their own, so that light requests always find one."""


async def run_heavy(work: Callable[[], Answer]) -> Answer:
    """Run work off the event loop, two at a time."""
    return await run_sync(work, limiter=HEAVY)


def echo_app() -> EchoApp:
    """Return the app that is served."""
    instance = app_instance()
    assert isinstance(instance, EchoApp)
    return instance


def parse_object(text: str, what: str = "params") -> dict[str, Any]:
    """Return the JSON object of a form field; empty text is an empty object.

    Raises
    ------
    ValueError
        If it is no JSON object.
    """
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError) as exc:
        msg = f"Parameter {what!r} is no JSON ({exc})."
        raise ValueError(msg) from exc
    if not isinstance(value, dict):
        msg = f"Parameter {what!r} is a JSON {type(value).__name__}; an object is accepted."
        raise ValueError(msg)
    return value


def require_no_override(params: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return ``params`` if they do not name again what the address has said.

    Raises
    ------
    ValueError
        If they do.
    """
    for name in names:
        if name in params:
            msg = f"Parameter {name!r} may not stand in the params; the address of the request says it."
            raise ValueError(msg)
    return params


def store_upload(file: UploadFile) -> Path:
    """Write an uploaded cine to a temporary file, which is the caller's to delete.

    Raises
    ------
    UnreadableCineError
        If its suffix is that of no cine.
    """
    suffix = Path(file.filename or "").suffix.lower()
    if suffix not in CINE_SUFFIXES:
        accepted = ", ".join(sorted(s for s in CINE_SUFFIXES if s))
        msg = f"Uploaded file: {suffix[:20]!r} is no suffix of a cine; {accepted} are accepted."
        raise UnreadableCineError(msg)
    with tempfile.NamedTemporaryFile(suffix=suffix, delete=False) as stream:
        while chunk := file.file.read(1 << 20):
            stream.write(chunk)
    return Path(stream.name)


LOOPBACK_ORIGIN = r"https?://(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d{1,5})?"
"""The origins, besides the configured ones, whose pages may call the server."""


def is_loopback(hostname: str | None) -> bool:
    """Whether a host name or address is this machine's loopback interface."""
    if hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(hostname or "").is_loopback
    except ValueError:
        return False


class TrustedPagesOnly:
    """Refuse requests that a foreign web page made a browser send.

    Parameters
    ----------
    app
        What is protected.
    origins
        Further origins (``https://viewer.hospital.example``) whose pages, and whose host names, are trusted.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str] = ()) -> None:
        self.app = app
        self.origins = {origin.rstrip("/") for origin in origins}
        self.hostnames = {urlsplit(origin).hostname for origin in self.origins} | {
            "localhost",
            socket.gethostname().lower(),
            socket.getfqdn().lower(),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(Headers(scope=scope)) if scope["type"] in ("http", "websocket") else None
        if refusal is None:
            await self.app(scope, receive, send)
        else:
            await JSONResponse({"detail": refusal}, status_code=403)(scope, receive, send)

    def _refusal(self, headers: Headers) -> str | None:
        host = headers.get("host", "")
        hostname = _hostname(f"//{host}")
        if not (_is_address(hostname) or hostname in self.hostnames):
            return f"Host {host[:80]!r} is not this server; list it in MONAI_LABEL_CORS_ORIGINS if it is."
        origin = headers.get("origin")
        if origin is None or origin in self.origins or is_loopback(_hostname(origin)):
            return None
        if origin.partition("://")[2] == host:
            return None
        return f"Pages of {origin[:80]!r} may not use this server; MONAI_LABEL_CORS_ORIGINS lists those that may."


def _hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _is_address(hostname: str | None) -> bool:
    # A page can make a name of its own point here, but it cannot be served from an address that is ours.
    try:
        ipaddress.ip_address(hostname or "")
    except ValueError:
        return False
    return True


class UploadLimit:
    """Refuse bodies above ``limit_bytes``: at once when the header says so, else while they arrive."""

    def __init__(self, app: ASGIApp, limit_bytes: int) -> None:
        self.app = app
        self.limit_bytes = limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdigit() and int(declared) > self.limit_bytes:
            await JSONResponse({"detail": self._sentence}, status_code=413)(scope, receive, send)
            return
        received = 0

        async def receive_within_limit() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.limit_bytes:
                raise HTTPException(status_code=413, detail=self._sentence)
            return message

        await self.app(scope, receive_within_limit, send)

    @property
    def _sentence(self) -> str:
        return f"The upload exceeds the limit of {self.limit_bytes >> 20} MiB; MONAILABEL_ECHO_UPLOAD_MIB raises it."
