# SPDX-License-Identifier: Apache-2.0
"""Any file as a cine: the format is told by what the file begins with, the suffix only decides where that cannot.

Pictures are read here, as cines of one frame: turned as the EXIF orientation says, transparency laid on black, 16-bit
grey scaled linearly from 0..65535 to 0..255. The other formats have a module each.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageOps

from echo_plugin.cine import ByteArray, Cine, FramesInMemory, escape_path
from echo_plugin.io.dicom_cine import read_dicom_cine
from echo_plugin.io.dicom_header import LARGEST_FRAME_PX, is_dicom
from echo_plugin.io.stored_bytes import StoredBytes, damage_named, unreadable

_LONGEST_MAGIC = 4096
_DICOM_SUFFIXES = frozenset({"", ".dcm", ".dicom", ".ima", ".img"})
_VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv"})
_STILL_SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})
_VOLUME_SUFFIXES = frozenset({".nii", ".gz", ".nrrd"})
CINE_SUFFIXES = _DICOM_SUFFIXES | _VIDEO_SUFFIXES | _STILL_SUFFIXES | _VOLUME_SUFFIXES
"""Lower-case suffixes that the scan of a study folder looks at; "" is DICOM without one, ".gz" is ".nii.gz"."""


def read_cine(path: Path, *, image_id: str | None = None) -> Cine:
    """Return the cine of a DICOM, video, picture or volume file; frames are decoded when asked for, where possible.

    ``image_id`` : None takes the SOP Instance UID, or the escaped name of the file where there is none.

    Raises
    ------
    UnreadableCineError
        If the file is missing, damaged, not permitted to read or none of the accepted formats.
    """
    stored = StoredBytes.of(path)
    with stored.open() as file:
        start = file.read(_LONGEST_MAGIC)
    suffix, own_id = path.suffix.lower(), image_id or escape_path(PurePosixPath(path.name))
    if is_dicom(start):
        cine = read_dicom_cine(path)
        return cine if image_id is None else replace(cine, image_id=image_id)
    if start.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")):
        return read_still(path, own_id)
    if start.startswith(b"NRRD") or path.name.lower().endswith((".nii", ".nii.gz")):
        from echo_plugin.io.volume import read_volume_cine

        return read_volume_cine(path, own_id)
    if suffix in _VIDEO_SUFFIXES:
        from echo_plugin.io.video_file import read_video

        return read_video(path, own_id)
    raise unreadable(path, "is none of the formats that are read: DICOM, MP4, AVI, MOV, PNG, JPEG, NIfTI and NRRD.")


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
