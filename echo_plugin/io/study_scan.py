# SPDX-License-Identifier: Apache-2.0
"""The image files of a study folder: which there are, and what each says of itself.

Looked at: regular files in nested folders with a suffix of a cine, or named by a UID. A link to a file counts as a
file, wherever it points: nothing that comes over the network makes links, so one was put there on purpose. Links to
directories are not followed (they can run in circles). Names that begin with a dot, and ``annotations``, are ours.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from echo_plugin.errors import UnreadableCineError
from echo_plugin.io.cine_file import CINE_SUFFIXES, read_cine
from echo_plugin.io.image_id import escape_path, is_uid
from echo_plugin.io.study_index import IndexedFile

logger = logging.getLogger(__name__)

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
