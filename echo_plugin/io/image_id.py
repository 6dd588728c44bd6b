# SPDX-License-Identifier: Apache-2.0
"""The image id of a file that brings none: its path in the study folder, escaped so that it can name a file.

Letters, digits, ``_``, ``-`` and single inner dots stay, every other byte of the UTF-8 text becomes ``%XX``. What
would begin otherwise than with a letter or digit, or would look like a UID, gets ``_`` in front. Text of more than
200 characters is cut and ends in ``%-`` and its SHA-256: unique still, but no longer reversible.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import PurePosixPath
from urllib.parse import unquote_to_bytes

LONGEST_ID = 200
_KEPT = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
_HASH_MARK = "%-"
_UID = re.compile(r"(?:0|[1-9][0-9]*)(?:\.(?:0|[1-9][0-9]*))+")


def is_uid(text: str) -> bool:
    """Whether the text is a UID as PS3.5 section 9.1 has it: up to 64 digits and dots, no leading zeros.

    Examples
    --------
    >>> is_uid("1.2.840.10008.1.2"), is_uid("1..2"), is_uid("1.02"), is_uid("")
    (True, False, False, False)
    """
    return len(text) <= 64 and _UID.fullmatch(text) is not None


def escape_path(relative: PurePosixPath) -> str:
    """Return the image id of a path relative to its study folder.

    Examples
    --------
    >>> escape_path(PurePosixPath("Müller 3/a4c.mp4"))
    'M%C3%BCller%203%2Fa4c.mp4'
    """
    raw = str(relative).encode("utf-8", "surrogatepass")
    pieces = []
    for place, byte in enumerate(raw):
        inner_dot = byte == ord(".") and 0 < place < len(raw) - 1 and raw[place - 1] != ord(".")
        pieces.append(chr(byte) if byte in _KEPT or inner_dot else f"%{byte:02X}")
    escaped = "".join(pieces)
    if raw.startswith(b"_"):
        escaped = "%5F" + escaped[1:]  # so that a leading "_" always is the one put in front
    if not escaped[:1].isalnum() or _UID.fullmatch(escaped):
        escaped = "_" + escaped
    if len(escaped) > LONGEST_ID:
        digest = hashlib.sha256(raw).hexdigest()
        escaped = escaped[: LONGEST_ID - len(_HASH_MARK) - len(digest)] + _HASH_MARK + digest
    return escaped


def unescape_path(image_id: str) -> PurePosixPath:
    """Return the path that :func:`escape_path` was given.

    Raises
    ------
    ValueError
        If the id was cut and hashed.
    """
    if _HASH_MARK in image_id:
        msg = f"Image id {image_id!r} was shortened; its path cannot be told from it."
        raise ValueError(msg)
    escaped = image_id.removeprefix("_")
    return PurePosixPath(unquote_to_bytes(escaped).decode("utf-8", "surrogatepass"))
