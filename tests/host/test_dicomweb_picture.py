# SPDX-License-Identifier: Apache-2.0
"""A picture for a browser, whose pixels are square, shows the heart in its true proportions; unscaled, every pixel."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydicom import dcmread

from echo_plugin.host.dicomweb_media import fitted

MM_PER_PX = 0.25


@pytest.fixture
def first(archive):
    return next(iter(archive.studies.instances().values()))


def shaped(instance, rows_mm: float, columns_mm: float, by: str) -> np.ndarray:
    """Write the cine anew with pixels of that shape and a disc that is round on the patient; return its frame."""
    dataset = dcmread(instance.path)
    dataset.decompress()
    height, width = dataset.Rows, dataset.Columns
    y, x = (np.arange(height)[:, None] + 0.5) * rows_mm, (np.arange(width)[None, :] + 0.5) * columns_mm
    radius_mm = 0.4 * min(height * rows_mm, width * columns_mm)
    disc = np.hypot(y - height * rows_mm / 2, x - width * columns_mm / 2) < radius_mm
    frame = np.where(disc, 200, 20).astype(np.uint8)
    dataset.NumberOfFrames, dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, 1, "MONOCHROME2"
    dataset.PixelData = frame.tobytes() + b"\0" * (frame.size % 2)
    for keyword in ("PlanarConfiguration", "PixelSpacing", "PixelAspectRatio"):
        if keyword in dataset:
            delattr(dataset, keyword)
    for region in dataset.SequenceOfUltrasoundRegions:
        region.PhysicalDeltaX = region.PhysicalDeltaY = MM_PER_PX / 10  # cm
    if by == "PixelSpacing":
        dataset.PixelSpacing = [rows_mm, columns_mm]
    elif by == "PixelAspectRatio":
        dataset.PixelAspectRatio = [round(100 * rows_mm), round(100 * columns_mm)]
    else:
        for region in dataset.SequenceOfUltrasoundRegions:
            region.PhysicalDeltaX, region.PhysicalDeltaY = columns_mm / 10, -rows_mm / 10
    dataset.save_as(instance.path)
    return frame


def asked(web, instance, path: str) -> np.ndarray:
    """Return the pixels of the picture below the address of an instance."""
    address = f"/dicom-web/studies/{instance.study_uid}/series/{instance.series_uid}/instances/{instance.sop_uid}"
    answer = web.get(f"{address}/{path}", headers={"accept": "image/png"})
    assert answer.status_code == 200, answer.text
    return np.asarray(Image.open(io.BytesIO(answer.content)))


def disc_px(picture: np.ndarray) -> tuple[int, int]:
    """Return the width and height of the bright disc."""
    bright = picture > 110
    return int(bright.any(axis=0).sum()), int(bright.any(axis=1).sum())


@pytest.mark.parametrize("by", ["PixelSpacing", "PixelAspectRatio", "the region"])
@pytest.mark.parametrize("shape", [(0.5, 0.25), (0.25, 0.5)], ids=["high", "wide"])
@pytest.mark.parametrize("path", ["rendered?viewport=300,300", "frames/1/rendered?viewport=300,200", "thumbnail"])
def test_what_is_round_in_the_child_is_round_in_the_picture(web, archive, first, by, shape, path):
    frame = shaped(first, *shape, by)
    stored_width, stored_height = disc_px(frame)
    archive.studies.refresh()

    picture = asked(web, first, path)

    assert not 0.9 < stored_width / stored_height < 1.1  # oblong in the file
    width, height = disc_px(picture)
    assert width / height == pytest.approx(1, abs=0.04)
    expected = frame.shape[1] * shape[1] / (frame.shape[0] * shape[0])
    assert picture.shape[1] / picture.shape[0] == pytest.approx(expected, rel=0.02)
    bounds = {"rendered?viewport=300,300": (300, 300), "thumbnail": (256, 256)}.get(path, (300, 200))
    assert picture.shape[1] == bounds[0] or picture.shape[0] == bounds[1]  # as large as fits
    assert picture.shape[1] <= bounds[0] and picture.shape[0] <= bounds[1]


@pytest.mark.parametrize("shape", [(0.5, 0.25), (0.25, 0.5), (0.25, 0.25)])
def test_without_a_viewport_every_pixel_of_the_file_is_one_of_the_picture(web, archive, first, shape):
    frame = shaped(first, *shape, "PixelSpacing")
    archive.studies.refresh()

    np.testing.assert_array_equal(asked(web, first, "rendered"), frame)
    np.testing.assert_array_equal(asked(web, first, "frames/1/rendered"), frame)


@pytest.mark.parametrize("spacing", [[0.0, 0.25], [-1, 1], None])
def test_a_spacing_that_cannot_be_true_shapes_nothing(web, archive, first, spacing):
    frame = shaped(first, MM_PER_PX, MM_PER_PX, "PixelSpacing")
    dataset = dcmread(first.path)
    dataset.PixelSpacing = spacing
    dataset.save_as(first.path)
    archive.studies.refresh()

    picture = asked(web, first, "rendered?viewport=200,200")

    assert picture.shape[1] / picture.shape[0] == pytest.approx(frame.shape[1] / frame.shape[0], rel=0.02)


side = st.integers(1, 4000)


@given(st.tuples(side, side), st.floats(1e-3, 1e3), st.tuples(side, side))
def test_a_picture_is_never_empty_or_beyond_its_bounds(size, height_to_width, bounds):
    width, height = fitted(size, height_to_width, bounds)

    assert 1 <= width <= bounds[0]
    assert 1 <= height <= bounds[1]


@given(st.tuples(st.integers(1, 300), st.integers(1, 300)))
def test_a_picture_of_square_pixels_that_fits_is_left_as_it_is(size):
    assert fitted(size, 1.0, (300, 300)) == size
