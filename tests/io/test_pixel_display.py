# SPDX-License-Identifier: Apache-2.0
"""Stored values become the grey or colour that the Standard says."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from echo_plugin.errors import UnreadableCineError
from echo_plugin.io.dicom_cine import read_dicom_cine
from echo_plugin.io.frame_codecs import ybr_to_rgb

MakeDicom = Callable[..., Path]


def grey_values(values: list[int], dtype: str = "u2") -> np.ndarray:
    return np.array(values, dtype=dtype).reshape(1, 1, -1, 1)


def shown(path: Path) -> list:
    return read_dicom_cine(path).pixels[0, 0].squeeze().tolist()


def test_monochrome1_is_inverted(make_dicom: MakeDicom) -> None:
    assert shown(make_dicom(grey_values([0, 1, 254, 255], "u1"), "MONOCHROME1")) == [255, 254, 1, 0]


def test_monochrome2_of_8_bits_is_shown_as_stored(make_dicom: MakeDicom) -> None:
    assert shown(make_dicom(grey_values(list(range(256)), "u1"))) == list(range(256))


def test_window_of_the_whole_8_bit_range_changes_nothing(make_dicom: MakeDicom) -> None:
    path = make_dicom(grey_values(list(range(256)), "u1"), WindowCenter=128, WindowWidth=256)

    assert shown(path) == list(range(256))


def test_16_bit_grey_without_window_is_scaled_from_all_stored_bits(make_dicom: MakeDicom) -> None:
    assert shown(make_dicom(grey_values([0, 257, 32896, 65535]))) == [0, 1, 128, 255]


def test_signed_grey_is_scaled_from_its_lowest_to_its_highest_value(make_dicom: MakeDicom) -> None:
    assert shown(make_dicom(grey_values([-32768, 0, 32767], "i2"), PixelRepresentation=1)) == [0, 128, 255]


def test_rescale_comes_before_the_window(make_dicom: MakeDicom) -> None:
    path = make_dicom(
        grey_values([0, 500, 600, 700, 65535]),
        RescaleSlope=2,
        RescaleIntercept=-1000,
        WindowCenter=200.5,
        WindowWidth=401,
    )

    assert shown(path) == [0, 0, 128, 255, 255]  # 2 x 600 - 1000 = 200, the middle of 0..400


@pytest.mark.parametrize(("function", "middle"), [("LINEAR_EXACT", 127.5), ("SIGMOID", 127.5)])
def test_other_voi_functions_are_followed(make_dicom: MakeDicom, function: str, middle: float) -> None:
    path = make_dicom(grey_values([0, 1000, 4000]), WindowCenter=1000, WindowWidth=500, VOILUTFunction=function)

    low, centre, high = shown(path)
    assert (low, high) == (0, 255)
    assert centre == pytest.approx(middle, abs=0.51)


def test_invalid_window_is_passed_over(make_dicom: MakeDicom) -> None:
    assert shown(make_dicom(grey_values([0, 128, 255], "u1"), WindowCenter=10, WindowWidth=0)) == [0, 128, 255]


def test_overlay_bits_above_the_stored_ones_are_ignored(make_dicom: MakeDicom) -> None:
    path = make_dicom(grey_values([0x0000, 0x8000, 0x0FFF, 0xFFFF]), BitsStored=12, HighBit=11)

    assert shown(path) == [0, 0, 255, 255]


def test_high_bit_other_than_the_lowest_place_moves_the_samples(make_dicom: MakeDicom) -> None:
    assert shown(make_dicom(grey_values([0x0000, 0xFFF0, 0x800F]), BitsStored=12, HighBit=15)) == [0, 255, 128]


@pytest.mark.parametrize("entry_bits", [8, 16])
def test_palette_of_8_and_16_bit_entries_becomes_rgb(make_dicom: MakeDicom, entry_bits: int) -> None:
    lookup = {}
    for colour, factor in (("Red", 1), ("Green", 2), ("Blue", 3)):
        entries = (np.arange(256) * factor % 256).astype("<u2")
        data = entries.astype("u1") if entry_bits == 8 else entries * 256
        lookup[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, entry_bits]
        lookup[f"{colour}PaletteColorLookupTableData"] = data.tobytes()

    path = make_dicom(grey_values([0, 1, 100, 255], "u1"), "PALETTE COLOR", **lookup)

    assert shown(path) == [[0, 0, 0], [1, 2, 3], [100, 200, 44], [255, 254, 253]]


def test_palette_clamps_outside_its_first_mapped_value(make_dicom: MakeDicom) -> None:
    lookup = {}
    for colour in ("Red", "Green", "Blue"):
        lookup[f"{colour}PaletteColorLookupTableDescriptor"] = [4, 10, 8]
        lookup[f"{colour}PaletteColorLookupTableData"] = bytes([7, 8, 9, 250])

    path = make_dicom(grey_values([0, 10, 11, 13, 200], "u1"), "PALETTE COLOR", **lookup)

    assert [rgb[0] for rgb in shown(path)] == [7, 7, 8, 250, 250]


def test_palette_without_tables_is_refused(make_dicom: MakeDicom) -> None:
    with pytest.raises(UnreadableCineError, match="has a header whose grey levels or colours cannot be read"):
        read_dicom_cine(make_dicom(grey_values([0, 1], "u1"), "PALETTE COLOR"))


def test_ybr_to_rgb_is_the_inverse_of_the_standard_within_rounding() -> None:
    rng = np.random.default_rng(3)
    rgb = rng.integers(0, 256, (50, 50, 3)).astype(np.float64)
    to_ybr = np.array([[0.2990, 0.5870, 0.1140], [-0.1687, -0.3313, 0.5000], [0.5000, -0.4187, -0.0813]])  # PS3.3
    ybr = np.clip(np.rint(rgb @ to_ybr.T + [0, 128, 128]), 0, 255).astype(np.uint8)

    assert np.abs(ybr_to_rgb(ybr) - rgb).max() <= 2
