# SPDX-License-Identifier: Apache-2.0
"""What is known of the image files of a study folder, in SQLite: a copy that can always be made again from the files.

One connection for each thread; several programs may use one index. A file of another version or a damaged one is
dropped and begun anew.

The image files of a study folder: which there are, and what each says of itself.

Looked at: regular files in nested folders with a suffix of a cine, or named by a UID. A link to a file counts as a
file, wherever it points: nothing that comes over the network makes links, so one was put there on purpose. Links to
directories are not followed (they can run in circles). Names that begin with a dot, and ``annotations``, are ours.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import sqlite3
import tempfile
import threading
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path, PurePosixPath

from echo_plugin.cine import escape_path, is_uid
from echo_plugin.errors import UnreadableCineError
from echo_plugin.io.cine_file import CINE_SUFFIXES, read_cine

logger = logging.getLogger(__name__)

INDEX_FILE = ".echo_index.sqlite"
_VERSION = 1
_BUSY_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class IndexedFile:
    """One image file as it was when it was read.

    ``path`` : relative to the study folder, as the system's bytes. ``mtime_ns, size`` : when it was looked at.
    ``sop_instance_uid`` and the rest: None where not known. ``error`` : why it cannot be read; None: it can.
    """

    path: bytes
    mtime_ns: int
    size: int
    image_id: str
    sop_instance_uid: str | None = None
    study_instance_uid: str | None = None
    series_instance_uid: str | None = None
    patient_id: str | None = field(default=None, repr=False)
    frames: int | None = None
    height: int | None = None
    width: int | None = None
    frame_time_ms: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class CineEntry:
    """One image file of a study folder.

    ``frames, height, width`` : None where the file cannot be read. ``patient_id``, the UIDs, ``frame_time_ms`` : None
    where not known. ``error`` : why the file is not used, one sentence; None: it is. ``header_patient_id`` : who the
    file itself says, whatever patients.csv does; None: it does not.
    """

    image_id: str
    path: Path
    patient_id: str | None = field(default=None, repr=False)
    study_instance_uid: str | None = None
    series_instance_uid: str | None = None
    frames: int | None = None
    height: int | None = None
    width: int | None = None
    frame_time_ms: float | None = None
    error: str | None = None
    header_patient_id: str | None = field(default=None, repr=False)


def cine_entry(root: Path, file: IndexedFile, first: IndexedFile, patient_id: str | None) -> CineEntry:
    """Return the entry of ``file`` in the folder ``root``; ``first`` is the file that is used for its image id."""
    path, error = root / os.fsdecode(file.path), file.error
    if file is not first:
        name = os.fsdecode(first.path)
        error = f"File {path.name!r} holds the SOP instance {file.image_id} once more; {name!r} is used."
    return CineEntry(
        image_id=file.image_id,
        path=path,
        patient_id=file.patient_id or patient_id,
        study_instance_uid=file.study_instance_uid,
        series_instance_uid=file.series_instance_uid,
        frames=file.frames,
        height=file.height,
        width=file.width,
        frame_time_ms=file.frame_time_ms,
        error=error,
        header_patient_id=file.patient_id,
    )


_COLUMNS = [column.name for column in fields(IndexedFile)]
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM files"


class StudyIndex:
    """The table of image files at ``path``.

    Raises
    ------
    sqlite3.Error, OSError
        If the file can be neither opened nor made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._thread = threading.local()
        try:
            self._prepare()
        except sqlite3.OperationalError:  # locked for too long, read-only, no such directory: not damage
            raise
        except sqlite3.DatabaseError:
            self._thread = threading.local()
            for suffix in ("", "-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            self._prepare()

    def stamps(self) -> dict[bytes, tuple[int, int]]:
        """Return (mtime_ns, size) by path."""
        rows = self._connection().execute("SELECT path, mtime_ns, size FROM files")
        return {path: (mtime_ns, size) for path, mtime_ns, size in rows}

    def put(self, files: Iterable[IndexedFile]) -> None:
        """Add files, or replace what was known of them."""
        places = ", ".join("?" * len(_COLUMNS))
        with self._connection() as connection:
            connection.executemany(f"INSERT OR REPLACE INTO files VALUES ({places})", [astuple(f) for f in files])

    def remove(self, paths: Iterable[bytes]) -> None:
        """Forget files."""
        with self._connection() as connection:
            connection.executemany("DELETE FROM files WHERE path = ?", [(path,) for path in paths])

    def files(self) -> list[IndexedFile]:
        """Return all files in the order of their paths."""
        return [IndexedFile(*row) for row in self._connection().execute(f"{_SELECT} ORDER BY path")]

    def image_ids(self) -> list[str]:
        """Return the image ids of the files that can be read, in the order of their paths, copies once."""
        rows = self._connection().execute("SELECT image_id FROM files WHERE error IS NULL ORDER BY path")
        return list(dict.fromkeys(image_id for (image_id,) in rows))

    def files_of(self, image_id: str) -> list[IndexedFile]:
        """Return the files that have an image id, in the order of their paths."""
        rows = self._connection().execute(f"{_SELECT} WHERE image_id = ? ORDER BY path", (image_id,))
        return [IndexedFile(*row) for row in rows]

    def _connection(self) -> sqlite3.Connection:
        """Return the connection of this thread; a forked process begins its own."""
        if getattr(self._thread, "pid", None) != os.getpid():
            self._thread.connection = sqlite3.connect(self.path, timeout=_BUSY_TIMEOUT_S)
            self._thread.pid = os.getpid()
            self._thread.connection.execute("PRAGMA synchronous = NORMAL")  # the files are the truth
        connection: sqlite3.Connection = self._thread.connection
        return connection

    def _prepare(self) -> None:
        """Make the table if it is not there; raise if it cannot be written to."""
        connection = self._connection()
        with contextlib.suppress(sqlite3.OperationalError):  # another program is doing it, or the drive cannot
            connection.execute("PRAGMA journal_mode = WAL")
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            if connection.execute("PRAGMA user_version").fetchone() != (_VERSION,):
                connection.execute("DROP TABLE IF EXISTS files")
                connection.execute(f"CREATE TABLE files ({', '.join(_COLUMNS)}, PRIMARY KEY (path))")
                connection.execute("CREATE INDEX files_by_image_id ON files (image_id)")
                connection.execute(f"PRAGMA user_version = {_VERSION}")
            connection.execute("SELECT image_id FROM files LIMIT 1").fetchone()


def open_index(root: Path, index_path: Path | None = None) -> StudyIndex:
    """Return the index of the study folder ``root``: at ``index_path``, in the folder, or in the user's cache.

    Raises
    ------
    sqlite3.Error
        If an ``index_path`` is given and cannot be used, or no place can be written to.
    """
    if index_path is not None:
        return StudyIndex(index_path)
    try:
        return StudyIndex(root / INDEX_FILE)
    except (sqlite3.Error, OSError) as exc:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "monailabel-echo"
        name = f"{hashlib.sha256(os.fsencode(root)).hexdigest()[:24]}.sqlite"
        logger.warning("Study folder cannot be written to (%s); its index is kept in the user's cache: %s", exc, name)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        cache.chmod(0o700)  # the index names patients: other users of this machine may have no right to the study
        return StudyIndex(cache / name)
    except (sqlite3.Error, OSError) as exc:
        logger.warning("The user's cache cannot be written to (%s); the index is made anew at every start", exc)
        return StudyIndex(Path(tempfile.mkdtemp(prefix="monailabel-echo-")) / name)


ANNOTATIONS_DIRECTORY = "annotations"
Stamp = tuple[int, int]
"""(mtime_ns, size) of a file; (-1, -1) where the system does not tell."""

_NO_STAMP = (-1, -1)


def find_image_files(root: Path) -> dict[bytes, Stamp]:
    """Return the stamps of all image files, by their path relative to ``root`` in the system's bytes."""
    return {os.fsencode(relative): stamp for relative, stamp in _walk(str(root), "")}


def is_image_name(name: str) -> bool:
    """Whether a file of this name is looked at."""
    suffix = Path(name).suffix.lower()
    if name.startswith(".") or name.upper() == "DICOMDIR" or (suffix == ".gz" and not name.lower().endswith(".nii.gz")):
        return False
    return suffix in CINE_SUFFIXES or is_uid(name)


def describe_file(root: Path, relative: bytes, stamp: Stamp) -> IndexedFile:
    """Return what an image file says of itself; of one that cannot be read, why."""
    path = root / os.fsdecode(relative)
    image_id = escape_path(PurePosixPath(Path(os.fsdecode(relative)).as_posix()))
    try:
        cine = read_cine(path, image_id=None)
    except UnreadableCineError as exc:
        return IndexedFile(relative, *stamp, image_id, error=str(exc))
    except Exception as exc:  # one file must never keep the others from being listed
        logger.exception("File %r stopped its reader", path.name)
        return IndexedFile(
            relative, *stamp, image_id, error=f"File {path.name!r} cannot be read ({type(exc).__name__})."
        )
    return IndexedFile(
        relative,
        *stamp,
        image_id=cine.sop_instance_uid or image_id,
        sop_instance_uid=cine.sop_instance_uid,
        study_instance_uid=cine.study_instance_uid,
        series_instance_uid=cine.series_instance_uid,
        patient_id=cine.patient_id and cine.patient_id.encode(errors="replace").decode(),
        frames=cine.frame_count,
        height=cine.height,
        width=cine.width,
        frame_time_ms=cine.frame_time_ms,
    )


def _walk(directory: str, relative: str) -> Iterator[tuple[str, Stamp]]:
    """Yield (path relative to the root, stamp) of the image files in and under a directory."""
    try:
        entries = list(os.scandir(directory))
    except OSError as exc:
        logger.warning("Directory %r cannot be listed: %s", relative or ".", exc.strerror)
        return
    for entry in entries:
        here = os.path.join(relative, entry.name)  # noqa: PTH118 - ten thousand Path objects take a second
        if entry.is_dir(follow_symlinks=False):
            if not entry.name.startswith(".") and here != ANNOTATIONS_DIRECTORY:
                yield from _walk(entry.path, here)
        elif is_image_name(entry.name) and (entry.is_file() or _is_broken_link(entry)):
            yield here, _stamp(entry)


def _is_broken_link(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)  # noqa: PTH110 - as above


def _stamp(entry: os.DirEntry[str]) -> Stamp:
    try:
        stat = entry.stat()
    except OSError:
        return _NO_STAMP
    return stat.st_mtime_ns, stat.st_size
