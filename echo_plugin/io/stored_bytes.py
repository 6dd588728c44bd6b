# SPDX-License-Identifier: Apache-2.0
"""The bytes of a file, read where and when they are asked for; errors that name the file and nothing else.

No file format here. A reader opens the file for every call and closes it again, so that it is safe in threads and
leaves no handle behind, and refuses a file that has been changed since it was looked at.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from echo_plugin.errors import UnreadableCineError


def unreadable(path: Path, problem: str) -> UnreadableCineError:
    """Return the error for a file: its name (never its directory) and the problem, one sentence."""
    return UnreadableCineError(f"File {path.name!r} {problem}")


@contextmanager
def damage_named(path: Path, what: str) -> Iterator[None]:
    """Turn whatever a parser or decoder stumbles over into an UnreadableCineError: "File 'x' has <what>"."""
    try:
        yield
    except UnreadableCineError:
        raise
    except Exception as exc:  # parsers of damaged bytes raise nearly everything; the cause stays attached
        if isinstance(exc, OSError) and exc.errno is not None and exc.filename is not None:  # the system's own
            raise unreadable(path, f"cannot be read: {exc.strerror}.") from exc
        raise unreadable(path, f"has {what} ({type(exc).__name__}); the file is damaged or not supported.") from exc


@dataclass(frozen=True)
class StoredBytes:
    """A file as it was when it was looked at: ``size`` in bytes and time of the last change.

    ``unpacked`` : the bytes themselves where the file holds them compressed as a whole, else None.
    """

    path: Path
    size: int
    changed_ns: int
    unpacked: bytes | None = field(default=None, repr=False)

    @classmethod
    def of(cls, path: Path) -> StoredBytes:
        """Look at a file.

        Raises
        ------
        UnreadableCineError
            If it is missing, not a file, not permitted to read, or empty.
        """
        with damage_named(path, "no bytes"):
            if not path.is_file():  # before it is opened: a pipe would wait for ever
                path.stat()
                raise unreadable(path, "is no regular file; a directory or a device holds no cine.")
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
        if status.st_size == 0:
            raise unreadable(path, "is empty.")
        return cls(path, status.st_size, status.st_mtime_ns)

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Open the bytes for reading and close them again.

        Raises
        ------
        UnreadableCineError
            If the file has gone or is another than the one looked at.
        """
        if self.unpacked is not None:
            yield io.BytesIO(self.unpacked)
            return
        with damage_named(self.path, "unreadable bytes"):
            file = self.path.open("rb")
        with file:
            status = os.fstat(file.fileno())
            if (status.st_size, status.st_mtime_ns) != (self.size, self.changed_ns):
                raise unreadable(self.path, "was changed while it was in use; read it again.")
            yield file

    def exactly(self, file: BinaryIO, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from ``offset``.

        Raises
        ------
        UnreadableCineError
            If the file ends before.
        """
        if offset + length > self.length:
            raise unreadable(self.path, f"ends at byte {self.length} where {offset + length} are needed.")
        file.seek(offset)
        found = file.read(length)
        if len(found) != length:
            raise unreadable(self.path, f"ends at byte {offset + len(found)} where {offset + length} are needed.")
        return found

    @property
    def length(self) -> int:
        """How many bytes there are to read."""
        return self.size if self.unpacked is None else len(self.unpacked)
