# SPDX-License-Identifier: Apache-2.0
"""What lasts on a disk, whenever the program or the machine stops: files, locks, and small SQLite files.

A file is there whole or not at all; a lock is let go of by a killed holder; an SQLite file that is damaged, or of
another version, is begun anew, so that only what can be made again (or forgotten) belongs in one.
"""

from __future__ import annotations

import logging
import os
import secrets
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock

from echo_plugin.errors import EchoError

logger = logging.getLogger(__name__)
Made = TypeVar("Made")

_TEMPORARY = ".tmp."
_LOCK_POLL_S = 0.005
_BUSY_TIMEOUT_S = 30.0
_TABLES = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"


def write_atomically(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Write a file in one step; raises as `replace_atomically`."""
    replace_atomically(path, lambda temporary: temporary.write_bytes(content), mode=mode)


def replace_atomically(path: Path, make: Callable[[Path], Made], *, mode: int | None = None) -> Made:
    """Put the file or link that ``make`` makes into the place of ``path``, and return what it returns.

    ``make`` is given a new name beside ``path`` that ends as its name does, for a maker that goes by the suffix; then
    follow fsync, rename and fsync of the directory. ``mode`` : permissions, before the umask, of a file that is there,
    empty, when it is called; None: nothing is there.

    Raises
    ------
    OSError
        If the system refuses any step; what was in the place is as before, and nothing else is left. Only where the
        last step fails is the new content in place already, though not certain to outlive a power cut.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}{_TEMPORARY}{path.name}")
    try:
        if mode is not None:
            temporary.touch(mode, exist_ok=False)
        made = make(temporary)
        if not temporary.is_symlink():
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_directory(path.parent)
    return made


def remove_abandoned(directory: Path, is_ours: Callable[[str], bool] = lambda _: True) -> None:
    """Delete the temporary files that killed writers left; for one who holds the lock of all who write these files.

    ``is_ours`` : whether to delete that of a file of this name.
    """
    for path in directory.glob(f".*{_TEMPORARY}*"):
        if is_ours(path.name.partition(_TEMPORARY)[2]):
            path.unlink(missing_ok=True)


def make_directory(path: Path) -> None:
    """Make a directory, and those above it, to last; nothing happens if it is there."""
    if not path.is_dir():
        make_directory(path.parent)
        path.mkdir(exist_ok=True)
        fsync_directory(path.parent)


def user_cache() -> Path:
    """Return the folder of this program among the user's caches; it need not be there."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "monailabel-echo"


def fsync_directory(path: Path) -> None:
    """Make the names in a directory last; Windows keeps them by itself and has no call for it."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_writable(directory: Path) -> None:
    """Raise EchoError unless a file can be made in the existing ``directory``; one is, and is gone again."""
    try:
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as exc:
        msg = f"Folder {directory} cannot be written to ({exc.strerror or exc}); one that can be is needed."
        raise EchoError(msg) from exc


@contextmanager
def locked(path: Path, *, timeout_s: float = -1) -> Iterator[None]:
    """Hold the lock file at ``path`` against all threads and processes; -1 waits for ever.

    Raises
    ------
    TimeoutError
        If another holds it for longer.
    OSError
        If the file cannot be made.
    """
    # an object for each turn: one that is shared lets the threads of a program in together
    with FileLock(path, timeout=timeout_s, poll_interval=_LOCK_POLL_S):
        yield


class SqliteFile:
    """The file at ``path`` with the tables of ``schema``, for its user alone; safe in threads, programs and forks.

    Every use opens it and closes it again, which takes a third of a millisecond. A change is whole whenever a program
    is killed; nothing waits for the disk, so a power cut may damage the file. It is checked when this object is made:
    one that is damaged, or of another ``version``, is begun anew.

    Raises
    ------
    sqlite3.Error, OSError
        If it can be neither opened nor made.
    """

    def __init__(self, path: Path, schema: Sequence[str], version: int) -> None:
        self.path = path
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))  # it says who was examined
        try:
            self._prepare(schema, version)
        except sqlite3.OperationalError:  # locked for too long, read-only: not damage
            raise
        except sqlite3.DatabaseError as exc:
            logger.warning("%s is damaged (%s) and is begun anew", path.name, exc)
            for suffix in ("", "-journal"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._prepare(schema, version)

    def rows(self, query: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of a SELECT."""
        with self._opened() as connection:
            return connection.execute(query, parameters).fetchall()

    @contextmanager
    def changing(self) -> Iterator[sqlite3.Connection]:
        """Hold the write lock of all programs; the block's changes are made together or not at all."""
        with self._opened() as connection, connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.path, timeout=_BUSY_TIMEOUT_S)) as connection:
            connection.execute("PRAGMA synchronous = OFF")
            yield connection

    def _prepare(self, schema: Sequence[str], version: int) -> None:
        if (found := self.rows("PRAGMA quick_check(1)")) != [("ok",)]:
            raise sqlite3.DatabaseError(found[0][0])
        with self.changing() as connection:
            if connection.execute("PRAGMA user_version").fetchone() != (version,):
                for (name,) in connection.execute(_TABLES).fetchall():
                    connection.execute(f"DROP TABLE {name}")
                for statement in schema:
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {version}")


def file_stamp(path: Path) -> tuple[int, int] | None:
    """Return when a file was written, in ns, and its size in bytes; None: the system does not tell, it is gone say.

    Take it before the file is read: one that is replaced meanwhile is then looked at again, not taken for the old.
    """
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


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
