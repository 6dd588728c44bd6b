# SPDX-License-Identifier: Apache-2.0
"""The mark of a folder of phantoms: what it was made with, so that nothing else is ever written into it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from echo_plugin.io.atomic_file import make_directory, write_atomically

_MARKER = "phantom.json"


def claim_folder(out: Path, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that ``out`` was made with; a new or empty folder is marked with ``arguments``.

    Raises
    ------
    ValueError
        If ``out`` holds something that is not of the phantom.
    """
    marker = out / _MARKER
    if marker.exists():
        found: dict[str, Any] = json.loads(marker.read_text(encoding="utf-8"))
        return found
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        msg = f"{out} is not empty and was not made by the phantom; an empty or new folder is accepted."
        raise ValueError(msg)
    make_directory(out)
    write_atomically(marker, (json.dumps(arguments, indent=1) + "\n").encode())
    return dict(arguments)
