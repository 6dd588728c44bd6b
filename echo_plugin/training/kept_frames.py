# SPDX-License-Identifier: Apache-2.0
"""The cache of prepared frames: a file for each cine, so that a new label costs one; the longest unused go first."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echo_plugin.io.atomic_file import write_atomically
from echo_plugin.io.disk_bound import drop_longest_unused

Array = NDArray[Any]

FOLDER = "cines"
MOST_BYTES = 16 * 2**30
"""What a cache may take on the disk: detector, views and defects of some ten thousand cines."""


def kept_path(cache_dir: Path, key: str) -> Path:
    """Return the file of a cine; ``key`` tells its picture, its frames and how they were prepared."""
    return cache_dir / FOLDER / f"{key}.npz"


def read_kept(path: Path) -> tuple[Array, Array] | None:
    """Return pixels and targets, noting that they are in use; None: not there, or damaged."""
    try:
        with np.load(path) as arrays:
            found = arrays["pixels"], arrays["targets"]
        os.utime(path)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return found


def keep(path: Path, pixels: Array, targets: Array) -> None:
    """Write pixels and targets of a cine."""
    content = io.BytesIO()
    np.savez(content, pixels=pixels, targets=targets)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content.getvalue(), mode=0o600)


def bound_cache(cache_dir: Path) -> None:
    """Delete the files that were not in use for longest, down to ``MOST_BYTES``."""
    drop_longest_unused((cache_dir / FOLDER).iterdir(), MOST_BYTES)
