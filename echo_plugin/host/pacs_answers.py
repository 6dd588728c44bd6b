# SPDX-License-Identifier: Apache-2.0
"""What an archive says in DICOM JSON: one value of an attribute, why an instance was not stored.

References
----------
PS3.18 F.2 (DICOM JSON), 10.5.3 (answer to STOW-RS), PS3.7 annex C (failure reasons)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

DUPLICATE = "273"
"""Failure reason 0111H: an instance of this UID is there already."""


def first_value(item: Mapping[str, Any], tag: str) -> str:
    """Return the first value of an attribute in DICOM JSON as text; empty where there is none."""
    values = (item.get(tag) or {}).get("Value") or [""]
    return str(values[0])


def failure_reasons(answer: httpx.Response) -> set[str]:
    """Return why instances were not stored, as decimal numbers; some archives say it with a status of success.

    Raises
    ------
    json.JSONDecodeError
        If the answer says that it is JSON and is not.
    """
    if not answer.content or "json" not in answer.headers.get("content-type", ""):
        return set()
    content = answer.json()
    failed = content.get("00081198") if isinstance(content, dict) else None
    return {first_value(item, "00081197") for item in (failed or {}).get("Value") or ()}
