# SPDX-License-Identifier: Apache-2.0
"""How an archive is connected to: connections stay open, and a question that met a closed one is asked again.

An archive ends connections that were quiet for a while, sometimes in the moment when the next question is under way.
"""

from __future__ import annotations

from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpx

TIMEOUT = httpx.Timeout(60.0, connect=10.0)
ATTEMPTS = 3
_HARMLESS = ("GET", "HEAD")
_ENDED = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)


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
    return httpx.Client(transport=_Transport(**_trusting()), headers=headers, **_plain())


def archive_streams() -> httpx.AsyncClient:
    """Return a client for one event loop."""
    return httpx.AsyncClient(transport=_AsyncTransport(**_trusting()), **_plain())


def _trusting() -> dict[str, Any]:
    """Return by which authorities an archive is known: also the system's, a hospital's own is among them."""
    authorities = httpx.create_ssl_context(trust_env=False)
    authorities.load_default_certs()
    return {"verify": authorities, "trust_env": False}


def _plain() -> dict[str, Any]:
    """Return that no proxy of the environment is asked and no cookie is kept: what passes is patient data."""
    return {"timeout": TIMEOUT, "trust_env": False, "cookies": CookieJar(DefaultCookiePolicy(allowed_domains=()))}
