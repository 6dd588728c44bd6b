# SPDX-License-Identifier: Apache-2.0
"""Texts that clients send about themselves."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_NOT_IN_A_NAME = re.compile(r"[^\w .@+-]")


def annotator(request: Mapping[str, Any]) -> str | None:
    """Return the name by which a client calls its annotator, fit to be stored; None: it says none."""
    name = str(request.get("user") or request.get("client_id") or "")
    return _NOT_IN_A_NAME.sub("", name)[:64].strip() or None
