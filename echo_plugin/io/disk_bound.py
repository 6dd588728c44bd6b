# SPDX-License-Identifier: Apache-2.0
"""Bounds for folders of files that can be made again: the longest unused go first."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def drop_longest_unused(paths: Iterable[Path], most_bytes: int) -> None:
    """Delete the files that were not written or touched for longest, until the others take ``most_bytes`` or less."""
    found = []
    for path in paths:
        try:
            status = path.stat()
        except FileNotFoundError:  # another process renamed or dropped it meanwhile
            continue
        found.append((status.st_mtime_ns, status.st_size, path))
    excess = sum(size for _, size, _ in found) - most_bytes
    for _, size, path in sorted(found):
        if excess <= 0:
            return
        path.unlink(missing_ok=True)
        excess -= size
