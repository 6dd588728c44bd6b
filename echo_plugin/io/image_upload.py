# SPDX-License-Identifier: Apache-2.0
"""Image files that come into a study folder from outside, and go out of it again."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path

from echo_plugin.errors import UnreadableCineError
from echo_plugin.io.atomic_file import fsync_directory, make_directory
from echo_plugin.io.cine_file import read_cine
from echo_plugin.io.study_scan import is_image_name

LARGEST_UPLOAD_BYTES = 2 << 30
_LONGEST_NAME = 120
_FORBIDDEN = frozenset('<>:"/\\|?*')
_CHUNK_BYTES = 1 << 20
_TEMPORARY_NAME = re.compile(r"\.[0-9a-f]{16}\.(.+)")


def require_upload_name(name: str) -> str:
    """Return ``name`` if it is that of an image file, without any path, on every system.

    Raises
    ------
    UnreadableCineError
        If it is not.
    """
    is_plain = name.isprintable() and not _FORBIDDEN & set(name) and len(name.encode(errors="replace")) <= _LONGEST_NAME
    if not name or not is_plain or not is_image_name(name) or name.endswith((".", " ")):
        msg = (
            f"File name {name[:80]!r} is not accepted; a plain name of up to {_LONGEST_NAME} bytes with the suffix of a"
            " DICOM, video, picture or volume file is."
        )
        raise UnreadableCineError(msg)
    return name


def place_upload(
    root: Path, source: bytes | Path, name: str, *, max_bytes: int, path_of: Callable[[str], Path | None]
) -> Path:
    """Write a cine to ``root``/``name`` in one step and return its path; for one who holds the folder's lock.

    ``path_of`` : the file in the folder that has a SOP Instance UID, or None. Where the same bytes are there already,
    their path is returned.

    Raises
    ------
    UnreadableCineError
        If the name, size or content is not accepted, or another file has the name or UID; nothing is left behind.
    """
    target = root / require_upload_name(name)
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    if not 0 < size <= max_bytes:
        msg = f"File {name!r} has {size} bytes; 1 to {max_bytes} are accepted."
        raise UnreadableCineError(msg)
    for path in root.iterdir():  # of a program that was killed: whoever holds the lock is the only one to upload
        if (abandoned := _TEMPORARY_NAME.fullmatch(path.name)) and is_image_name(abandoned[1]):
            path.unlink(missing_ok=True)
    temporary = root / f".{secrets.token_hex(8)}.{name}"
    try:
        _copy(source, temporary, max_bytes)
        taken = _taken_by(temporary, target, path_of)
        if taken is None:
            os.replace(temporary, target)  # noqa: PTH105 - the name tests replace
            fsync_directory(root)
    finally:
        temporary.unlink(missing_ok=True)
    return taken or target


def move_out(root: Path, path: Path, image_id: str) -> Path:
    """Move an image file (or the link to one) to ``.removed``/``image_id`` and return where it is now."""
    directory = _place_of_removed(root, image_id)
    make_directory(directory)
    target, n = directory / path.name, 0
    while os.path.lexists(target):
        n += 1
        target = directory / f"{n}.{path.name}"
    os.replace(path, target)  # noqa: PTH105 - as above
    fsync_directory(directory)
    fsync_directory(path.parent)
    return target


def is_moved_out(root: Path, image_id: str) -> bool:
    """Whether `move_out` has taken an image out of a study folder."""
    return _place_of_removed(root, image_id).is_dir()


def _place_of_removed(root: Path, image_id: str) -> Path:
    return root / ".removed" / image_id


def _copy(source: bytes | Path, temporary: Path, max_bytes: int) -> None:
    """Write ``source`` to a new file that lasts."""
    with temporary.open("xb") as file:
        if isinstance(source, bytes):
            file.write(source)
        else:
            with source.open("rb") as original:
                while chunk := original.read(_CHUNK_BYTES):
                    file.write(chunk)
                    if file.tell() > max_bytes:
                        msg = f"File {source.name!r} has more than {max_bytes} bytes."
                        raise UnreadableCineError(msg)
        file.flush()
        os.fsync(file.fileno())


def _taken_by(temporary: Path, target: Path, path_of: Callable[[str], Path | None]) -> Path | None:
    """Return the file that holds the same bytes already; None: the upload is a cine, and new."""
    try:
        cine = read_cine(temporary)
        cine.read_frames([0])
    except UnreadableCineError as exc:
        msg = str(exc).replace(temporary.name, target.name)
        raise UnreadableCineError(msg) from exc
    other = path_of(cine.sop_instance_uid) if cine.sop_instance_uid else None
    for there in (other, target):
        if there is None or not os.path.lexists(there):
            continue
        if _are_equal(there, temporary):
            return there
        what = "the same SOP Instance UID" if there is other else "this name"
        msg = f"File {target.name!r}: another image of the study folder has {what}; nothing is overwritten."
        raise UnreadableCineError(msg)
    return None


def _are_equal(one: Path, other: Path) -> bool:
    if not one.is_file() or one.stat().st_size != other.stat().st_size:
        return False
    with one.open("rb") as a, other.open("rb") as b:
        while chunk := a.read(_CHUNK_BYTES):
            if chunk != b.read(_CHUNK_BYTES):
                return False
    return True
