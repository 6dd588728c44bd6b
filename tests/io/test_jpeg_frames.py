# SPDX-License-Identifier: Apache-2.0
"""The colours of a JPEG frame follow its stream, not its header, where the stream tells."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from echo_plugin.io.dicom_cine import read_dicom_cine
from echo_plugin.io.frame_codecs import read_markers

MakeDicom = Callable[..., Path]
JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
ORANGE = (230, 120, 20)


def jfif_stream(*, subsampling: int = 0) -> bytes:
    """A YCbCr stream of orange with a JFIF marker, as every encoder of pictures writes it."""
    buffer = BytesIO()
    Image.new("RGB", (32, 16), ORANGE).save(buffer, "JPEG", quality=95, subsampling=subsampling)
    return buffer.getvalue()


def without_jfif(stream: bytes) -> bytes:
    assert stream[2:4] == b"\xff\xe0"
    return stream[:2] + stream[4 + int.from_bytes(stream[4:6], "big") :]


def rgb_stream(*, adobe: bool, ids: bytes) -> bytes:
    """A stream whose components are R, G and B: the planes of an RGB picture, told to be YCbCr to the encoder."""
    buffer = BytesIO()
    planes = [Image.new("L", (32, 16), level) for level in ORANGE]
    Image.merge("YCbCr", planes).save(buffer, "JPEG", quality=95, subsampling=0)
    stream = bytearray(without_jfif(buffer.getvalue()))
    frame, scan = stream.index(b"\xff\xc0"), stream.index(b"\xff\xda")
    for index, identifier in enumerate(ids):
        stream[frame + 10 + 3 * index] = identifier
        stream[scan + 5 + 2 * index] = identifier
    marker = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00" if adobe else b""
    return bytes(stream[:2]) + marker + bytes(stream[2:])


CASES = [
    ("JFIF under an RGB tag", jfif_stream(), "RGB"),
    ("subsampled chroma under an RGB tag", without_jfif(jfif_stream(subsampling=2)), "RGB"),
    ("no marker, YBR tag", without_jfif(jfif_stream()), "YBR_FULL_422"),
    ("JFIF, YBR_FULL tag", jfif_stream(), "YBR_FULL"),
    ("Adobe RGB under a YBR tag", rgb_stream(adobe=True, ids=b"\1\2\3"), "YBR_FULL_422"),
    ("components named RGB under a YBR tag", rgb_stream(adobe=False, ids=b"RGB"), "YBR_FULL_422"),
    ("no marker, RGB tag", rgb_stream(adobe=False, ids=b"\1\2\3"), "RGB"),
]


@pytest.mark.parametrize(("stream", "tag"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_orange_stays_orange(make_dicom: MakeDicom, stream: bytes, tag: str) -> None:
    path = make_dicom(np.zeros((1, 16, 32, 3), np.uint8), tag, syntax=JPEG_BASELINE, encoded=[stream])

    pixels = read_dicom_cine(path).pixels

    assert np.abs(pixels.astype(int) - ORANGE).max() <= 4


def test_grey_stream_stays_one_channel(make_dicom: MakeDicom, speckle: np.ndarray) -> None:
    buffer = BytesIO()
    Image.fromarray(speckle[0, :, :, 0]).save(buffer, "JPEG", quality=100)
    path = make_dicom(speckle[:1, ..., :1].copy(), syntax=JPEG_BASELINE, encoded=[buffer.getvalue()])

    pixels = read_dicom_cine(path).pixels

    np.testing.assert_array_equal(pixels[0, ..., 0], np.asarray(Image.open(buffer)))


@pytest.mark.parametrize("stream", [b"", b"\xff\xd8", b"\xff\xd8\xff", b"\xff\xd8\xff\xe0\x00\x02" * 3, b"GIF89a" * 9])
def test_stream_without_frame_header_is_refused(stream: bytes) -> None:
    with pytest.raises(ValueError, match="no JPEG frame header"):
        read_markers(stream)
