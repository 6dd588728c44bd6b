# SPDX-License-Identifier: Apache-2.0
"""Any file as a cine: the format is told by what the file begins with, the suffix only decides where that cannot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from echo_plugin.cine import Cine
from echo_plugin.io.dicom_cine import read_dicom_cine
from echo_plugin.io.dicom_header import is_dicom
from echo_plugin.io.image_id import escape_path, unescape_path
from echo_plugin.io.stored_bytes import StoredBytes, unreadable

__all__ = ["CINE_SUFFIXES", "escape_path", "read_cine", "unescape_path"]

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
        start = file.read(4096)
    if is_dicom(start):
        cine = read_dicom_cine(path)
    else:
        raise unreadable(path, "is none of the formats that are read: DICOM.")
    return cine if image_id is None else replace(cine, image_id=image_id)
