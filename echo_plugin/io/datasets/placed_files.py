# SPDX-License-Identifier: Apache-2.0
"""Files of a data set in their places in a study folder: linked, copied, or packed where no single file holds a cine.

What is there stays, whoever put it there; the one thing ever replaced is the link of an earlier import, by the copy of
what it points to, or by one that leads there where it leads nowhere. Every file is there whole or not at all. The
places to fill are written down before the first is, until they are judged: so the next import knows what one that was
stopped has left.

Cines that no single file holds as we read them, written as one: a packed NRRD volume without times or spacing.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from echo_plugin.cine import ByteArray, to_grey
from echo_plugin.durable import replace_atomically, write_atomically
from echo_plugin.errors import DataSetError, UnreadableCineError
from echo_plugin.io.cine_file import read_cine
from echo_plugin.io.datasets.source_cine import IMPORT_FILE, LeftOut, NotTakenError, SourceCine, WeakBoxes
from echo_plugin.io.patients_file import PATIENTS_FILE
from echo_plugin.io.study_index import ANNOTATIONS_DIRECTORY, find_image_files
from echo_plugin.progress import Progress

GREY_TOLERANCE = 8
"""JPEG of a grey picture can leave its channels so far apart."""


def pack_pictures(pictures: Sequence[Path], path: Path) -> None:
    """Write the pictures, in order, as the frames of one file.

    Raises
    ------
    NotTakenError
        If a picture cannot be read or has another size.
    """
    frames = []
    for picture in pictures:
        try:
            frames.append(read_cine(picture).pixels[0])
        except UnreadableCineError as exc:
            raise NotTakenError(str(exc)) from exc
        if frames[-1].shape[:2] != frames[0].shape[:2]:
            msg = f"{picture.name} is {frames[-1].shape[:2]} px, the first frame {frames[0].shape[:2]}"
            raise NotTakenError(msg)
    channels = max(frame.shape[-1] for frame in frames)
    write_packed(np.stack([np.broadcast_to(f, (*f.shape[:2], channels)) for f in frames]), path)


def pack_transposed(source: Path, path: Path) -> None:
    """Write a cine whose file holds rows where columns belong, upright.

    Raises
    ------
    NotTakenError
        If it cannot be read.
    """
    try:
        write_packed(read_cine(source).pixels.swapaxes(1, 2), path)
    except UnreadableCineError as exc:
        raise NotTakenError(str(exc)) from exc


def write_packed(pixels: ByteArray, path: Path) -> None:
    """Write (T, H, W, C) frames, whole or not at all; colour that is only noise of packing becomes grey."""
    import itk

    if pixels.shape[-1] == 3 and int(np.ptp(pixels, axis=-1).max()) <= GREY_TOLERANCE:
        pixels = to_grey(pixels)[..., None] if to_grey(pixels).ndim == 3 else to_grey(pixels)
    is_colour = pixels.shape[-1] == 3
    image = itk.image_from_array(np.ascontiguousarray(pixels if is_colour else pixels[..., 0]), is_vector=is_colour)
    replace_atomically(path, lambda partial: itk.imwrite(image, str(partial), compression=True))


UNJUDGED_FILE = ".import_unjudged.json"


@dataclass(frozen=True)
class PlacedCine:
    """A cine in the study folder.

    ``is_new`` : this import put its file there, or one that was stopped before it could judge it. ``is_mended`` : it is
    a link of an earlier import that led nowhere.
    """

    cine: SourceCine
    place: PurePosixPath
    weak: WeakBoxes = field(default_factory=WeakBoxes, repr=False)
    is_new: bool = True
    is_mended: bool = False


def place_all(
    items: Sequence[SourceCine | LeftOut], out: Path, *, is_copy: bool, progress: Progress | None
) -> tuple[list[PlacedCine], list[LeftOut]]:
    """Put every cine into the study folder ``out``; return those that are there and what was left out.

    Raises
    ------
    DataSetError
        If a file cannot be written.
    """
    unjudged = _write_down_unjudged(items, out)
    placed: dict[PurePosixPath, PlacedCine] = {}
    left_out: list[LeftOut] = []
    for number, item in enumerate(items):
        if progress is not None:
            progress(number, len(items), "placing files")
        if isinstance(item, LeftOut):
            left_out.append(item)
            continue
        weak = item.weak_boxes() if item.weak_boxes else WeakBoxes()
        place = _upright(item.place) if weak.is_transposed else item.place
        target = out.joinpath(*place.parts)
        try:
            if place in placed or place.parts[0] in (ANNOTATIONS_DIRECTORY, PATIENTS_FILE, IMPORT_FILE):
                msg = "its place in the study folder is taken"
                raise NotTakenError(msg)
            is_mended = target.is_symlink() and not target.exists()
            _put(item, target, is_transposed=weak.is_transposed, is_copy=is_copy)
        except NotTakenError as exc:
            left_out.append(LeftOut(str(item.place), str(exc)))
            continue
        placed[place] = PlacedCine(item, place, weak, place in unjudged, is_mended)
    return list(placed.values()), left_out


def links_in(out: Path) -> int:
    """Return how many image files of a study folder are links to files elsewhere."""
    return sum((out / os.fsdecode(relative)).is_symlink() for relative in find_image_files(out))


def forget_unjudged(out: Path) -> None:
    """Say that every file which `place_all` put into the study folder ``out`` has been judged."""
    (out / UNJUDGED_FILE).unlink(missing_ok=True)


def _write_down_unjudged(items: Sequence[SourceCine | LeftOut], out: Path) -> frozenset[PurePosixPath]:
    """Return, once they are written down, the places of files that nobody has judged: none there yet, or as before."""
    unjudged: set[PurePosixPath] = set()
    with contextlib.suppress(OSError, ValueError):
        unjudged = {PurePosixPath(text) for text in json.loads((out / UNJUDGED_FILE).read_bytes())}
    wanted = {place for item in items if isinstance(item, SourceCine) for place in (item.place, _upright(item.place))}
    unjudged |= {place for place in wanted if not os.path.lexists(out.joinpath(*place.parts))}
    try:
        write_atomically(out / UNJUDGED_FILE, json.dumps(sorted(map(str, unjudged))).encode())
    except OSError as exc:
        msg = f"Study folder {out} cannot be written to ({exc.strerror or exc}); one that can be is needed."
        raise DataSetError(msg) from exc
    return frozenset(unjudged)


def _upright(place: PurePosixPath) -> PurePosixPath:
    """Return where a cine goes that has to be written anew."""
    return place.with_name(place.name.removesuffix(".gz").removesuffix(".nii") + ".nrrd")


def _put(cine: SourceCine, target: Path, *, is_transposed: bool, is_copy: bool) -> None:
    """Put a cine's file at ``target``, if it is not there."""
    is_packed = bool(cine.frames) or is_transposed
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_symlink():
            _require_link_of(cine, target, is_packed=is_packed)
            if is_copy:
                replace_atomically(target, partial(shutil.copyfile, cine.source))
            elif not target.exists():
                replace_atomically(target, lambda link: link.symlink_to(cine.source.absolute()))
        elif target.exists():
            if not is_packed and target.stat().st_size != cine.source.stat().st_size:
                msg = "another file is in its place in the study folder, and stays there"
                raise NotTakenError(msg)
        elif cine.frames:
            pack_pictures(cine.frames, target)
        elif is_transposed:
            pack_transposed(cine.source, target)
        elif is_copy:
            replace_atomically(target, partial(shutil.copyfile, cine.source))
        else:
            target.symlink_to(cine.source.absolute())
    except OSError as exc:
        msg = (
            f"File {target.name!r} cannot be put into the study folder ({exc.strerror or exc});"
            " where links are not allowed, --copy copies."
        )
        raise DataSetError(msg) from exc


def _require_link_of(cine: SourceCine, target: Path, *, is_packed: bool) -> None:
    """Refuse a link that is none to the source of a cine, or, where the source was moved, to a file of its name."""
    if target.exists():
        is_ours = not is_packed and target.samefile(cine.source)
    else:
        is_ours = not is_packed and target.readlink().name == cine.source.absolute().name
    if not is_ours:
        msg = "a link to another file is in its place in the study folder, and stays there"
        raise NotTakenError(msg)
