# SPDX-License-Identifier: Apache-2.0
"""Frames are found in encapsulated pixel data by every table, by none, and across fragments."""

import struct
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from echo_plugin.errors import UnreadableCineError
from echo_plugin.io.dicom_cine import read_dicom_cine

MakeDicom = Callable[..., Path]
JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
ITEM, DELIMITER = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0\0\0\0\0"


@pytest.fixture
def streams(speckle: np.ndarray) -> list[bytes]:
    """A JPEG stream for each frame of the speckle, of even length."""
    found = []
    for frame in speckle:
        buffer = BytesIO()
        Image.fromarray(frame).save(buffer, "JPEG")
        found.append(buffer.getvalue() + b"\0" * (len(buffer.getvalue()) % 2))
    return found


def items(table: bytes, fragments: Sequence[bytes], *, delimiter: bytes = DELIMITER) -> bytes:
    """Encapsulate as PS3.5 A.4 draws it."""
    return b"".join(ITEM + struct.pack("<I", len(value)) + value for value in (table, *fragments)) + delimiter


def offsets(frames: Sequence[Sequence[bytes]]) -> list[int]:
    """The offset of each frame's first item from the first fragment's item."""
    lengths = [sum(8 + len(fragment) for fragment in frame) for frame in frames]
    return [sum(lengths[:index]) for index in range(len(frames))]


def halves(stream: bytes) -> list[bytes]:
    middle = len(stream) // 4 * 2
    return [stream[:middle], stream[middle:]]


@pytest.fixture
def write(make_dicom: MakeDicom, speckle: np.ndarray) -> Callable[..., Path]:
    def write_items(pixel_data: bytes, **elements: object) -> Path:
        return make_dicom(
            speckle, "YBR_FULL_422", syntax=JPEG_BASELINE, encoded=[b""], pixel_data=pixel_data, **elements
        )

    return write_items


def as_seen(streams: Sequence[bytes]) -> np.ndarray:
    return np.stack([np.asarray(Image.open(BytesIO(stream)).convert("RGB")) for stream in streams])


@pytest.mark.parametrize("table", ["none", "basic", "wrong", "wrong length"])
@pytest.mark.parametrize("fragmented", [False, True])
def test_frames_are_found_whatever_the_basic_offset_table_says(
    write: Callable[..., Path], streams: list[bytes], table: str, fragmented: bool
) -> None:
    frames = [halves(stream) if fragmented else [stream] for stream in streams]
    entries = {"none": [], "basic": offsets(frames), "wrong": [0, 3, 9, 12], "wrong length": [0, 8]}[table]
    fragments = [fragment for frame in frames for fragment in frame]

    cine = read_dicom_cine(write(items(struct.pack(f"<{len(entries)}I", *entries), fragments)))

    np.testing.assert_array_equal(cine.read_frames([2, 0, 3, 1]), as_seen(streams)[[2, 0, 3, 1]])


def test_frames_are_found_by_the_extended_offset_table(write: Callable[..., Path], streams: list[bytes]) -> None:
    lengths = struct.pack("<4Q", *map(len, streams))
    table = struct.pack("<4Q", *offsets([[stream] for stream in streams]))

    cine = read_dicom_cine(write(items(b"", streams), ExtendedOffsetTable=table, ExtendedOffsetTableLengths=lengths))

    np.testing.assert_array_equal(cine.pixels, as_seen(streams))


def test_fragments_are_cut_by_the_table_where_no_stream_begins(
    write: Callable[..., Path], streams: list[bytes]
) -> None:
    """The first fragment of a frame may be shorter than a marker."""
    frames = [[stream[:2], b"", stream[2:]] for stream in streams]
    entries = struct.pack("<4I", *offsets(frames))

    cine = read_dicom_cine(write(items(entries, [fragment for frame in frames for fragment in frame])))

    np.testing.assert_array_equal(cine.pixels, as_seen(streams))


def test_missing_delimiter_is_forgiven_when_all_frames_are_there(
    write: Callable[..., Path], streams: list[bytes]
) -> None:
    path = write(items(b"", streams, delimiter=b""))
    path.write_bytes(path.read_bytes().removesuffix(DELIMITER))

    np.testing.assert_array_equal(read_dicom_cine(path).pixels, as_seen(streams))


@pytest.mark.parametrize(
    ("frames", "match"),
    [(3, "states 3 frames but its pixel data hold 4"), (5, "states 5 frames but holds 4 fragments")],
)
def test_wrong_number_of_frames_is_refused(
    write: Callable[..., Path], streams: list[bytes], frames: int, match: str
) -> None:
    with pytest.raises(UnreadableCineError, match=match):
        read_dicom_cine(write(items(b"", streams), NumberOfFrames=frames))


def test_truncated_file_is_refused_before_any_frame_is_read(write: Callable[..., Path], streams: list[bytes]) -> None:
    path = write(items(b"", streams))
    path.write_bytes(path.read_bytes()[:-40])

    with pytest.raises(UnreadableCineError, match=r"'made\.dcm' is truncated: it ends at byte"):
        read_dicom_cine(path)


def test_truncated_uncompressed_file_is_refused(make_dicom: MakeDicom, speckle: np.ndarray) -> None:
    path = make_dicom(speckle, "RGB")
    path.write_bytes(path.read_bytes()[:-2])

    with pytest.raises(UnreadableCineError, match=r"is truncated: it ends at byte"):
        read_dicom_cine(path)


@pytest.mark.parametrize("frames", [3, 5])
def test_uncompressed_pixels_of_another_number_of_frames_are_refused(
    make_dicom: MakeDicom, speckle: np.ndarray, frames: int
) -> None:
    path = make_dicom(speckle, "RGB", NumberOfFrames=frames)

    with pytest.raises(UnreadableCineError, match=f"states {frames} frames of 2304 bytes but has 9216 bytes"):
        read_dicom_cine(path)


def test_frame_promised_by_too_few_bytes_is_refused(write: Callable[..., Path], streams: list[bytes]) -> None:
    with pytest.raises(UnreadableCineError, match=r"states 8000 x 8000 px for a frame .* of too few bytes"):
        read_dicom_cine(write(items(b"", streams), Rows=8000, Columns=8000))


def test_stream_of_another_size_than_the_header_is_refused(write: Callable[..., Path], streams: list[bytes]) -> None:
    cine = read_dicom_cine(write(items(b"", streams), Rows=48))

    with pytest.raises(UnreadableCineError, match="frame at index 1 that cannot be decoded"):
        cine.read_frames([1])
