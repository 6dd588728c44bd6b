# SPDX-License-Identifier: Apache-2.0
"""Media types and multipart bodies of DICOMweb: what a stored frame is called, several parts in one body, either way.

References
----------
PS3.18 8.6, 8.7 (multipart, media types), RFC 2387 (multipart/related)
"""

from __future__ import annotations

import os
import re
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from email.message import Message
from pathlib import Path
from typing import BinaryIO

from fastapi import HTTPException
from fastapi.responses import StreamingResponse
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser

OCTETS = "application/octet-stream"
DICOM = "application/dicom"
DICOM_JSON = "application/dicom+json"
_EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
_NATIVE = frozenset({_EXPLICIT_LITTLE_ENDIAN, "1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"})
_COMPRESSED = {
    "1.2.840.10008.1.2.4.50": "image/jpeg",
    "1.2.840.10008.1.2.4.51": "image/jpeg",
    "1.2.840.10008.1.2.4.57": "image/jpeg",
    "1.2.840.10008.1.2.4.70": "image/jpeg",
    "1.2.840.10008.1.2.4.80": "image/jls",
    "1.2.840.10008.1.2.4.81": "image/jls",
    "1.2.840.10008.1.2.4.90": "image/jp2",
    "1.2.840.10008.1.2.4.91": "image/jp2",
    "1.2.840.10008.1.2.4.201": "image/jphc",
    "1.2.840.10008.1.2.4.202": "image/jphc",
    "1.2.840.10008.1.2.4.203": "image/jphc",
    "1.2.840.10008.1.2.5": "image/dicom-rle",
}


def frame_media_type(transfer_syntax_uid: str) -> tuple[str, str]:
    """Return media type and transfer syntax in which a stored frame travels: nothing is transcoded.

    >>> frame_media_type("1.2.840.10008.1.2.4.50")
    ('image/jpeg', '1.2.840.10008.1.2.4.50')
    >>> frame_media_type("1.2.840.10008.1.2.2")  # frames leave here in little endian
    ('application/octet-stream', '1.2.840.10008.1.2.1')
    """
    if transfer_syntax_uid in _NATIVE:
        return OCTETS, _EXPLICIT_LITTLE_ENDIAN
    return _COMPRESSED.get(transfer_syntax_uid, OCTETS), transfer_syntax_uid


def require_accepted(accept: str, media_type: str, transfer_syntax_uid: str) -> None:
    """Refuse (406) a client whose Accept header names other media types or transfer syntaxes only.

    ``application/octet-stream`` is taken as "as it is stored".
    """
    kinds = set(re.findall(r"[a-z*]+/[\w.+*-]+", accept)) - {"multipart/related"}
    syntaxes = set(re.findall(r'transfer-syntax="?([\d.*]+)', accept))
    is_kind = not kinds or kinds & {"*/*", media_type, OCTETS, f"{media_type.partition('/')[0]}/*"}
    if is_kind and (not syntaxes or syntaxes & {"*", transfer_syntax_uid}):
        return
    sentence = f"Only {media_type}; transfer-syntax={transfer_syntax_uid} is there; this server does not transcode."
    raise HTTPException(406, sentence)


def multipart(parts: Iterable[tuple[str, Iterable[bytes]]], media_type: str) -> StreamingResponse:
    """Return a multipart/related answer of (content type, chunks) parts whose common type is ``media_type``."""
    boundary = uuid.uuid4().hex

    def chunks() -> Iterator[bytes]:
        for content_type, content in parts:
            yield f"--{boundary}\r\nContent-Type: {content_type}\r\n\r\n".encode()
            yield from content
            yield b"\r\n"
        yield f"--{boundary}--\r\n".encode()

    return StreamingResponse(chunks(), media_type=f'multipart/related; type="{media_type}"; boundary={boundary}')


class PartsToFiles:
    """Write each part to a file of its own in ``folder``; ``paths`` are those that are complete.

    Raises
    ------
    ValueError
        If ``content_type`` is no multipart type with a boundary.
    """

    def __init__(self, content_type: str, folder: Path) -> None:
        message = Message()
        message["content-type"] = content_type
        boundary = message.get_boundary()
        if message.get_content_maintype() != "multipart" or not boundary:
            msg = f"The body has the type {content_type[:80]!r}; multipart/related with a boundary is accepted."
            raise ValueError(msg)
        self.paths: list[Path] = []
        self.is_complete = False
        self._folder = folder
        self._file: BinaryIO | None = None
        self._path = folder
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_part_data": self._data,
                "on_part_end": self._end,
                "on_end": self._finish,
            },
        )

    def write(self, chunk: bytes) -> None:
        """Take in the next bytes of the body.

        Raises
        ------
        ValueError
            If they cannot be part of a multipart body.
        """
        try:
            self._parser.write(chunk)
        except MultipartParseError as exc:
            msg = f"The multipart body is malformed ({exc})."
            raise ValueError(msg) from exc

    def close(self) -> None:
        """End the body.

        Raises
        ------
        ValueError
            If it was cut off.
        """
        if self._file is not None:
            self._file.close()
        if not self.is_complete:
            msg = "The multipart body is cut off: its closing boundary is missing."
            raise ValueError(msg)

    def _begin(self) -> None:
        descriptor, name = tempfile.mkstemp(".dcm", dir=self._folder)
        self._file, self._path = os.fdopen(descriptor, "wb"), Path(name)

    def _data(self, data: bytes, start: int, end: int) -> None:
        assert self._file is not None
        self._file.write(data[start:end])

    def _end(self) -> None:
        assert self._file is not None
        self._file.close()
        self.paths.append(self._path)
        self._file = None

    def _finish(self) -> None:
        self.is_complete = True
