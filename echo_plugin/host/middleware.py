# SPDX-License-Identifier: Apache-2.0
"""Middleware: requests of foreign web pages and bodies that are too large are refused before a route sees them.

The server has no sign-in and holds patient data, so a web page that the annotator happens to open must not be able to
read or write through it. A browser names the page's origin in ``Origin`` and the name it looked up in ``Host``;
3D Slicer and command-line clients send no ``Origin``.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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
