# SPDX-License-Identifier: Apache-2.0
"""Every encoding of DESIGN section 5 gives the pixels that were stored."""

import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import openjpeg.utils
import pydicom
import pytest
from PIL import Image
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from echo_plugin.errors import UnreadableCineError
from echo_plugin.io import dicom_cine
from echo_plugin.io.dicom_cine import read_dicom_cine
from echo_plugin.io.frame_codecs import ybr_to_rgb

MakeDicom = Callable[..., Path]
JPEG_LOSSLESS, JPEG_LOSSLESS_ANY = "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.57"
JPEG_LS, JPEG_2000, JPEG_2000_LOSSY = "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"
JPEG_BASELINE, JPEG_EXTENDED = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"


def gdcm_encoded(path: Path, syntax: str) -> Path:
    """Re-encode an uncompressed file with GDCM."""
    import gdcm

    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    out = path.with_name("encoded.dcm")
    writer.SetFileName(str(out))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    assert pydicom.dcmread(out, stop_before_pixels=True).file_meta.TransferSyntaxUID == syntax
    return out


# Real files: where, and what a second decoder or a look at the picture says is there.
REAL_COLOURS = [
    ("OBXXXX1A.dcm", 0, (287, 791), (90, 205, 255), "blue focus mark, palette, raw"),
    ("OBXXXX1A_rle_2frame.dcm", 1, (149, 342), (0, 255, 70), "green text, palette, RLE"),
    ("US1_J2KI.dcm", 0, (191, 25), (145, 1, 1), "red of the power bar, JPEG 2000 YBR_ICT"),
    ("gdcm-US-ALOKA-16.dcm", 0, (67, 99), (0, 250, 0), "green cursor, 16-bit palette, implicit"),
    ("US-YBR_FULL_422-EVRLE.dcm", 0, (266, 774), (76, 200, 76), "green focus mark, uncompressed YBR_FULL_422"),
    ("color3d_jpeg_baseline.dcm", 119, (200, 300), (107, 107, 107), "septum, JPEG baseline YBR_FULL_422"),
]


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "frame_index", "place", "rgb", "what"), REAL_COLOURS, ids=[row[-1] for row in REAL_COLOURS]
)
def test_real_pixels_have_the_colour_they_are_seen_in(
    shared_data: Path, name: str, frame_index: int, place: tuple[int, int], rgb: tuple[int, int, int], what: str
) -> None:
    cine = read_dicom_cine(shared_data / name)

    assert tuple(cine.read_frames([frame_index])[0][place].tolist()) == rgb


@pytest.mark.real_data
@pytest.mark.parametrize(
    "name",
    ["OBXXXX1A.dcm", "OBXXXX1A_rle_2frame.dcm", "gdcm-US-ALOKA-16.dcm", "US1_J2KI.dcm", "US-YBR_FULL_422-EVRLE.dcm"],
)
def test_real_pixels_equal_those_of_pydicom(shared_data: Path, name: str) -> None:
    from pydicom.pixel_data_handlers.util import apply_color_lut, convert_color_space

    dataset = pydicom.dcmread(shared_data / name)
    expected, tag = dataset.pixel_array, dataset.PhotometricInterpretation
    if tag == "PALETTE COLOR":
        expected = (apply_color_lut(expected, dataset) >> 8).astype(np.uint8)
    elif tag == "YBR_FULL_422":
        expected = convert_color_space(expected, "YBR_FULL", "RGB")

    found = read_dicom_cine(shared_data / name).pixels

    difference = np.abs(found.astype(int) - expected.reshape(found.shape))
    assert difference.max() <= (1 if tag == "YBR_FULL_422" else 0)  # pydicom rounds the three products together


@pytest.mark.real_data
@pytest.mark.parametrize("slow_decoder", ["pillow", "gdcm"])
def test_fast_jpeg_path_is_bit_identical_to_the_slow_ones(shared_data: Path, slow_decoder: str) -> None:
    from pydicom.pixel_data_handlers.util import convert_color_space

    path = shared_data / "examples_ybr_color.dcm"
    dataset = pydicom.dcmread(path)
    dataset.convert_pixel_data(slow_decoder)
    slow = convert_color_space(dataset.pixel_array, "YBR_FULL", "RGB")

    fast = read_dicom_cine(path).pixels

    np.testing.assert_array_equal(fast, slow)


@pytest.mark.real_data
def test_fast_jpeg_path_is_bit_identical_to_pillow_on_the_large_cine(shared_data: Path) -> None:
    path = shared_data / "color3d_jpeg_baseline.dcm"
    streams = list(pydicom.encaps.generate_pixel_data_frame(pydicom.dcmread(path).PixelData, 120))[::17]
    slow = np.stack([np.asarray(Image.open(BytesIO(stream)).convert("RGB")) for stream in streams])

    fast = read_dicom_cine(path).read_frames(range(0, 120, 17))

    np.testing.assert_array_equal(fast, slow)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless])
