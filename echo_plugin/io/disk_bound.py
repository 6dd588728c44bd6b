# SPDX-License-Identifier: Apache-2.0
"""Bounds for folders of files that can be made again: the longest unused go first."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from echo_plugin.io.file_stamp import file_stamp


def drop_longest_unused(paths: Iterable[Path], most_bytes: int) -> None:
    """Delete the files that were not written or touched for longest, until the others take ``most_bytes`` or less."""
    # another process may rename or drop one meanwhile: it has no stamp then
    found = [(*stamp, path) for path in paths if (stamp := file_stamp(path)) is not None]
    excess = sum(size for _, size, _ in found) - most_bytes
    for _, size, path in sorted(found):
        if excess <= 0:
            return
        path.unlink(missing_ok=True)
        excess -= size
