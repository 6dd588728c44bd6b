# SPDX-License-Identifier: Apache-2.0
"""Which cine is with which annotator: one that was handed out is shown to nobody else for a while.

Kept in a file, so that neither a restart nor another server process hands a cine out twice. A lease ends by itself: the
annotator may have gone home. A submission ends it too. Who holds it does not matter for anybody else: viewers of one
site often have one name, and somebody who says none holds what was shown as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from echo_plugin.acquisition.sqlite_file import SqliteFile

LEASE_S = 30 * 60.0
LEASES_FILE = ".echo_leases.sqlite"

_SCHEMA = (
    "CREATE TABLE leases (image_id TEXT PRIMARY KEY, holder TEXT, shown_at REAL NOT NULL, expires_at REAL NOT NULL)"
    " WITHOUT ROWID",
)


@dataclass(frozen=True)
class Lease:
    """``holder`` : the annotator's name; None: not said. Times in s since the epoch."""

    image_id: str
    holder: str | None
    shown_at: float
    expires_at: float


class Leases:
    """The leases kept at ``path``; ``clock`` : s since the epoch."""

    def __init__(self, path: Path, *, duration_s: float = LEASE_S, clock: Callable[[], float] = time.time) -> None:
        self._file = SqliteFile(path, _SCHEMA, version=1)
        self._duration_s = duration_s
        self._clock = clock

    def take(self, image_id: str, holder: str | None) -> bool:
        """Hand a cine out; False if it is with somebody already."""
        now = self._clock()
        with self._file.connection() as connection:  # one statement: of two at once, one finds the other's row
            cursor = connection.execute(
                "INSERT INTO leases VALUES (?, ?, ?, ?) ON CONFLICT (image_id) DO UPDATE SET holder = excluded.holder,"
                " shown_at = excluded.shown_at, expires_at = excluded.expires_at"
                " WHERE leases.expires_at <= excluded.shown_at",
                (image_id, holder, now, now + self._duration_s),
            )
        return cursor.rowcount == 1

    def show_again(self, image_id: str, holder: str) -> bool:
        """Hand a cine to its holder once more, for as long again; False if it is with somebody else by now."""
        now = self._clock()
        with self._file.connection() as connection:
            cursor = connection.execute(
                "UPDATE leases SET shown_at = ?, expires_at = ? WHERE image_id = ? AND holder = ?",
                (now, now + self._duration_s, image_id, holder),
            )
        return cursor.rowcount == 1

    def end(self, image_id: str) -> None:
        """Let the cine go: its annotator has submitted it."""
        now = self._clock()
        with self._file.connection() as connection:
            connection.execute(
                "UPDATE leases SET expires_at = ? WHERE image_id = ? AND expires_at > ?", (now, image_id, now)
            )

    def shown(self) -> dict[str, Lease]:
        """Return the last time each cine was shown, by image id; those that are not leased by now among them."""
        rows = self._file.connection().execute("SELECT image_id, holder, shown_at, expires_at FROM leases")
        return {row[0]: Lease(*row) for row in rows}

    def is_running(self, lease: Lease) -> bool:
        """Whether the cine is still with its annotator."""
        return lease.expires_at > self._clock()

    def minutes_left(self, lease: Lease) -> int:
        """Return for how many minutes more a cine is with its annotator, 1 at least."""
        return max(round((lease.expires_at - self._clock()) / 60), 1)
