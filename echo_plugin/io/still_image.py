# SPDX-License-Identifier: Apache-2.0
"""A PNG or JPEG picture as a cine of one frame.

The picture is turned as its EXIF orientation says, transparency is laid on black, and 16-bit grey is scaled linearly
from 0..65535 to 0..255.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from echo_plugin.cine import ByteArray, Cine, FramesInMemory
from echo_plugin.io.dicom_header import LARGEST_FRAME_PX
from echo_plugin.io.stored_bytes import StoredBytes, damage_named, unreadable


def read_still(path: Path, image_id: str) -> Cine:
    """Return the picture as a cine of one frame, grey where the file is grey, without times or spacing.

    Raises
    ------
    UnreadableCineError
        If the file is damaged, animated, too large or neither PNG nor JPEG.
    """
    with (
        damage_named(path, "no PNG or JPEG picture that can be decoded"),
        StoredBytes.of(path).open() as file,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the check below is stricter
        picture = Image.open(file, formats=("PNG", "JPEG"))
        width, height = picture.size
        if width * height > LARGEST_FRAME_PX:
            raise unreadable(path, f"has {height} x {width} px; up to {LARGEST_FRAME_PX} px are accepted.")
        if getattr(picture, "n_frames", 1) > 1:
            raise unreadable(path, "is an animated picture; a still, or a video file, is accepted.")
        pixels = _grey_or_rgb(ImageOps.exif_transpose(picture))
    return Cine(image_id=image_id, frames=FramesInMemory(pixels[None]))


def _grey_or_rgb(picture: Image.Image) -> ByteArray:
    """Return (H, W, 1) or (H, W, 3) uint8."""
    if picture.mode.startswith("I"):
        samples = np.asarray(picture.convert("I"), dtype=np.int64)
        return np.rint(np.clip(samples, 0, 65535)[..., None] / 257.0).astype(np.uint8)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (0, 0, 0, 255)), picture)
    if picture.mode in ("1", "L"):
        return np.asarray(picture.convert("L"))[..., None]
    return np.asarray(picture.convert("RGB"))
