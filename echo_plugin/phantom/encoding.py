# SPDX-License-Identifier: Apache-2.0
"""The ways in which machines store pixels, and one frame turned into a codestream of each."""

from __future__ import annotations

import io
from enum import Enum

import numpy as np
import simplejpeg
from PIL import Image
from pydicom.encoders import get_encoder  # type: ignore[attr-defined]  # exported in 2.4 and 3 alike
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit, RLELossless

from echo_plugin.cine import ByteArray


class Encoding(Enum):
    """How the pixels are stored."""

    JPEG_COLOUR = "jpeg-ybr422"
    """JPEG baseline, YBR_FULL_422: what nearly every machine sends."""
    JPEG_GREY = "jpeg-grey"
    """JPEG baseline, MONOCHROME2."""
    RLE_COLOUR = "rle-rgb"
    """RLE lossless, RGB."""
    RAW_COLOUR = "raw-rgb"
    """Uncompressed RGB, explicit VR little endian."""
    RAW_GREY = "raw-grey"
    """Uncompressed MONOCHROME2, explicit VR little endian."""
    JPEG_2000 = "jpeg2000-rgb"
    """JPEG 2000 lossless with the reversible colour transform."""

    @property
    def is_lossy(self) -> bool:
        """Whether reading gives back other pixels than were written."""
        return self in (Encoding.JPEG_COLOUR, Encoding.JPEG_GREY)

    @property
    def is_grey(self) -> bool:
        """Whether one sample per pixel is stored."""
        return self in (Encoding.JPEG_GREY, Encoding.RAW_GREY)

    @property
    def transfer_syntax(self) -> UID:
        """(0002,0010) *Transfer Syntax UID*."""
        syntaxes = {
            Encoding.JPEG_COLOUR: JPEGBaseline8Bit,
            Encoding.JPEG_GREY: JPEGBaseline8Bit,
            Encoding.RLE_COLOUR: RLELossless,
            Encoding.JPEG_2000: JPEG2000Lossless,
        }
        return syntaxes.get(self, ExplicitVRLittleEndian)

    @property
    def photometric_interpretation(self) -> str:
        """(0028,0004) *Photometric Interpretation*."""
        if self.is_grey:
            return "MONOCHROME2"
        return {Encoding.JPEG_COLOUR: "YBR_FULL_422", Encoding.JPEG_2000: "YBR_RCT"}.get(self, "RGB")


def _run_length_encoded(frame: ByteArray) -> bytes:
    """Return the PackBits segments of the planes of one (H, W, 3) frame."""
    height, width, samples = frame.shape
    return get_encoder(RLELossless).encode(
        frame,
        encoding_plugin="pydicom",
        rows=height,
        columns=width,
        samples_per_pixel=samples,
        planar_configuration=0,
        photometric_interpretation="RGB",
        bits_allocated=8,
        bits_stored=8,
        pixel_representation=0,
        number_of_frames=1,
    )


def encode_frame(frame: ByteArray, encoding: Encoding, quality: int) -> bytes:
    """Return one (H, W, 3|1) frame as one compressed codestream."""
    if encoding is Encoding.JPEG_COLOUR:
        return simplejpeg.encode_jpeg(np.ascontiguousarray(frame), quality, "RGB", "422")
    if encoding is Encoding.JPEG_GREY:
        return simplejpeg.encode_jpeg(np.ascontiguousarray(frame), quality, "GRAY", "Gray")
    if encoding is Encoding.RLE_COLOUR:
        return _run_length_encoded(frame)
    codestream = io.BytesIO()
    Image.fromarray(frame).save(codestream, "JPEG2000", no_jp2=True, mct=1, irreversible=False)
    return codestream.getvalue()
