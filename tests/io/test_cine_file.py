# SPDX-License-Identifier: Apache-2.0
"""Any file becomes a cine, or one clear sentence."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from echo_plugin.errors import UnreadableCineError
from echo_plugin.io.cine_file import CINE_SUFFIXES, read_cine

MakeDicom = Callable[..., Path]


def test_dicom_is_told_by_its_content_whatever_its_name(make_dicom: MakeDicom, speckle: np.ndarray) -> None:
    path = make_dicom(speckle, "RGB").rename(make_dicom(speckle, "RGB").with_name("IM_0001.png"))

    assert read_cine(path).frame_count == 4


def test_given_image_id_is_taken(make_dicom: MakeDicom, speckle: np.ndarray) -> None:
    assert read_cine(make_dicom(speckle, "RGB"), image_id="chosen").image_id == "chosen"


def test_file_without_uid_is_named_by_its_escaped_name(tmp_path: Path) -> None:
    Image.new("L", (8, 8), 7).save(tmp_path / "Kind 1.png")

    assert read_cine(tmp_path / "Kind 1.png").image_id == "Kind%201.png"


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 9, [9]),
        ("1", 1, [255]),
        ("RGB", (1, 2, 3), [1, 2, 3]),
        ("RGBA", (200, 100, 50, 0), [0, 0, 0]),
        ("RGBA", (200, 100, 50, 255), [200, 100, 50]),
        ("LA", (80, 255), [80, 80, 80]),
        ("I;16", 257 * 3, [3]),
    ],
)
def test_png_of_every_mode_becomes_grey_or_rgb(
    tmp_path: Path, mode: str, colour: int | tuple[int, ...], expected: list[int]
) -> None:
    Image.new(mode, (6, 4), colour).save(tmp_path / "still.png")

    pixels = read_cine(tmp_path / "still.png").pixels

    assert pixels.shape == (1, 4, 6, len(expected))
    assert pixels[0, 2, 3].tolist() == expected


def test_palette_png_shows_its_colours(tmp_path: Path) -> None:
    rgb = Image.new("RGB", (6, 4), (10, 200, 30))
    rgb.convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "still.png")

    assert read_cine(tmp_path / "still.png").pixels[0, 0, 0].tolist() == [10, 200, 30]


def test_jpeg_is_turned_as_its_exif_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.new("L", (16, 8), 9).save(tmp_path / "still.jpg", exif=exif)

    assert read_cine(tmp_path / "still.jpg").frames.shape == (1, 16, 8, 1)


def test_animated_png_is_refused(tmp_path: Path) -> None:
    frames = [Image.new("L", (8, 8), level) for level in (0, 90)]
    frames[0].save(tmp_path / "still.png", save_all=True, append_images=frames[1:])

    with pytest.raises(UnreadableCineError, match=r"'still\.png' is an animated picture"):
        read_cine(tmp_path / "still.png")


@pytest.mark.parametrize("name", ["x.png", "x.jpg"])
def test_truncated_still_is_refused(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / name)
    raw = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(raw[: len(raw) // 2])

    with pytest.raises(UnreadableCineError, match="has no PNG or JPEG picture that can be decoded"):
        read_cine(tmp_path / name)


def test_missing_file_is_named_without_its_directory(tmp_path: Path) -> None:
    with pytest.raises(UnreadableCineError, match=r"^File 'gone\.dcm' cannot be read: No such file or directory\.$"):
        read_cine(tmp_path / "gone.dcm")


def test_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableCineError, match="is no regular file"):
        read_cine(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are made on POSIX only")
def test_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.dcm")

    with pytest.raises(UnreadableCineError, match="is no regular file"):
        read_cine(tmp_path / "pipe.dcm")


def test_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.dcm").touch()

    with pytest.raises(UnreadableCineError, match=r"^File 'empty\.dcm' is empty\.$"):
        read_cine(tmp_path / "empty.dcm")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="an administrator may read everything")
def test_file_that_may_not_be_read_is_named(make_dicom: MakeDicom, speckle: np.ndarray) -> None:
    path = make_dicom(speckle, "RGB")
    path.chmod(0)

    with pytest.raises(UnreadableCineError, match="cannot be read: Permission denied"):
        read_cine(path)


@pytest.mark.parametrize("name", ["notes.txt", "notes", "notes.dcm", "playlist.mp4"])
def test_other_files_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("#EXTM3U\n#EXTINF:1,\nother.mp4\n" * 20)

    with pytest.raises(UnreadableCineError, match=r"is none of the formats|has no video that can be decoded"):
        read_cine(tmp_path / name)


def test_suffixes_are_lower_case_and_hold_dicom_without_one() -> None:
    assert "" in CINE_SUFFIXES
    assert all(suffix == suffix.lower() for suffix in CINE_SUFFIXES)
