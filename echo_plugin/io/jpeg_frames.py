# SPDX-License-Identifier: Apache-2.0
"""One frame of a cine from its JPEG stream: the stream's own markers, and the fast decoder of 8-bit JPEG.

References
----------
ITU-T T.81 annex B (markers), T.871 (JFIF), T.872 section 6.5.3 (the Adobe APP14 marker)
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import simplejpeg

from echo_plugin.cine import ByteArray
from echo_plugin.io.ybr import ybr_to_rgb

_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}
"""SOF0..SOF15 without DHT, JPG and DAC; SOF55 of JPEG-LS."""
_LOSSLESS = 0xC3
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
_RGB_IDS = tuple(b"RGB")
_ADOBE_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"
"""An APP14 segment that says: three components, no colour transform."""


@dataclass(frozen=True)
class JpegMarkers:
    """What the markers before the first scan say.

    ``process`` : second byte of the SOF marker (0xC0 baseline, 0xC1 extended, 0xC2 progressive, 0xC3 lossless).
    ``component_ids`` one for each component; ``is_subsampled`` : chroma is coarser than luma.
    ``adobe_transform`` : 0 none, 1 YCbCr; None: no Adobe marker.
    """

    process: int
    precision: int
    height: int
    width: int
    component_ids: tuple[int, ...]
    is_subsampled: bool
    is_jfif: bool
    adobe_transform: int | None

    def holds_ybr(self, photometric_interpretation: str) -> bool:
        """Whether the components are Y, Cb, Cr: by the stream where it tells, only then by the header's tag.

        Headers that say RGB above a YCbCr stream are common (pydicom#2226), the reverse is met too.
        """
        if len(self.component_ids) != 3:
            return False
        if self.is_jfif:
            return True
        if self.adobe_transform is not None:
            return self.adobe_transform != 0
        if self.component_ids == _RGB_IDS:
            return False
        return self.is_subsampled or photometric_interpretation != "RGB"


def read_markers(stream: bytes) -> JpegMarkers:
    """Return what the markers of a JPEG or JPEG-LS stream say.

    Raises
    ------
    ValueError
        If no frame header can be found.
    """
    position, is_jfif, adobe_transform = 2, False, None
    while stream[:2] == b"\xff\xd8" and position + 4 <= len(stream) and stream[position] == 0xFF:
        marker = stream[position + 1]
        if marker == 0xFF or marker in _WITHOUT_LENGTH:
            position += 1 if marker == 0xFF else 2
            continue
        length = struct.unpack_from(">H", stream, position + 2)[0]
        segment = stream[position + 4 : position + 2 + length]
        if marker == 0xE0 and segment.startswith(b"JFIF\x00"):
            is_jfif = True
        elif marker == 0xEE and segment.startswith(b"Adobe") and len(segment) >= 12:
            adobe_transform = segment[11]
        elif marker in _START_OF_FRAME:
            return _markers(marker, segment, is_jfif=is_jfif, adobe_transform=adobe_transform)
        position += 2 + length
    msg = "no JPEG frame header"
    raise ValueError(msg)


def _markers(process: int, segment: bytes, *, is_jfif: bool, adobe_transform: int | None) -> JpegMarkers:
    precision, height, width, count = struct.unpack_from(">BHHB", segment)
    components = list(struct.iter_unpack("BBB", segment[6 : 6 + 3 * count]))
    samplings = {sampling for _, sampling, _ in components}
    return JpegMarkers(
        process=process,
        precision=precision,
        height=height,
        width=width,
        component_ids=tuple(identifier for identifier, _, _ in components),
        is_subsampled=len(samplings) > 1,
        is_jfif=is_jfif,
        adobe_transform=adobe_transform,
    )


def decode_8_bit(stream: bytes, markers: JpegMarkers, photometric_interpretation: str, out: ByteArray) -> None:
    """Decode an 8-bit JPEG stream into ``out``, (H, W, 1) grey or (H, W, 3) RGB uint8, contiguous.

    Raises
    ------
    ValueError
        If the stream is damaged or of another size or number of components.
    """
    require_shape(markers, *out.shape)
    if out.shape[2] == 1:
        simplejpeg.decode_jpeg(stream, "GRAY", buffer=out)
        return
    is_ybr, is_marked = (
        markers.holds_ybr(photometric_interpretation),
        markers.is_jfif or markers.adobe_transform is not None,
    )
    as_stored = markers.process == _LOSSLESS  # libjpeg converts no colours of lossless streams
    if not is_marked and (as_stored or not is_ybr):
        stream = stream[:2] + _ADOBE_RGB + stream[2:]  # libjpeg would take them for YCbCr by default
    simplejpeg.decode_jpeg(stream, "RGB", buffer=out)
    if as_stored and is_ybr and not is_marked:
        out[...] = ybr_to_rgb(out)


def is_8_bit(markers: JpegMarkers) -> bool:
    """Whether :func:`decode_8_bit` can decode it: Huffman-coded baseline, extended, progressive or lossless, 8 bits."""
    return markers.process in (0xC0, 0xC1, 0xC2, _LOSSLESS) and markers.precision == 8


def require_shape(markers: JpegMarkers, height: int, width: int, samples_per_pixel: int) -> None:
    """Refuse a stream that is not of the size its header states, before anything is allocated for it.

    Raises
    ------
    ValueError
        If rows, columns or components differ.
    """
    found = (markers.height, markers.width, len(markers.component_ids))
    if found != (height, width, samples_per_pixel):
        msg = f"a JPEG stream of {found[0]} x {found[1]} px and {found[2]} components"
        raise ValueError(msg)


def require_precision(markers: JpegMarkers, bits_allocated: int) -> None:
    """Refuse a stream whose samples do not fit the header's.

    Raises
    ------
    ValueError
        If the samples need another number of bytes.
    """
    if not (2 if bits_allocated == 8 else 9) <= markers.precision <= bits_allocated:
        msg = f"a JPEG stream of {markers.precision} bits"
        raise ValueError(msg)
