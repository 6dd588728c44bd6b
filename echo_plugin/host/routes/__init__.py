# SPDX-License-Identifier: Apache-2.0
"""The doors of the server, one file each; here is what they share: the app, parameters, uploads, threads."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import anyio
from anyio.to_thread import run_sync
from fastapi import UploadFile
from monailabel.interfaces.utils.app import app_instance

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