@pytest.mark.parametrize("planar", [0, 1])
def test_rgb_is_read_in_both_planar_configurations(
    make_dicom: MakeDicom, speckle: np.ndarray, syntax: str, planar: int
) -> None:
    raw = speckle.transpose(0, 3, 1, 2).tobytes() if planar else None
    if syntax == RLELossless:
        path = make_dicom(speckle, "RGB")
        dataset = pydicom.dcmread(path)
        dataset.compress(RLELossless)
        dataset.PlanarConfiguration = planar  # RLE always stores planes, whatever this says
        dataset.save_as(path)
    else:
        path = make_dicom(speckle, "RGB", syntax=syntax, pixel_data=raw, PlanarConfiguration=planar)

    np.testing.assert_array_equal(read_dicom_cine(path).pixels, speckle)


@pytest.mark.parametrize("syntax", [JPEG_LOSSLESS, JPEG_LOSSLESS_ANY, JPEG_LS, JPEG_2000])
@pytest.mark.parametrize("photometric", ["RGB", "MONOCHROME2"])
def test_lossless_encodings_give_back_what_was_encoded(
    make_dicom: MakeDicom, speckle: np.ndarray, syntax: str, photometric: str
) -> None:
    stored = speckle if photometric == "RGB" else speckle[..., :1].copy()

    path = gdcm_encoded(make_dicom(stored, photometric), syntax)

    np.testing.assert_array_equal(read_dicom_cine(path).pixels, stored)


@pytest.mark.heavy
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless, JPEG_LOSSLESS, JPEG_2000])
def test_16_bit_grey_is_scaled_from_its_stored_bits(make_dicom: MakeDicom, speckle: np.ndarray, syntax: str) -> None:
    stored = speckle[..., :1].astype(np.uint16) * 16 + 5
    if syntax == ExplicitVRBigEndian:
        path = make_dicom(stored, syntax=syntax, pixel_data=stored.astype(">u2").tobytes(), BitsStored=12, HighBit=11)
    else:
        path = make_dicom(stored, BitsStored=12, HighBit=11)
    if syntax == RLELossless:
        dataset = pydicom.dcmread(path)
        dataset.compress(RLELossless)
        dataset.save_as(path)
    elif syntax != ExplicitVRLittleEndian and syntax != ExplicitVRBigEndian:
        path = gdcm_encoded(path, syntax)

    np.testing.assert_array_equal(read_dicom_cine(path).pixels, np.rint(stored / 4095 * 255).astype(np.uint8))


def test_big_endian_8_bit_words_are_swapped(make_dicom: MakeDicom, speckle: np.ndarray) -> None:
    stored = speckle[:, :3, :3, :1].copy()  # 9 bytes a frame: frames begin in the middle of words
    swapped = np.frombuffer(stored.tobytes(), dtype=np.uint16).byteswap().tobytes()
    path = make_dicom(stored, syntax=ExplicitVRBigEndian, pixel_data=swapped)
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"\x7f\xe0\x00\x10OB", b"\x7f\xe0\x00\x10OW"))

    np.testing.assert_array_equal(read_dicom_cine(path).pixels, stored)


def test_deflated_data_sets_are_inflated(make_dicom: MakeDicom, speckle: np.ndarray) -> None:
    path = make_dicom(speckle, "RGB")
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(path, write_like_original=False)

    np.testing.assert_array_equal(read_dicom_cine(path).pixels, speckle)


def test_deflated_bombs_are_refused(make_dicom: MakeDicom, speckle: np.ndarray) -> None:
    path = make_dicom(speckle, "RGB")
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(path, write_like_original=False)
    start = 144 + pydicom.dcmread(path).file_meta.FileMetaInformationGroupLength
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    path.write_bytes(path.read_bytes()[:start] + packer.compress(b"\0" * (1 << 24)) + packer.flush()[:-4])

    with pytest.raises(UnreadableCineError, match=r"'made\.dcm' holds a deflated data set that is cut off"):
        read_dicom_cine(path)


def test_files_without_preamble_are_read(make_dicom: MakeDicom, speckle: np.ndarray) -> None:
    path = make_dicom(speckle, "RGB")
    raw = path.read_bytes()
    path.write_bytes(raw[raw.index(b"\x08\x00\x16\x00UI") :])

    np.testing.assert_array_equal(read_dicom_cine(path).pixels, speckle)


def test_uncompressed_ybr_422_chroma_is_shared_by_two_pixels(make_dicom: MakeDicom) -> None:
    y1_y2_cb_cr = bytes([50, 60, 128, 228, 70, 80, 228, 128])  # one row of a reddish and a bluish pair
    path = make_dicom(np.zeros((1, 1, 4, 3), np.uint8), "YBR_FULL_422", pixel_data=y1_y2_cb_cr)

    rgb = read_dicom_cine(path).pixels[0, 0]

    # R = Y + 1.402 (CR - 128), B = Y + 1.772 (CB - 128): PS3.3 C.7.6.3.1.2
    assert rgb[:, 0].tolist() == [190, 200, 70, 80]
    assert rgb[:, 2].tolist() == [50, 60, 247, 255]


