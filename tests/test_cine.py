# SPDX-License-Identifier: Apache-2.0
"""A cine that exists is valid, and decodes only what is asked for."""

from collections.abc import Sequence

import numpy as np
import pytest

from echo_plugin.cine import Cine, FramesInMemory, UltrasoundRegion
from echo_plugin.errors import UnknownImageError


def make_cine(T: int = 4, H: int = 6, W: int = 8, C: int = 1, **fields: object) -> Cine:
    pixels = np.arange(T * H * W * C, dtype=np.uint8).reshape(T, H, W, C)
    return Cine(image_id="1.2.3", frames=FramesInMemory(pixels), **fields)


class CountingFrames:
    """Frames that remember which were decoded."""

    shape = (100, 4, 4, 1)

    def __init__(self) -> None:
        self.decoded: list[int] = []

    def read(self, frame_indices: Sequence[int]) -> np.ndarray:
        self.decoded += list(frame_indices)
        return np.zeros((len(frame_indices), 4, 4, 1), dtype=np.uint8)


def test_reading_two_frames_decodes_two_frames() -> None:
    frames = CountingFrames()

    Cine(image_id="1.2.3", frames=frames).read_frames([7, 99])

    assert frames.decoded == [7, 99]


def test_read_frames_keeps_the_asked_order() -> None:
    cine = make_cine()

    np.testing.assert_array_equal(cine.read_frames([3, 0]), cine.pixels[[3, 0]])


@pytest.mark.parametrize("frame_index", [-1, 4])
def test_a_frame_outside_the_cine_is_refused_with_the_range(frame_index: int) -> None:
    with pytest.raises(IndexError, match=rf"no frame {frame_index} \(0-based\); 0 to 3 are accepted"):
        make_cine().read_frames([frame_index])


def test_image_id_that_cannot_name_a_file_is_refused() -> None:
    with pytest.raises(UnknownImageError, match=r"Image id '\.\./x' is malformed"):
        Cine(image_id="../x", frames=FramesInMemory(np.zeros((1, 2, 2, 1), np.uint8)))


@pytest.mark.parametrize("rate", [0.0, -80.0, float("nan")])
def test_impossible_heart_rate_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match=r"1\.2\.3 has heart_rate_bpm .*; a positive number or None is accepted"):
        make_cine(heart_rate_bpm=rate)


def test_patient_who_is_not_born_is_refused() -> None:
    with pytest.raises(ValueError, match=r"1\.2\.3 has patient_age_days -1; 0 or more, or None"):
        make_cine(patient_age_days=-1)


def test_two_samples_per_pixel_are_refused() -> None:
    with pytest.raises(ValueError, match=r"2 samples per pixel; 1 \(grey\) or 3 \(RGB\)"):
        make_cine(C=2)


def test_frames_that_are_not_bytes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Frames are float64 .* uint8 is accepted"):
        FramesInMemory(np.zeros((1, 2, 2, 1)))


def test_no_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="has 0 frames"):
        make_cine(T=0)


@pytest.mark.parametrize(
    ("times", "message"),
    [([0.0, 1.0], "4 frames but"), ([0.0, 1.0, 1.0, 2.0], "do not ascend"), ([0.0, np.nan, 2.0, 3.0], "do not ascend")],
)
def test_impossible_frame_times_are_refused(times: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_cine(frame_times_ms=np.array(times))


def test_frame_time_is_the_mean_step_or_unknown() -> None:
    assert make_cine(frame_times_ms=np.array([0.0, 30.0, 60.0, 100.0])).frame_time_ms == pytest.approx(100 / 3)
    assert make_cine().frame_time_ms is None
    assert make_cine(T=1, frame_times_ms=np.zeros(1)).frame_time_ms is None


def test_region_beyond_the_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"exceeds its 8 x 6 px"):
        make_cine(regions=(UltrasoundRegion(0, 0, 9, 6),))


@pytest.mark.parametrize("corners", [(0, 0, 0, 5), (5, 0, 3, 5), (-1, 0, 3, 5), (0, 0, float("nan"), 5)])
def test_impossible_region_is_refused(corners: tuple[float, float, float, float]) -> None:
    with pytest.raises(ValueError, match="Ultrasound region"):
        UltrasoundRegion(*corners)


def test_spacing_must_be_positive() -> None:
    with pytest.raises(ValueError, match=r"mm_per_px_x is 0\.0; a positive number or None"):
        UltrasoundRegion(0, 0, 5, 5, mm_per_px_x=0.0)


def test_data_type_of_a_region_must_be_named() -> None:
    with pytest.raises(ValueError, match=r"data_type is 1; a RegionDataType is accepted"):
        UltrasoundRegion(0, 0, 5, 5, data_type=1)


def test_identity_is_not_in_the_repr() -> None:
    assert "DOE" not in repr(make_cine(patient_id="DOE-JANE"))
