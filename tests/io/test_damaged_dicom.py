# SPDX-License-Identifier: Apache-2.0
"""Whatever happens to the bytes of a file, the reader says so in one kind of error, or reads it."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import openjpeg.utils
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from echo_plugin.errors import UnreadableCineError
from echo_plugin.io.cine_file import read_cine

pytestmark = pytest.mark.filterwarnings("ignore:(Invalid value for VR|The value length|Expected .* VR)")
"""Damaged values are what is tested."""
MakeDicom = Callable[..., Path]
JPEG_BASELINE, JPEG_2000 = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.90"
ENCODINGS = ["palette", ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless, JPEG_BASELINE, JPEG_2000]


@pytest.fixture(params=ENCODINGS)
def whole(request: pytest.FixtureRequest, make_dicom: MakeDicom) -> bytes:
    """The bytes of a good file of 2 frames of 32 x 32 px, with a region and frame times."""
    rgb = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    item = pydicom.Dataset()
    item.RegionLocationMinX0 = item.RegionLocationMinY0 = 0
    item.RegionLocationMaxX1 = item.RegionLocationMaxY1 = 31
    facts = {"FrameTime": 20, "FrameIncrementPointer": 0x00181063, "SequenceOfUltrasoundRegions": [item]}
    if request.param == "palette":
        for colour in ("Red", "Green", "Blue"):
            facts[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 8]
            facts[f"{colour}PaletteColorLookupTableData"] = bytes(range(256))
        return make_dicom(rgb[..., :1].copy(), "PALETTE COLOR", **facts).read_bytes()
    if request.param == JPEG_BASELINE:
        encoded = [BytesIO(), BytesIO()]
        for frame, stream in zip(rgb, encoded, strict=True):
            Image.fromarray(frame).save(stream, "JPEG")
        streams = [stream.getvalue() for stream in encoded]
        return make_dicom(rgb, "YBR_FULL_422", syntax=JPEG_BASELINE, encoded=streams, **facts).read_bytes()
    if request.param == JPEG_2000:
        streams = [openjpeg.utils.encode_array(frame, photometric_interpretation=1) for frame in rgb]
        return make_dicom(rgb, "YBR_RCT", syntax=JPEG_2000, encoded=streams, **facts).read_bytes()
    path = make_dicom(
        rgb,
        "RGB",
        syntax=ImplicitVRLittleEndian if request.param == ImplicitVRLittleEndian else ExplicitVRLittleEndian,
        **facts,
    )
    if request.param == RLELossless:
        dataset = pydicom.dcmread(path)
        dataset.compress(RLELossless)
        dataset.save_as(path)
    return path.read_bytes()


def read_or_refuse(path: Path) -> None:
    """Read everything of a file; the only error let through is told apart here, any other fails the test."""
    try:
        pixels = read_cine(path).pixels
    except UnreadableCineError as error:
        assert str(error).startswith("File ")
        assert path.parent.name not in str(error)
        assert "pseudonym" not in str(error)
    else:
        assert pixels.ndim == 4
        assert pixels.dtype == np.uint8


FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FEW
@given(data=st.data())
def test_flipped_bytes_are_read_or_refused(whole: bytes, tmp_path: Path, data: st.DataObject) -> None:
    raw = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "flipped.dcm"
    path.write_bytes(raw)

    read_or_refuse(path)


@FEW
@given(data=st.data())
def test_flipped_header_bytes_are_read_or_refused(whole: bytes, tmp_path: Path, data: st.DataObject) -> None:
    raw = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(128, 1200))] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFE, 0xFF, 0x20, 0x55]))
    path = tmp_path / "flipped.dcm"
    path.write_bytes(raw)

    read_or_refuse(path)


@FEW
@given(share=st.floats(0, 1, exclude_max=True))
def test_truncated_file_is_refused(whole: bytes, tmp_path: Path, share: float) -> None:
    path = tmp_path / "cut.dcm"
    path.write_bytes(whole[: int(share * (len(whole) - 20))])

    with pytest.raises(UnreadableCineError, match=r"File 'cut\.dcm'"):
        read_cine(path).pixels  # noqa: B018 - decodes


@FEW
@given(raw=st.binary(max_size=300))
def test_random_bytes_behind_a_preamble_are_refused(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "noise.dcm"
    path.write_bytes(b"\0" * 128 + b"DICM" + raw)

    with pytest.raises(UnreadableCineError, match=r"File 'noise\.dcm'"):
        read_cine(path)


def test_stream_that_would_end_the_process_is_refused(make_dicom: MakeDicom) -> None:
    """Its Huffman table has lost its marker: GDCM 3.2 aborts on it."""
    stream = bytes.fromhex(
        "ffd8ffc3000b1000200020010111008bc4002000000301010101010002030000000000000a7b0c0908070605030401020f"
        "ffda0008010100010000ff008526ae798b88c9c04bffd9"
    )
    path = make_dicom(np.zeros((1, 32, 32, 1), np.uint16), syntax="1.2.840.10008.1.2.4.70", encoded=[stream])

    with pytest.raises(UnreadableCineError, match="has a frame at index 0 that cannot be decoded"):
        read_cine(path).pixels  # noqa: B018 - decodes
