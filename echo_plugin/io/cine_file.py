# SPDX-License-Identifier: Apache-2.0
"""Any file as a cine: the format is told by what the file begins with, the suffix only decides where that cannot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath

from echo_plugin.cine import Cine
from echo_plugin.io.dicom_cine import read_dicom_cine
from echo_plugin.io.dicom_header import is_dicom
from echo_plugin.io.image_id import escape_path, unescape_path
from echo_plugin.io.still_image import read_still
from echo_plugin.io.stored_bytes import StoredBytes, unreadable

__all__ = ["CINE_SUFFIXES", "escape_path", "read_cine", "unescape_path"]

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
        from echo_plugin.io.volume_cine import read_volume_cine

        return read_volume_cine(path, own_id)
    if suffix in _VIDEO_SUFFIXES:
        from echo_plugin.io.video_file import read_video

        return read_video(path, own_id)
    raise unreadable(path, "is none of the formats that are read: DICOM, MP4, AVI, MOV, PNG, JPEG, NIfTI and NRRD.")
