# SPDX-License-Identifier: Apache-2.0
"""One compressed frame decoded by GDCM: for JPEG-LS, and for JPEG of more than 8 bits, which nothing else here reads.

GDCM's JPEG of more than 8 bits ends the whole process on some damaged streams, so that one is run in a child process:
``python -m echo_plugin.io.gdcm_frame`` takes the arguments of :class:`Frame` and the stream, and gives the samples.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import astuple, dataclass

_LONGEST_S = 60.0


@dataclass(frozen=True)
class Frame:
    """How the samples of a frame are to be stored."""

    height: int
    width: int
    samples_per_pixel: int
    bits_allocated: int
    bits_stored: int
    is_signed: int
    transfer_syntax_uid: str


def decode(stream: bytes, frame: Frame) -> bytes:
    """Return the samples of a frame, interleaved, in this machine's byte order.

    Raises
    ------
    ValueError
        If GDCM cannot decode it.
    """
    import gdcm

    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(stream)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((frame.width, frame.height, 1))
    image.SetDataElement(element)
    # RGB for every colour: GDCM shall not convert what the stream's markers decide
    colours = "RGB" if frame.samples_per_pixel == 3 else "MONOCHROME2"
    image.SetPhotometricInterpretation(
        gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.GetPIType(colours))
    )
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(frame.transfer_syntax_uid)))
    bits = (frame.bits_allocated, frame.bits_stored, frame.bits_stored - 1)
    image.SetPixelFormat(gdcm.PixelFormat(frame.samples_per_pixel, *bits, frame.is_signed))
    image.SetPlanarConfiguration(0)
    text = image.GetBuffer()
    if text is None:
        msg = "a frame that GDCM cannot decode"
        raise ValueError(msg)
    samples: bytes = text.encode("utf-8", "surrogateescape")  # GDCM hands its char* out as text
    return samples


def decode_apart(stream: bytes, frame: Frame) -> bytes:
    """Return what :func:`decode` returns, from a child process.

    Raises
    ------
    ValueError
        If GDCM cannot decode it, crashes or does not end.
    """
    command = [sys.executable, "-m", __name__, *map(str, astuple(frame))]
    try:
        child = subprocess.run(command, input=stream, capture_output=True, check=True, timeout=_LONGEST_S)
    except subprocess.SubprocessError as exc:
        msg = "a frame that GDCM cannot decode"
        raise ValueError(msg) from exc
    return child.stdout


if __name__ == "__main__":
    height, width, samples, allocated, stored, signed = map(int, sys.argv[1:7])
    asked = Frame(height, width, samples, allocated, stored, signed, sys.argv[7])
    sys.stdout.buffer.write(decode(sys.stdin.buffer.read(), asked))
