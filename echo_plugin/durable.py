# SPDX-License-Identifier: Apache-2.0
"""Files that are there whole or not at all, whenever the program or the machine stops.

Files that are either wholly there or not at all, and directories with one writer at a time.

A small SQLite file of one's own: one connection for each thread, private to its user, begun anew when damaged.

What tells one writing of a file from another: phantoms made anew keep their names.

Take the stamp before the file is read: one that is replaced meanwhile is then looked at again, not taken for the old.

Bounds for folders of files that can be made again: the longest unused go first.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
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


logger = logging.getLogger(__name__)

_BUSY_TIMEOUT_S = 30.0
_TABLES = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"


class SqliteFile:
    """The file at ``path`` with the tables of ``schema``; one of another ``version`` is begun anew.

    Raises
    ------
    sqlite3.Error, OSError
        If it can be neither opened nor made.
    """

    def __init__(self, path: Path, schema: tuple[str, ...], version: int) -> None:
        self.path = path
        self._schema = schema
        self._version = version
        self._thread = threading.local()
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))  # it says who was examined
        try:
            self._prepare()
        except sqlite3.OperationalError:  # locked for too long, read-only: not damage
            raise
        except sqlite3.DatabaseError as exc:
            logger.warning("%s is damaged (%s) and is begun anew", path.name, exc)
            self._thread = threading.local()
            for suffix in ("", "-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._prepare()

    def connection(self) -> sqlite3.Connection:
        """Return the connection of this thread; a forked process begins its own."""
        if getattr(self._thread, "pid", None) != os.getpid():
            self._thread.connection = sqlite3.connect(self.path, timeout=_BUSY_TIMEOUT_S)
            self._thread.pid = os.getpid()
            self._thread.connection.execute("PRAGMA synchronous = NORMAL")
        connection: sqlite3.Connection = self._thread.connection
        return connection

    @contextmanager
    def changing(self) -> Iterator[sqlite3.Connection]:
        """Hold the write lock of all programs; the block's changes are made together or not at all."""
        with self.connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection

    def _prepare(self) -> None:
        connection = self.connection()
        with contextlib.suppress(sqlite3.OperationalError):  # another program is doing it, or the drive cannot
            connection.execute("PRAGMA journal_mode = WAL")
        with self.changing() as connection:
            if connection.execute("PRAGMA user_version").fetchone() != (self._version,):
                for (name,) in connection.execute(_TABLES).fetchall():
                    connection.execute(f"DROP TABLE {name}")
                for statement in self._schema:
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {self._version}")


def file_stamp(path: Path) -> tuple[int, int] | None:
    """Return when a file was written, in ns, and its size in bytes; None: the system does not tell, it is gone say."""
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
