# SPDX-License-Identifier: Apache-2.0
"""Media types of DICOMweb: what a stored frame is, what a client accepts, how several parts make one body.

References
----------
PS3.18 8.6, 8.7 (multipart, media types), RFC 2387 (multipart/related)

A frame as a picture for a browser (``/rendered``, ``/thumbnail``): its size, its proportions, its file format.

Without a viewport the picture has one pixel for each of the file's. One that is fitted into a viewport shows the
heart in its true proportions, which a browser, whose pixels are square, would not do by itself.

References
----------
PS3.18 8.3.5.1 (query parameters of rendered resources), 8.7.4 (rendered media types)

The parts of a multipart/related body, each in a temporary file, while the body is still arriving.
"""

from __future__ import annotations

import io
import os
import tempfile
import uuid
from collections.abc import AsyncIterable, Iterable, Iterator
from email.message import Message
from pathlib import Path
from typing import BinaryIO

from fastapi import HTTPException
from fastapi.responses import StreamingResponse
from PIL import Image
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser

from echo_plugin.io.dicom_cine import DicomFrames
from echo_plugin.io.dicom_header import height_to_width

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


def accepted_types(accept: str) -> list[tuple[str, str]]:
    """Return the (media type, transfer syntax) pairs of an Accept header; the type of multipart is that of its parts.

    >>> accepted_types('multipart/related; type="image/jpeg"; transfer-syntax=*, application/json')
    [('image/jpeg', '*'), ('application/json', '*')]
    """
    pairs = []
    for text in (accept or "*/*").split(","):
        message = Message()
        message["content-type"] = text.strip().replace("*/*", "any/any")
        kind = message.get_content_type() if text.strip() else "any/any"
        part = str(message.get_param("type", "") or "")
        syntax = str(message.get_param("transfer-syntax", "") or "*")
        pairs.append(((part or "*/*") if kind == "multipart/related" else kind.replace("any/any", "*/*"), syntax))
    return pairs


def require_accepted(accept: str, media_type: str, transfer_syntax_uid: str) -> None:
    """Refuse (406) a client that accepts only what would need transcoding.

    ``application/octet-stream`` without a transfer syntax is taken as "as it is stored".
    """
    for kind, syntax in accepted_types(accept):
        is_kind = kind in ("*/*", media_type, OCTETS) or kind == f"{media_type.partition('/')[0]}/*"
        if is_kind and syntax in ("*", transfer_syntax_uid):
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


THUMBNAIL_PX = 256
_FORMATS = {"image/jpeg": "JPEG", "image/png": "PNG"}


def draw(stored: DicomFrames, frame_index: int, bounds: tuple[int, int] | None, media_type: str) -> bytes:
    """Return one frame as a file; ``bounds`` : width and height in px that it may have at most, None: as it is."""
    pixels = stored.read([frame_index])[0]
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    if bounds:
        size = fitted((picture.width, picture.height), height_to_width(stored.header), bounds)
        picture = picture if size == picture.size else picture.resize(size, Image.Resampling.BICUBIC)
    target = io.BytesIO()
    picture.save(target, _FORMATS[media_type], quality=90)
    return target.getvalue()


def fitted(size: tuple[int, int], pixel_height_to_width: float, bounds: tuple[int, int]) -> tuple[int, int]:
    """Return the (width, height) in square px of a picture of (width, height) px, no larger than it and ``bounds`` are.

    Pixels that are not square make it wider or higher, so that no detail is lost before it is made smaller.

    >>> fitted((400, 300), 1.0, (200, 200)), fitted((400, 300), 1.0, (4000, 4000))
    ((200, 150), (400, 300))
    >>> fitted((400, 300), 2.0, (4000, 4000)), fitted((400, 300), 0.5, (200, 200))
    ((400, 600), (200, 75))
    """
    width, height = size[0] * max(1.0, 1 / pixel_height_to_width), size[1] * max(1.0, pixel_height_to_width)
    scale = min(1.0, bounds[0] / width, bounds[1] / height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def viewport(text: str | None) -> tuple[int, int] | None:
    """Return width and height in px of the parameter ``viewport``; None: it is not given.

    Raises
    ------
    ValueError
        If it is malformed.
    """
    if not text:
        return None
    parts = text.split(",")[:2]
    if len(parts) != 2 or not all(part.isdecimal() and 0 < int(part) <= 8192 for part in parts):
        msg = f"Parameter 'viewport' is {text[:40]!r}; width,height of 1 to 8192 px are accepted."
        raise ValueError(msg)
    return int(parts[0]), int(parts[1])


def picture_type(accept: str) -> str:
    """Return the media type in which a client that accepts ``accept`` is sent a picture; refuse (406) where none is."""
    for kind, _ in accepted_types(accept):
        if kind in _FORMATS:
            return kind
        if kind in ("*/*", "image/*"):
            return "image/jpeg"
    raise HTTPException(406, f"{', '.join(_FORMATS)} are there; {accept[:80]!r} is asked for.")


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


async def parts_to_files(chunks: AsyncIterable[bytes], content_type: str, folder: Path) -> list[Path]:
    """Write the parts of a multipart body to files in ``folder`` and return them in order.

    Raises
    ------
    ValueError
        If the body is no complete multipart body.
    """
    parts = PartsToFiles(content_type, folder)
    async for chunk in chunks:
        parts.write(chunk)
    parts.close()
    return parts.paths
