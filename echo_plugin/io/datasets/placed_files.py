# SPDX-License-Identifier: Apache-2.0
"""Files of a data set in their places in a study folder: linked, copied, or packed where no single file holds a cine.

Every file is there whole or not at all, and nothing that is in a place already is replaced. The places to fill are
written down before the first is, so that the files of an import, one that was stopped too, can be told from others.

Packed cines are NRRD volumes without times or spacing.
"""

from __future__ import annotations

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
from echo_plugin.io.study_index import ANNOTATIONS_DIRECTORY
from echo_plugin.progress import Progress

GREY_TOLERANCE = 8
"""JPEG of a grey picture can leave its channels so far apart."""
PLACES_FILE = ".import_places.json"


@dataclass(frozen=True)
class PlacedCine:
    """A cine in the study folder, put there at ``place``."""

    cine: SourceCine
    place: PurePosixPath
    weak: WeakBoxes = field(default_factory=WeakBoxes, repr=False)


def place_all(
    items: Sequence[SourceCine | LeftOut], out: Path, *, is_copy: bool, progress: Progress | None
) -> tuple[list[PlacedCine], list[LeftOut]]:
    """Put every cine into the study folder ``out``; return those that are there and what was left out.

    Raises
    ------
    OSError
        If the places cannot be written down.
    DataSetError
        If a file cannot be written.
    """
    wanted = {place for item in items if isinstance(item, SourceCine) for place in (item.place, _upright(item.place))}
    free = sorted(str(place) for place in wanted if not os.path.lexists(out.joinpath(*place.parts)))
    write_atomically(out / PLACES_FILE, json.dumps(free).encode())
    placed: list[PlacedCine] = []
    left_out: list[LeftOut] = []
    for number, item in enumerate(items):
        if progress is not None:
            progress(number, len(items), "placing files")
        if isinstance(item, LeftOut):
            left_out.append(item)
            continue
        weak = item.weak_boxes() if item.weak_boxes else WeakBoxes()
        place = _upright(item.place) if weak.is_transposed else item.place
        try:
            _put(item, out, place, is_transposed=weak.is_transposed, is_copy=is_copy)
        except NotTakenError as exc:
            left_out.append(LeftOut(str(item.place), str(exc)))
            continue
        placed.append(PlacedCine(item, place, weak))
    return placed, left_out


def remove_placed(out: Path) -> None:
    """Delete the files that the last import put into the study folder ``out``.

    Raises
    ------
    OSError, ValueError
        If it cannot be told which they are, or one cannot be deleted.
    """
    if (out / PLACES_FILE).exists():
        for place in map(PurePosixPath, json.loads((out / PLACES_FILE).read_bytes())):
            if not place.is_absolute() and ".." not in place.parts:
                out.joinpath(*place.parts).unlink(missing_ok=True)


def _upright(place: PurePosixPath) -> PurePosixPath:
    """Return where a cine goes that has to be written anew."""
    return place.with_name(place.name.removesuffix(".gz").removesuffix(".nii") + ".nrrd")


def _put(cine: SourceCine, out: Path, place: PurePosixPath, *, is_transposed: bool, is_copy: bool) -> None:
    target = out.joinpath(*place.parts)
    if os.path.lexists(target) or place.parts[0] in (ANNOTATIONS_DIRECTORY, PATIENTS_FILE, IMPORT_FILE):
        msg = "its place in the study folder is taken"
        raise NotTakenError(msg)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if cine.frames:
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
