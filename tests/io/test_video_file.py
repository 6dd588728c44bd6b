# SPDX-License-Identifier: Apache-2.0
"""A frame of a video is the same whether it is reached alone, in any order, or by playing the file."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from echo_plugin.errors import UnreadableCineError
from echo_plugin.io.cine_file import read_cine

T, H, W = 40, 48, 64
FORMATS = [
    ("closed.mp4", "libx264", "yuv420p", {"g": "12", "bf": "3"}),
    ("open.mov", "libx264", "yuv444p", {"g": "12", "bf": "3", "x264-params": "open-gop=1"}),
    ("b_frames.avi", "mpeg4", "yuv420p", {"g": "10", "bf": "2"}),
    ("h264.avi", "libx264", "yuv420p", {"g": "12", "bf": "3"}),
    ("motion_jpeg.avi", "mjpeg", "yuvj420p", {}),
    ("raw.avi", "rawvideo", "bgr24", {}),
    ("grey.mkv", "ffv1", "gray", {}),
]
NAMES = [name for name, *_ in FORMATS]


def write_video(
    path: Path, codec: str, pixel_format: str, options: dict[str, str], *, pts: list[int] | None = None
) -> None:
    """Write T frames, every one of another grey with a bar that grows by 1 px a frame, at 25 frames/s."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.options = W, H, pixel_format, options
        for index in range(T):
            rgb = np.full((H, W, 3), index * 5, np.uint8)
            rgb[10:20, : index + 1] = 230
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            if pts is not None:
                frame.pts, frame.time_base = pts[index], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def played(path: Path) -> np.ndarray:
    """All frames as a player shows them."""
    with av.open(str(path)) as container:
        is_grey = container.streams.video[0].pix_fmt == "gray"
        frames = [frame.to_ndarray(format="gray" if is_grey else "rgb24") for frame in container.decode(video=0)]
    return np.stack(frames).reshape(len(frames), H, W, -1)


@pytest.fixture(params=FORMATS, ids=NAMES)
def video(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    name, *how = request.param
    write_video(tmp_path / name, *how)
    return tmp_path / name


def test_every_frame_alone_equals_the_played_one(video: Path) -> None:
    expected = played(video)

    cine = read_cine(video)

    assert cine.frame_count == len(expected) == T
    for frame_index in np.random.default_rng(2).permutation(T).tolist():
        np.testing.assert_array_equal(cine.read_frames([frame_index])[0], expected[frame_index])


def test_all_frames_and_any_order_equal_the_played_ones(video: Path) -> None:
    expected, cine = played(video), read_cine(video)

    np.testing.assert_array_equal(cine.pixels, expected)
    np.testing.assert_array_equal(cine.read_frames([33, 2, 33, 0, 39]), expected[[33, 2, 33, 0, 39]])
    assert cine.read_frames([]).shape[0] == 0


def test_frames_are_40_ms_apart(video: Path) -> None:
    times = read_cine(video).frame_times_ms

    assert times is not None
    np.testing.assert_allclose(times, np.arange(T) * 40.0, atol=1.0)  # Matroska rounds to whole ms


def test_grey_video_has_one_channel(tmp_path: Path) -> None:
    write_video(tmp_path / "grey.mkv", *FORMATS[-1][1:])

    assert read_cine(tmp_path / "grey.mkv").frames.shape == (T, H, W, 1)


def test_uneven_frame_times_are_kept(tmp_path: Path) -> None:
    pts = np.cumsum([0] + [20, 60, 40] * 13).tolist()
    write_video(tmp_path / "uneven.mkv", "ffv1", "gray", {}, pts=pts)

    np.testing.assert_allclose(read_cine(tmp_path / "uneven.mkv").frame_times_ms, pts, atol=41)


@pytest.mark.parametrize("share", [0.02, 0.4, 0.9])
def test_truncated_mp4_is_refused(tmp_path: Path, share: float) -> None:
    write_video(tmp_path / "cut.mp4", *FORMATS[0][1:])
    raw = (tmp_path / "cut.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(raw[: int(share * len(raw))])

    with pytest.raises(UnreadableCineError, match=r"File 'cut\.mp4'"):
        read_cine(tmp_path / "cut.mp4").pixels  # noqa: B018 - decodes


def test_file_without_pictures_is_refused(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())

    with pytest.raises(UnreadableCineError, match=r"'sound\.mp4' has no pictures"):
        read_cine(tmp_path / "sound.mp4")
