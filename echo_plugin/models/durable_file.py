# SPDX-License-Identifier: Apache-2.0
"""Files that are either wholly there or not at all, and directories with one writer at a time."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: one writing process at a time
    fcntl = None  # type: ignore[assignment]

_writer_lock = threading.Lock()


@contextmanager
def only_writer(directory: Path) -> Iterator[None]:
    """Keep other threads and processes that ask the same from writing here meanwhile; a killed holder lets go."""
    with _writer_lock:
        if fcntl is None:
            yield
            return
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def write_synced(path: Path, content: bytes) -> None:
    """Replace ``path`` in one step by a file that is already on the disk."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name.lstrip('.')}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)  # mkstemp made it private to its user
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def sync_directory(directory: Path) -> None:
    """Put the names in the directory on the disk."""
    if fcntl is None:  # Windows cannot sync a directory
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
