# SPDX-License-Identifier: Apache-2.0
"""The header gives times, ages, regions and identity, or says that it does not."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from echo_plugin.cine import RegionDataType
from echo_plugin.errors import UnreadableCineError
from echo_plugin.io.dicom_cine import read_dicom_cine
from echo_plugin.io.dicom_header import age_days, frame_times_ms, read_header_and_bytes, valid_regions

MakeDicom = Callable[..., Path]


def header(**elements: object) -> Dataset:
    dataset = Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def region(x1: int, y1: int, x2: int, y2: int, **elements: object) -> Dataset:
    """An item with inclusive corners, tissue in two dimensions, 0.05 cm/px."""
    item = header(
        RegionSpatialFormat=1,
        RegionDataType=1,
        RegionLocationMinX0=x1,
        RegionLocationMinY0=y1,
        RegionLocationMaxX1=x2,
        RegionLocationMaxY1=y2,
        PhysicalUnitsXDirection=3,
        PhysicalUnitsYDirection=3,
        PhysicalDeltaX=0.05,
        PhysicalDeltaY=-0.05,
    )
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    return item


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({"FrameTime": 20}, [0, 20, 40]),
        ({"FrameTimeVector": [0, 30, 10]}, [0, 30, 40]),
        ({"FrameTimeVector": [30, 30, 10]}, [0, 30, 40]),
        ({"FrameTime": 20, "FrameTimeVector": [0, 30, 10]}, [0, 20, 40]),
        ({"FrameTime": 20, "FrameTimeVector": [0, 30, 10], "FrameIncrementPointer": 0x00181065}, [0, 30, 40]),
        ({"FrameTime": 20, "FrameTimeVector": [0, 30, 10], "FrameIncrementPointer": 0x00181063}, [0, 20, 40]),
        ({"CineRate": 25}, [0, 40, 80]),
        ({"CineRate": 25, "RecommendedDisplayFrameRate": 50}, [0, 40, 80]),
        ({"FrameTime": 0, "CineRate": 25}, [0, 40, 80]),
    ],
)
def test_frame_times_are_what_the_header_states(elements: dict, expected: list[float]) -> None:
    times = frame_times_ms(header(**elements), 3)

    assert times is not None
    assert times.tolist() == expected


@pytest.mark.parametrize(
    "elements",
    [
        {},
        {"FrameTime": 0},
        {"FrameTime": -5},
        {"CineRate": 0},
        {"RecommendedDisplayFrameRate": 50},  # how fast to play it, not how fast it was taken
        {"FrameTimeVector": [0, 30]},
        {"FrameTimeVector": [0, 0, 5]},
    ],
)
def test_frame_times_are_unknown_rather_than_guessed(elements: dict) -> None:
    assert frame_times_ms(header(**elements), 3) is None


def test_still_has_no_frame_times() -> None:
    assert frame_times_ms(header(FrameTime=20), 1) is None


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({"PatientBirthDate": "20200101", "StudyDate": "20200111"}, 10),
        ({"PatientBirthDate": "20200101", "StudyDate": "20200111", "PatientAge": "010D"}, 10),
        ({"PatientBirthDate": "19000101", "StudyDate": "20200111", "PatientAge": "003W"}, 21),
        ({"PatientAge": "002Y"}, 730),
        ({"PatientAge": "006M"}, 183),
        ({"PatientBirthDate": "20200101", "StudyDate": "20190101"}, None),
        ({"PatientBirthDate": "20201399", "StudyDate": "20210101"}, None),
        ({}, None),
    ],
)
def test_age_is_counted_in_days_unless_the_dates_contradict_it(elements: dict, expected: int | None) -> None:
    assert age_days(header(**elements)) == expected


def test_region_has_outer_corners_and_millimetres() -> None:
    (found,) = valid_regions([region(10, 20, 99, 79)], 100, 120)

    assert (found.x1, found.y1, found.x2, found.y2) == (10, 20, 100, 80)
    assert (found.mm_per_px_x, found.mm_per_px_y) == (0.5, 0.5)
    assert found.data_type is RegionDataType.TISSUE


def test_maximum_one_pixel_too_far_is_cut() -> None:
    (found,) = valid_regions([region(10, 20, 120, 100)], 100, 120)

    assert (found.x2, found.y2) == (120, 100)


def test_sequence_with_a_region_beyond_the_pixels_is_not_trusted_at_all() -> None:
    assert valid_regions([region(0, 0, 50, 50), region(0, 0, 639, 479)], 240, 320) == ()


@pytest.mark.parametrize("item", [Dataset(), region(50, 50, 40, 60), region(0, 0, 5, 5, RegionLocationMinX0=None)])
def test_damaged_region_is_not_returned(item: Dataset) -> None:
    assert valid_regions([item], 100, 100) == ()


@pytest.mark.parametrize(("elements"), [{"PhysicalUnitsXDirection": 4}, {"PhysicalDeltaX": 0.0}])
def test_region_without_centimetres_is_not_calibrated(elements: dict) -> None:
    (found,) = valid_regions([region(0, 0, 9, 9, **elements)], 100, 100)

    assert not found.is_calibrated


def test_m_mode_of_tissue_is_not_a_picture_of_tissue() -> None:
    (found,) = valid_regions([region(0, 0, 9, 9, RegionSpatialFormat=2)], 100, 100)

    assert found.data_type is RegionDataType.OTHER


@pytest.mark.real_data
def test_real_regions_are_read_where_they_fit_the_pixels(shared_data: Path) -> None:
    fits, exceeds = (
        read_header_and_bytes(shared_data / name)[0] for name in ("color3d_jpeg_baseline.dcm", "examples_ybr_color.dcm")
    )

    assert [(r.x1, r.y1, r.x2, r.y2) for r in fits.regions] == [(84, 31, 596, 415)]
    assert fits.regions[0].mm_per_px_x == pytest.approx(0.5105, abs=1e-4)
    assert exceeds.regions == ()
    assert (exceeds.frames, exceeds.height, exceeds.width) == (30, 240, 320)
    assert np.diff(exceeds.frame_times_ms) == pytest.approx(33.333)


def test_cine_carries_the_identity_of_its_header(make_dicom: MakeDicom, speckle: np.ndarray) -> None:
    cine = read_dicom_cine(make_dicom(speckle, "RGB", StudyInstanceUID="1.2.3", SeriesInstanceUID="", HeartRate=140))

    assert cine.image_id == cine.sop_instance_uid == "1.2.826.0.1.3680043.8.498.1"
    assert (cine.patient_id, cine.study_instance_uid, cine.series_instance_uid) == ("pseudonym-7", "1.2.3", None)
    assert cine.heart_rate_bpm == 140
    assert "pseudonym" not in repr(cine)


def test_patient_id_with_a_backslash_is_kept_as_it_is_written(make_dicom: MakeDicom, speckle: np.ndarray) -> None:
    assert read_dicom_cine(make_dicom(speckle, "RGB", PatientID="ward\\7")).patient_id == "ward\\7"


def test_malformed_sop_instance_uid_gives_way_to_the_file_name(make_dicom: MakeDicom, speckle: np.ndarray) -> None:
    cine = read_dicom_cine(make_dicom(speckle, "RGB", SOPInstanceUID="../../etc"))

    assert (cine.image_id, cine.sop_instance_uid) == ("made.dcm", None)


@pytest.mark.parametrize(
    ("elements", "match"),
    [
        ({"NumberOfFrames": 0}, r"\(0028,0008\) 'NumberOfFrames' is '0'; 1 to 1000000 is accepted"),
        ({"Rows": 0}, r"\(0028,0010\) 'Rows' is '0'; 1 to 65535 is accepted"),
        ({"Rows": None}, r"'Rows' is missing"),
        ({"Rows": 65535, "Columns": 65535}, "has frames of 65535 x 65535 px; up to 67108864 px are accepted"),
        ({"SamplesPerPixel": 4}, r"'SamplesPerPixel' is '4'; \(1, 3\) is accepted"),
        ({"SamplesPerPixel": 1}, "has 1 samples per pixel, which RGB cannot have"),
        ({"BitsAllocated": 32}, r"'BitsAllocated' is '32'; \(8, 16\) is accepted"),
        ({"BitsStored": 9}, r"'BitsStored' is '9'; 1 to 8 is accepted"),
        (
            {"PhotometricInterpretation": "HSV"},
            "'Photometric Interpretation' 'HSV'; grey, palette, RGB, YBR are accepted",
        ),
    ],
)
def test_header_that_cannot_be_true_is_refused(
    make_dicom: MakeDicom, speckle: np.ndarray, elements: dict, match: str
) -> None:
    with pytest.raises(UnreadableCineError, match=match):
        read_dicom_cine(make_dicom(speckle, "RGB", **elements))


def test_transfer_syntax_that_is_not_supported_is_named(make_dicom: MakeDicom, speckle: np.ndarray) -> None:
    path = make_dicom(speckle, "RGB", syntax="1.2.840.10008.1.2.4.102", encoded=[b"\0\0"] * 4)

    with pytest.raises(UnreadableCineError, match="has transfer syntax MPEG-4"):
        read_dicom_cine(path)


def test_dicom_without_pixels_is_refused(make_dicom: MakeDicom, speckle: np.ndarray) -> None:
    path = make_dicom(speckle, "RGB")
    raw = path.read_bytes()
    path.write_bytes(raw[: raw.rindex(b"\xe0\x7f\x10\x00")])

    with pytest.raises(UnreadableCineError, match=r"is DICOM without \(7FE0,0010\) 'Pixel Data'"):
        read_header_and_bytes(path)
