# SPDX-License-Identifier: Apache-2.0
"""NIfTI and NRRD volumes become cines with rows down and frames along the last axis."""

from pathlib import Path

import itk
import nibabel
import numpy as np
import pytest

from echo_plugin.cine import Cine, FramesInMemory, UltrasoundRegion
from echo_plugin.errors import UnreadableCineError
from echo_plugin.io.cine_file import read_cine
from echo_plugin.io.volume import write_rendition

SUFFIXES = ["nii", "nii.gz", "nrrd"]


@pytest.fixture
def grey() -> np.ndarray:
    """(T, H, W) uint8: 6 frames of 20 x 30 px."""
    return np.random.default_rng(1).integers(0, 256, (6, 20, 30), dtype=np.uint8)


def write_volume(
    samples: np.ndarray, path: Path, *, spacing: tuple[float, ...] | None = None, rgb: bool = False
) -> Path:
    image = itk.image_from_array(np.ascontiguousarray(samples), is_vector=rgb)
    if spacing:
        image.SetSpacing(spacing)
    itk.imwrite(image, str(path))
    return path


@pytest.mark.heavy
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_grey_volume_is_a_cine_with_rows_down(tmp_path: Path, grey: np.ndarray, suffix: str) -> None:
    cine = read_cine(write_volume(grey, tmp_path / f"v.{suffix}"))

    np.testing.assert_array_equal(cine.pixels, grey[..., None])
    assert cine.regions == ()
    assert cine.frame_times_ms is None


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_colour_volume_stays_in_colour(tmp_path: Path, grey: np.ndarray, suffix: str) -> None:
    rgb = np.stack([grey, grey // 2, 255 - grey], axis=-1)

    np.testing.assert_array_equal(read_cine(write_volume(rgb, tmp_path / f"v.{suffix}", rgb=True)).pixels, rgb)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_spacing_calibrates_the_sector(tmp_path: Path, grey: np.ndarray, suffix: str) -> None:
    (region,) = read_cine(write_volume(grey, tmp_path / f"v.{suffix}", spacing=(0.25, 0.5, 1.0))).regions

    assert region == UltrasoundRegion(0, 0, 30, 20, 0.25, 0.5)


@pytest.mark.parametrize("unit", ["sec", "msec"])
def test_nifti_with_a_time_axis_knows_its_frame_times(tmp_path: Path, grey: np.ndarray, unit: str) -> None:
    image = nibabel.Nifti1Image(grey.transpose(2, 1, 0)[:, :, None, :], np.eye(4))
    image.header.set_xyzt_units("mm", unit)
    image.header.set_zooms((1, 1, 1, 0.04 if unit == "sec" else 40))
    nibabel.save(image, tmp_path / "v.nii.gz")

    cine = read_cine(tmp_path / "v.nii.gz")

    assert cine.frame_time_ms == pytest.approx(40, rel=1e-5)
    np.testing.assert_array_equal(cine.pixels, grey[..., None])


def test_nifti_without_a_unit_of_time_has_no_frame_times(tmp_path: Path, grey: np.ndarray) -> None:
    image = nibabel.Nifti1Image(grey.transpose(2, 1, 0)[:, :, None, :], np.eye(4))
    image.header.set_zooms((1, 1, 1, 0.04))
    nibabel.save(image, tmp_path / "v.nii")

    assert read_cine(tmp_path / "v.nii").frame_times_ms is None


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.4, 255.0], [0, 100, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([0.0, 500.0, 1000.0], [0, 128, 255]),
        ([7.0, 7.0, 700.0], [0, 0, 255]),
    ],
)
def test_fractions_are_scaled_by_one_line_over_the_cine(
    tmp_path: Path, samples: list[float], expected: list[int]
) -> None:
    path = write_volume(np.array(samples, np.float32).reshape(1, 1, 3), tmp_path / "v.nrrd")

    assert read_cine(path).pixels.ravel().tolist() == expected


def test_whole_numbers_up_to_255_are_shown_as_they_are(tmp_path: Path) -> None:
    path = write_volume(np.array([[[3, 60, 120]]], np.int16), tmp_path / "v.nrrd")

    assert read_cine(path).pixels.ravel().tolist() == [3, 60, 120]


def test_voxels_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    path = write_volume(np.array([[[0, np.nan, 1]]], np.float32), tmp_path / "v.nrrd")

    with pytest.raises(UnreadableCineError, match="has voxels that are not finite numbers"):
        read_cine(path)


def test_solid_volume_over_time_is_refused(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 3, 2), np.uint8), np.eye(4)), tmp_path / "v.nii")

    with pytest.raises(UnreadableCineError, match="is a solid volume of 3 slices over time"):
        read_cine(tmp_path / "v.nii")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_truncated_volume_is_refused(tmp_path: Path, grey: np.ndarray, suffix: str) -> None:
    path = write_volume(grey, tmp_path / f"v.{suffix}")
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])

    with pytest.raises(UnreadableCineError, match=r"File 'v\."):
        read_cine(path)


def test_header_that_names_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(8))
    (tmp_path / "v.nrrd").write_bytes(
        b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 2 2 2\nencoding: raw\nData  File : secret.bin\n\n"
    )

    with pytest.raises(UnreadableCineError, match="is an NRRD header without its data"):
        read_cine(tmp_path / "v.nrrd")


@pytest.mark.parametrize("encoding", [b"raw", b"gzip"])
def test_volume_that_promises_too_much_is_refused(tmp_path: Path, encoding: bytes) -> None:
    (tmp_path / "v.nrrd").write_bytes(
        b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 200000 200000 200000\nencoding: " + encoding + b"\n\nxx"
    )

    with pytest.raises(UnreadableCineError, match="up to 4294967296 bytes are accepted"):
        read_cine(tmp_path / "v.nrrd")


def test_volume_is_measured_in_bytes_and_not_in_voxels(tmp_path: Path) -> None:
    (tmp_path / "wide.nrrd").write_bytes(
        b"NRRD0004\ntype: double\ndimension: 3\nsizes: 30000 30000 1\nendian: little\nencoding: raw\n\n" + bytes(100)
    )

    with pytest.raises(UnreadableCineError, match=r"30000 x 30000 x 1 voxels of 8 bytes; up to 4294967296 bytes"):
        read_cine(tmp_path / "wide.nrrd")


def test_rendition_comes_back_as_a_cine(tmp_path: Path, grey: np.ndarray) -> None:
    cine = Cine("a", FramesInMemory(grey[..., None]), regions=(UltrasoundRegion(0, 0, 30, 20, 0.25, 0.5),))
    write_rendition(cine, tmp_path / "a.nrrd")

    found = read_cine(tmp_path / "a.nrrd")

    np.testing.assert_array_equal(found.pixels, cine.pixels)
    assert found.regions == cine.regions
