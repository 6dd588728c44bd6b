# SPDX-License-Identifier: Apache-2.0
"""What an archive says in DICOM JSON: read whole up to a bound, one value of an attribute, why it did not store.

References
----------
PS3.18 F.2 (DICOM JSON), 10.5.3 (answer to STOW-RS), PS3.7 annex C (failure reasons)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import httpx

from echo_plugin.errors import EchoError

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
