# SPDX-License-Identifier: Apache-2.0
"""How an archive is connected to: connections stay open, and a question that met a closed one is asked again.

An archive ends connections that were quiet for a while, sometimes in the moment when the next question is under way.
"""

from __future__ import annotations

import logging
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpx

TIMEOUT = httpx.Timeout(60.0, connect=10.0)
ATTEMPTS = 3
_HARMLESS = ("GET", "HEAD")
_SAY_ADDRESSES = ("httpx", "httpcore.http11")
"""Loggers that write what was asked, or the headers of an answer, where a redirect repeats it."""
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
