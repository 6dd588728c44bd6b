# SPDX-License-Identifier: Apache-2.0
"""A small SQLite file of one's own: one connection for each thread, private to its user, begun anew when damaged."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
