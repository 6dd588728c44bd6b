# SPDX-License-Identifier: Apache-2.0
"""One stored frame of a DICOM cine, decoded, and its colours as they are shown: uint8 grey or RGB.

The decoders of native, RLE, JPEG 2000 and (by GDCM) rare frames return samples as they are stored, (H, W, S) uint8 or
uint16. 8-bit JPEG, the common one, goes by the stream's own markers straight to grey or RGB.

Grey goes through one table over every value that can be stored: modality LUT or rescale, then the first VOI window or
VOI LUT, else a straight line from the lowest storable value to 0 and the highest to 255; MONOCHROME1 is inverted.
Eight-bit MONOCHROME2 without a window is thus shown as it is stored. YBR_FULL becomes RGB to the bit as in libjpeg.

References
----------
PS3.5 8.2.1 (bit and byte order), A.4 (JPEG, JPEG-LS, JPEG 2000), G (RLE); PS3.3 C.7.6.3.1.2 (Photometric
Interpretation), C.7.9 (palettes), C.11.1 (Modality LUT), C.11.2 (VOI); ITU-T T.81 annex B (markers), T.871 (JFIF and
YCbCr), T.872 section 6.5.3 (the Adobe APP14 marker)
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset

from echo_plugin.cine import ByteArray
from echo_plugin.io import gdcm_frame
from echo_plugin.io.dicom_header import DicomHeader

try:  # pydicom >= 3
    from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi
except ImportError:
    from pydicom.pixel_data_handlers.util import apply_color_lut, apply_modality_lut, apply_voi

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


# 1.402, 1.772, 0.71414 and 0.34414 in 16-bit fixed point
_CHROMA = np.arange(256, dtype=np.int32) - 128
_HALF = 1 << 15
_CR_TO_R = (91881 * _CHROMA + _HALF) >> 16
_CB_TO_B = (116130 * _CHROMA + _HALF) >> 16
_CR_TO_G = -46802 * _CHROMA
_CB_TO_G = -22554 * _CHROMA + _HALF


def ybr_to_rgb(ybr: ByteArray) -> ByteArray:
    """Return (H, W, 3) uint8 RGB of YBR_FULL."""
    y, cb, cr = ybr[..., 0].astype(np.int32), ybr[..., 1], ybr[..., 2]
    rgb = np.stack([y + _CR_TO_R[cr], y + ((_CB_TO_G[cb] + _CR_TO_G[cr]) >> 16), y + _CB_TO_B[cb]], axis=-1)
    return np.clip(rgb, 0, 255).astype(np.uint8)


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


def grey_table(header: DicomHeader) -> ByteArray:
    """Return the (2 ** bits_stored,) uint8 grey of every stored value, MONOCHROME1 or MONOCHROME2."""
    values = _storable_values(header)
    real = np.asarray(apply_modality_lut(values, header.dataset), dtype=np.float64)
    grey = _window(real, header.dataset)
    if grey is None and header.dataset.get("VOILUTSequence"):
        bits = int(header.dataset.VOILUTSequence[0].LUTDescriptor[2])
        grey = np.asarray(apply_voi(real.astype(np.int32), header.dataset), dtype=np.float64) / (2**bits - 1)
    if grey is None:
        low, high = float(real.min()), float(real.max())
        grey = (real - low) / max(high - low, 1.0)
    if header.photometric_interpretation == "MONOCHROME1":
        grey = 1.0 - grey
    return np.rint(np.clip(grey, 0.0, 1.0) * 255.0).astype(np.uint8)


def palette_table(header: DicomHeader) -> ByteArray:
    """Return the (2 ** bits_stored, 3) uint8 RGB of every stored value of a PALETTE COLOR image."""
    colours = np.asarray(apply_color_lut(_storable_values(header), header.dataset))
    if colours.dtype.itemsize == 2 and colours.max() > 255:  # else 8-bit entries in 16-bit words, which are met
        colours = colours >> 8
    return colours.astype(np.uint8)


def _storable_values(header: DicomHeader) -> NDArray[np.int32]:
    """Return the value that each of the 2 ** bits_stored bit patterns means."""
    patterns = np.arange(2**header.bits_stored, dtype=np.int32)
    if header.is_signed:
        patterns[patterns >= 2 ** (header.bits_stored - 1)] -= 2**header.bits_stored
    return patterns


def _window(real: NDArray[np.float64], header: Dataset) -> NDArray[np.float64] | None:
    """Return 0..1 by the first VOI window, PS3.3 C.11.2.1.2 and C.11.2.1.3; None: the header has none that is valid."""
    centre, width = _first(header.get("WindowCenter")), _first(header.get("WindowWidth"))
    kind = str(header.get("VOILUTFunction") or "LINEAR").strip()
    if centre is None or width is None or width < (1.0 if kind == "LINEAR" else 1e-9):
        return None
    if kind == "SIGMOID":
        return 1.0 / (1.0 + np.exp(np.clip(-4.0 * (real - centre) / width, -700.0, 700.0)))
    if kind == "LINEAR_EXACT":
        return (real - centre) / width + 0.5
    if width == 1.0:
        return (real > centre - 0.5).astype(np.float64)
    return (real - (centre - 0.5)) / (width - 1.0) + 0.5


def _first(value: object) -> float | None:
    if value is None or value == "":
        return None
    first = value if isinstance(value, str | float | int) else next(iter(value), None)  # type: ignore[call-overload]
    number = float(first) if first not in (None, "") else float("nan")
    return number if np.isfinite(number) else None


def aligned(samples: Samples, header: DicomHeader) -> Samples:
    """Return the samples moved so that bit 0 is the lowest stored one, without overlay bits above."""
    high_bit = header.dataset.get("HighBit")
    shift = 0 if high_bit is None else int(high_bit) + 1 - header.bits_stored
    if shift < 0 or shift + header.bits_stored > header.bits_allocated:
        msg = f"(0028,0102) 'High Bit' {high_bit} with {header.bits_stored} bits stored"
        raise ValueError(msg)
    if shift == 0 and header.bits_stored == header.bits_allocated:
        return samples
    moved = (samples >> shift) & (2**header.bits_stored - 1)
    return moved.astype(samples.dtype)
