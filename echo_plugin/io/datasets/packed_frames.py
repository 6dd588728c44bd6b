# SPDX-License-Identifier: Apache-2.0
"""Cines that no single file holds as we read them, written as one: a packed NRRD volume without times or spacing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from echo_plugin.cine import ByteArray
from echo_plugin.errors import UnreadableCineError
from echo_plugin.io.atomic_file import replace_atomically
from echo_plugin.io.cine_file import read_cine
from echo_plugin.io.datasets.source_cine import NotTakenError
from echo_plugin.io.luma import to_grey

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
    replace_atomically(path, lambda partial: itk.imwrite(image, str(partial), compression=True), suffix=".nrrd")
