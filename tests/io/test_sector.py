# SPDX-License-Identifier: Apache-2.0
"""The sector is found in the pixels, whatever else is on the screen."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from echo_plugin.cine import Cine, FramesInMemory, RegionDataType, UltrasoundRegion, to_grey
from echo_plugin.geometry import box_iou
from echo_plugin.io.cine_file import read_cine
from echo_plugin.io.sector import find_sector, tissue_region


def iou(region: UltrasoundRegion, box: tuple[float, float, float, float]) -> float:
    return float(box_iou(np.array([[region.x1, region.y1, region.x2, region.y2]]), np.array([box]))[0, 0])


def screen(frames: int, level: float, *, seed: int = 0) -> np.ndarray:
    """(T, 300, 400) frames: a sector of speckle about a grey level, static text and scale, an ECG and a clock."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:300, :400]
    radius, angle = np.hypot(rows - 20, columns - 200), np.arctan2(columns - 200, rows - 20)
    sector = (radius < 200) & (np.abs(angle) < 0.7)
    grey = np.zeros((frames, 300, 400))
    grey[:, sector] = rng.gamma(2.0, level / 2, (frames, int(sector.sum())))
    grey[:, 5:15, 10:60:3] = 200  # text that stands still
    grey[:, 20:280:20, 380:386] = 255  # depth scale
    grey[:, 285:295, :] = 60  # a bar along the foot
    for t in range(frames):
        trace = 260 + (8 * np.sin(np.arange(400) / 7 + t)).astype(int)
        grey[t, trace, np.arange(400)] = 220  # an ECG that moves
        grey[t, 5:15, 350:370] = rng.integers(0, 2, (10, 20)) * 200  # a clock that counts
    return np.clip(grey, 0, 255).astype(np.uint8)


SECTOR_BOX = (72.0, 20.0, 329.0, 220.0)


@pytest.mark.parametrize("level", [4, 12, 60])
def test_sector_is_found_among_text_scale_and_ecg(level: float) -> None:
    region = find_sector(screen(6, level))

    assert region is not None
    assert iou(region, SECTOR_BOX) > 0.9
    assert not region.is_calibrated


def test_sector_of_a_still_is_found_by_its_texture() -> None:
    region = find_sector(screen(1, 60))

    assert region is not None
    assert iou(region, SECTOR_BOX) > 0.8


def test_frozen_cine_is_taken_as_a_still() -> None:
    region = find_sector(np.repeat(screen(1, 60), 4, axis=0))

    assert region is not None
    assert iou(region, SECTOR_BOX) > 0.8


@pytest.mark.parametrize("frames", [0, 1, 5])
def test_nothing_is_found_in_the_dark(frames: int) -> None:
    assert find_sector(np.zeros((frames, 100, 100), np.uint8)) is None


def test_tiny_pictures_do_not_break_the_search() -> None:
    assert find_sector(np.zeros((2, 1, 1), np.uint8)) is None


@pytest.mark.real_data
@pytest.mark.parametrize(("name", "scale"), [("color3d_jpeg_baseline.dcm", 1.0), ("examples_ybr_color.dcm", 0.5)])
def test_real_sector_is_found_about_where_the_header_of_the_large_file_has_it(
    shared_data: Path, name: str, scale: float
) -> None:
    region = tissue_region(replace(read_cine(shared_data / name), regions=()))

    assert iou(region, (84 * scale, 31 * scale, 596 * scale, 415 * scale)) > 0.9


def test_first_tissue_region_of_the_header_wins() -> None:
    flow = UltrasoundRegion(0, 0, 50, 50, data_type=RegionDataType.COLOUR_FLOW)
    tissue = UltrasoundRegion(5, 5, 60, 60, 0.3, 0.3)
    cine = Cine("a", FramesInMemory(screen(2, 60)[..., None]), regions=(flow, tissue))

    assert tissue_region(cine) == tissue


def test_whole_picture_is_taken_where_nothing_is_found() -> None:
    cine = Cine("a", FramesInMemory(np.zeros((2, 30, 40, 3), np.uint8)))

    assert tissue_region(cine) == UltrasoundRegion(0, 0, 40, 30)


def test_luma_is_that_of_pillow() -> None:
    from PIL import Image

    rgb = np.random.default_rng(0).integers(0, 256, (2, 30, 40, 3), dtype=np.uint8)

    np.testing.assert_array_equal(to_grey(rgb)[1], np.asarray(Image.fromarray(rgb[1]).convert("L")))


def test_luma_of_grey_is_grey() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)

    np.testing.assert_array_equal(to_grey(np.repeat(levels, 3, axis=3)), levels[..., 0])
    np.testing.assert_array_equal(to_grey(levels), levels[..., 0])
