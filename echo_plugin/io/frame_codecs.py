# SPDX-License-Identifier: Apache-2.0
"""The rarer encodings of one DICOM frame, decoded to the samples as they are stored; no colour is touched.

Every function returns (H, W, S) uint8 or uint16. The common one, 8-bit JPEG, is in ``jpeg_frames``.

References
----------
PS3.5 8.2.1 (bit and byte order), A.4 (JPEG, JPEG-LS, JPEG 2000), G (RLE)
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from echo_plugin.io import gdcm_frame
from echo_plugin.io.dicom_header import DicomHeader

JPEG_LS = frozenset({"1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"})
Samples = NDArray[np.uint8] | NDArray[np.uint16]


def native_samples(raw: bytes, header: DicomHeader) -> Samples:
    """Return the samples of an uncompressed frame: any *Planar Configuration*, byte order or chroma subsampling."""
    height, width, samples = header.height, header.width, header.samples_per_pixel
    order = "<" if header.is_little_endian else ">"
    stored = np.frombuffer(raw, dtype=np.uint8 if header.bits_allocated == 8 else order + "u2")
    if stored.dtype.itemsize == 2:
        stored = stored.astype(np.uint16)
    if samples == 3 and stored.size == height * width * 2:
        return _spread_chroma(stored.reshape(height, width // 2, 4))
    if header.planar_configuration == 1 and samples == 3:
        return np.ascontiguousarray(stored.reshape(samples, height, width).transpose(1, 2, 0))
    return stored.reshape(height, width, samples)


def _spread_chroma(pairs: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return (H, W, 3) from (H, W / 2, 4) Y1 Y2 CB CR: both pixels of a pair take its chroma, PS3.3 C.7.6.3.1.2."""
    H, half_W, _ = pairs.shape
    ybr = np.empty((H, half_W, 2, 3), dtype=np.uint8)
    ybr[..., 0] = pairs[..., :2]
    ybr[..., 1] = pairs[..., 2, None]
    ybr[..., 2] = pairs[..., 3, None]
    return ybr.reshape(H, 2 * half_W, 3)


def rle_samples(raw: bytes, header: DicomHeader) -> Samples:
    """Return the samples of an RLE frame: one PackBits segment for each byte of each sample, high byte first."""
    height, width, samples = header.height, header.width, header.samples_per_pixel
    bytes_each = header.bits_allocated // 8
    count, *offsets = struct.unpack_from("<16I", raw)
    if count != samples * bytes_each:
        msg = f"an RLE frame of {count} segments where {samples * bytes_each} are needed"
        raise ValueError(msg)
    offsets = [*offsets[:count], len(raw)]
    planes = np.empty((samples, height * width, bytes_each), dtype=np.uint8)
    for segment in range(count):
        packed = raw[offsets[segment] : offsets[segment + 1]]
        sample, byte = divmod(segment, bytes_each)
        # the TIFF decoder of Pillow unpacks the same PackBits; as one long row, since DICOM's runs may cross rows
        row = Image.frombytes("L", (height * width, 1), packed, "packbits", "L")
        planes[sample, :, byte] = np.asarray(row)[0]
    stored = planes.view(">u2").astype(np.uint16) if bytes_each == 2 else planes
    return np.ascontiguousarray(stored.reshape(samples, height, width).transpose(1, 2, 0))


def jpeg2000_samples(raw: bytes, header: DicomHeader) -> Samples:
    """Return the samples of a JPEG 2000 frame; a colour transform that the stream names (RCT, ICT) is undone."""
    from openjpeg.utils import decode, get_parameters

    found = get_parameters(raw)
    expected = (header.height, header.width, header.samples_per_pixel)
    if (found["rows"], found["columns"], found["samples_per_pixel"]) != expected:
        msg = f"a JPEG 2000 stream of {found['rows']} x {found['columns']} px"
        raise ValueError(msg)
    stored = decode(raw).reshape(expected)
    return stored.astype(np.uint8) if stored.dtype.itemsize == 1 else stored.astype(np.uint16)


def undoes_colour_transform(raw: bytes) -> bool:
    """Whether a JPEG 2000 stream names a colour transform (its COD marker, T.800 A.6.1), which decoding undoes."""
    position = raw.find(b"\xff\x4f\xff\x51") + 2
    while position >= 2 and position + 10 <= len(raw) and raw[position] == 0xFF:
        if raw[position + 1] == 0x52:
            return raw[position + 8] == 1
        position += 2 + int(struct.unpack_from(">H", raw, position + 2)[0])
    return False


def gdcm_samples(raw: bytes, header: DicomHeader) -> Samples:
    """Return the samples of a JPEG-LS frame or one of JPEG with more than 8 bits, by GDCM."""
    is_jpeg_ls = header.transfer_syntax_uid in JPEG_LS
    decode = gdcm_frame.decode if is_jpeg_ls else gdcm_frame.decode_apart
    shape = (header.height, header.width, header.samples_per_pixel)
    bits = (header.bits_allocated, header.bits_stored)
    decoded = decode(raw, gdcm_frame.Frame(*shape, *bits, int(header.is_signed), header.transfer_syntax_uid))
    if header.bits_allocated == 8:
        return np.frombuffer(decoded, dtype=np.uint8).reshape(shape)
    return np.frombuffer(decoded, dtype=np.uint16).reshape(shape)
