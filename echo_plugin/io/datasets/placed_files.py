# SPDX-License-Identifier: Apache-2.0
"""Files of a data set in their places in a study folder: linked, copied, or packed where no single file holds a cine.

What is there stays, whoever put it there; the one thing ever replaced is the link of an earlier import, by the copy of
what it points to. Every file is there whole or not at all.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from echo_plugin.errors import DataSetError
from echo_plugin.io.atomic_file import fsync_directory
from echo_plugin.io.datasets.import_report import IMPORT_FILE
from echo_plugin.io.datasets.packed_frames import pack_pictures, pack_transposed
from echo_plugin.io.datasets.source_cine import LeftOut, NotTakenError, SourceCine, WeakBoxes
from echo_plugin.io.patients_file import PATIENTS_FILE
from echo_plugin.io.study_scan import ANNOTATIONS_DIRECTORY, find_image_files
from echo_plugin.progress import Progress


@dataclass(frozen=True)
class PlacedCine:
    """A cine in the study folder; ``is_new`` : this import put its file there."""

    cine: SourceCine
    place: PurePosixPath
    weak: WeakBoxes = field(default_factory=WeakBoxes, repr=False)
    is_new: bool = True


def place_all(
    items: Sequence[SourceCine | LeftOut], out: Path, *, is_copy: bool, progress: Progress | None
) -> tuple[list[PlacedCine], list[LeftOut]]:
    """Put every cine into the study folder ``out``; return those that are there and what was left out.

    Raises
    ------
    DataSetError
        If a file cannot be written, or a link there leads elsewhere.
    """
    placed: dict[PurePosixPath, PlacedCine] = {}
    left_out: list[LeftOut] = []
    for number, item in enumerate(items):
        if progress is not None:
            progress(number, len(items), "placing files")
        if isinstance(item, LeftOut):
            left_out.append(item)
            continue
        weak = item.weak_boxes() if item.weak_boxes else WeakBoxes()
        place = item.place
        if weak.is_transposed:
            place = place.with_name(place.name.removesuffix(".gz").removesuffix(".nii") + ".nrrd")
        try:
            if place in placed or place.parts[0] in (ANNOTATIONS_DIRECTORY, PATIENTS_FILE, IMPORT_FILE):
                msg = "its place in the study folder is taken"
                raise NotTakenError(msg)
            is_new = _put(item, out.joinpath(*place.parts), is_transposed=weak.is_transposed, is_copy=is_copy)
        except NotTakenError as exc:
            left_out.append(LeftOut(str(item.place), str(exc)))
            continue
        placed[place] = PlacedCine(item, place, weak, is_new)
    return list(placed.values()), left_out


def links_in(out: Path) -> int:
    """Return how many image files of a study folder are links to files elsewhere."""
    return sum((out / os.fsdecode(relative)).is_symlink() for relative in find_image_files(out))


def _put(cine: SourceCine, target: Path, *, is_transposed: bool, is_copy: bool) -> bool:
    """Put a cine's file at ``target``; return whether nothing was there before."""
    is_packed = bool(cine.frames) or is_transposed
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_symlink():
            if target.readlink() != cine.source.absolute():
                msg = f"Study folder has {target.name!r} from another place; import into an empty folder."
                raise DataSetError(msg)
            if is_copy:
                _copy_whole(cine.source, target)
            return False
        if target.exists():
            if not is_packed and target.stat().st_size != cine.source.stat().st_size:
                msg = "another file is in its place in the study folder, and stays there"
                raise NotTakenError(msg)
            return False
        if cine.frames:
            pack_pictures(cine.frames, target)
        elif is_transposed:
            pack_transposed(cine.source, target)
        elif is_copy:
            _copy_whole(cine.source, target)
        else:
            target.symlink_to(cine.source.absolute())
    except OSError as exc:
        msg = (
            f"File {target.name!r} cannot be put into the study folder ({exc.strerror or exc});"
            " where links are not allowed, --copy copies."
        )
        raise DataSetError(msg) from exc
    return True


def _copy_whole(source: Path, target: Path) -> None:
    """Copy a file so that ``target``, a link or nothing before, is the whole copy in one step."""
    partial = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        shutil.copyfile(source, partial)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    fsync_directory(target.parent)
