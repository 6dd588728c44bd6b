# SPDX-License-Identifier: Apache-2.0
"""A frame as a picture for a browser (``/rendered``, ``/thumbnail``): its size, its proportions, its file format.

Without a viewport the picture has one pixel for each of the file's. One that is fitted into a viewport shows the
heart in its true proportions, which a browser, whose pixels are square, would not do by itself.

References
----------
PS3.18 8.3.5.1 (query parameters of rendered resources), 8.7.4 (rendered media types)
"""

from __future__ import annotations

import io

from fastapi import HTTPException
from PIL import Image

from echo_plugin.host.dicomweb_media import accepted_types
from echo_plugin.io.dicom_cine import DicomFrames
from echo_plugin.io.pixel_shape import height_to_width

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