def test_ybr_full_rle_becomes_rgb(make_dicom: MakeDicom, speckle: np.ndarray) -> None:
    path = make_dicom(speckle, "YBR_FULL")
    dataset = pydicom.dcmread(path)
    dataset.compress(RLELossless)
    dataset.save_as(path)

    np.testing.assert_array_equal(read_dicom_cine(path).pixels[0], ybr_to_rgb(speckle[0]))


@pytest.mark.parametrize(("photometric", "ratios"), [("YBR_RCT", None), ("YBR_ICT", [2.0]), ("RGB", None)])
def test_jpeg_2000_colour_transform_follows_the_stream(
    make_dicom: MakeDicom, photometric: str, ratios: list[float] | None
) -> None:
    smooth = np.zeros((1, 32, 32, 3), np.uint8)
    smooth[..., 0], smooth[..., 2] = 200, 40
    stream = openjpeg.utils.encode_array(
        smooth[0], photometric_interpretation=1, use_mct=photometric != "RGB", compression_ratios=ratios
    )
    path = make_dicom(smooth, photometric, syntax=JPEG_2000_LOSSY if ratios else JPEG_2000, encoded=[stream])

    assert np.abs(read_dicom_cine(path).pixels.astype(int) - smooth).max() <= (2 if ratios else 0)


def test_jpeg_2000_without_transform_and_ybr_tag_is_converted(make_dicom: MakeDicom, speckle: np.ndarray) -> None:
    ybr = np.tile(speckle[0], (2, 2, 1))  # the encoder wants 32 px at least
    stream = openjpeg.utils.encode_array(ybr, photometric_interpretation=1, use_mct=False)
    path = make_dicom(ybr[None], "YBR_FULL", syntax=JPEG_2000, encoded=[stream])

    np.testing.assert_array_equal(read_dicom_cine(path).pixels[0], ybr_to_rgb(ybr))


def test_single_frames_are_read_without_decoding_the_others(
    make_dicom: MakeDicom, speckle: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = np.tile(speckle, (10, 1, 1, 1))
    streams = []
    for frame in stored:
        streams.append(BytesIO())
        Image.fromarray(frame).save(streams[-1], "JPEG", subsampling=0)
    encoded = [stream.getvalue() for stream in streams]
    cine = read_dicom_cine(make_dicom(stored, "YBR_FULL_422", syntax=JPEG_BASELINE, encoded=encoded))
    decoded: list[bytes] = []
    decode = dicom_cine.frame_codecs.decode_8_bit

    def noting_decode(raw: bytes, *rest: object) -> None:
        decoded.append(raw)
        decode(raw, *rest)

    monkeypatch.setattr(dicom_cine.frame_codecs, "decode_8_bit", noting_decode)

    cine.read_frames([33])

    assert [raw.rstrip(b"\0") for raw in decoded] == [encoded[33]]


def test_order_repeats_and_none_are_as_asked_for(make_dicom: MakeDicom, speckle: np.ndarray) -> None:
    cine = read_dicom_cine(make_dicom(speckle, "RGB"))

    np.testing.assert_array_equal(cine.read_frames([3, 0, 3]), speckle[[3, 0, 3]])
    assert cine.read_frames([]).shape == (0, 24, 32, 3)


def test_threads_read_the_same_frames_at_once(make_dicom: MakeDicom, speckle: np.ndarray) -> None:
    stored = np.tile(speckle, (16, 1, 1, 1))
    cine = read_dicom_cine(make_dicom(stored, "RGB"))

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: cine.read_frames(range(64)), range(16)))

    assert all(np.array_equal(result, stored) for result in results)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are listed in /proc on Linux only")
def test_no_file_handle_is_left_open(make_dicom: MakeDicom, speckle: np.ndarray) -> None:
    path = make_dicom(speckle, "RGB")
    cine = read_dicom_cine(path)
    cine.read_frames([0])

    assert path not in {Path(link).resolve() for link in Path("/proc/self/fd").iterdir()}


def test_file_changed_between_reads_is_refused(make_dicom: MakeDicom, speckle: np.ndarray) -> None:
    path = make_dicom(speckle, "RGB")
    cine = read_dicom_cine(path)
    path.write_bytes(path.read_bytes() + b"\0\0")

    with pytest.raises(UnreadableCineError, match=r"'made\.dcm' was changed while it was in use"):
        cine.read_frames([0])


def test_file_of_4_gigabytes_is_opened_and_read_in_places(make_dicom: MakeDicom) -> None:
    frames, frame_bytes = 4294, 1000 * 1000  # all that the 32-bit length of (7FE0,0010) can hold; the file is sparse
    path = make_dicom(np.zeros((1, 1000, 1000, 1), np.uint8), NumberOfFrames=frames)
    start = path.stat().st_size - frame_bytes
    with path.open("r+b") as file:
        file.seek(start - 4)
        file.write((frames * frame_bytes).to_bytes(4, "little"))
        file.seek(start + (frames - 1) * frame_bytes)
        file.write(b"\x11" * frame_bytes)

    cine = read_dicom_cine(path)

    assert cine.frame_count == 4294
    assert cine.read_frames([frames - 1]).min() == 17
    assert cine.read_frames([frames // 2]).max() == 0
