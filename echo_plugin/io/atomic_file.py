# SPDX-License-Identifier: Apache-2.0
"""Files that are there whole or not at all, whenever the program or the machine stops."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path

from echo_plugin.errors import EchoError

_TEMPORARY_SUFFIX = ".tmp"


def write_atomically(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Write a file in one step: temporary file beside it, fsync, rename, fsync of the directory.

    ``mode`` : its permissions, before those that the process's umask takes away.

    Raises
    ------
    OSError
        If the system refuses any step; the file is as it was before, and nothing else is left. Only where the last
        step fails is the new content in place already, though not certain to outlive a power cut.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}{_TEMPORARY_SUFFIX}")
    try:
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)  # noqa: PTH105 - the name tests replace
    finally:
        temporary.unlink(missing_ok=True)
    fsync_directory(path.parent)


def replace_atomically(path: Path, make: Callable[[Path], object], *, suffix: str = _TEMPORARY_SUFFIX) -> None:
    """Put the file or link that ``make`` makes at the name it is given, beside ``path``, into its place in one step.

    ``suffix`` : what that name ends in, for a maker that goes by it. `write_atomically` is for content in memory.

    Raises
    ------
    OSError
        If the system refuses any step; what was in the place is as before then, and nothing else is left.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}{suffix}")
    try:
        make(temporary)
        if not temporary.is_symlink():
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_directory(path.parent)


def require_writable(directory: Path) -> None:
    """Raise EchoError unless a file can be made in the existing ``directory``; one is, and is gone again."""
    try:
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as exc:
        msg = f"Folder {directory} cannot be written to ({exc.strerror or exc}); one that can be is needed."
        raise EchoError(msg) from exc


def make_directory(path: Path) -> None:
    """Make a directory, and those above it, to last; nothing happens if it is there."""
    if not path.is_dir():
        make_directory(path.parent)
        path.mkdir(exist_ok=True)
        fsync_directory(path.parent)


def fsync_directory(path: Path) -> None:
    """Make the names in a directory last; Windows keeps them by itself and has no call for it."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_abandoned(directory: Path) -> None:
    """Delete the temporary files that a killed writer left; only for one who holds the lock of all writers."""
    for path in directory.glob(f".*{_TEMPORARY_SUFFIX}"):
        path.unlink(missing_ok=True)
