# SPDX-License-Identifier: Apache-2.0
"""From stored samples to what is seen: uint8 grey or RGB.

Grey goes through one table over every value that can be stored: modality LUT or rescale, then the first VOI window or
VOI LUT, else a straight line from the lowest storable value to 0 and the highest to 255; MONOCHROME1 is inverted.
Eight-bit MONOCHROME2 without a window is thus shown as it is stored.

References
----------
PS3.3 C.7.6.3.1.2 (Photometric Interpretation), C.7.9 (Palette Color Lookup Table), C.11.1 (Modality LUT), C.11.2 (VOI)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

try:  # pydicom >= 3
    from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi
except ImportError:
    from pydicom.pixel_data_handlers.util import apply_color_lut, apply_modality_lut, apply_voi

from echo_plugin.cine import ByteArray
from echo_plugin.io.dicom_header import DicomHeader
from echo_plugin.io.frame_codecs import Samples


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
