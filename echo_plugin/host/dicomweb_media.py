# SPDX-License-Identifier: Apache-2.0
"""Media types of DICOMweb: what a stored frame is, what a client accepts, how several parts make one body.

References
----------
PS3.18 8.6, 8.7 (multipart, media types), RFC 2387 (multipart/related)
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from email.message import Message

from fastapi import HTTPException
from fastapi.responses import StreamingResponse

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
