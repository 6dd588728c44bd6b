# SPDX-License-Identifier: Apache-2.0
"""A video file (MP4, MOV, AVI, ...) as a cine: frames in the order they are shown, decoded when they are asked for.

The frames are listed by the time stamps of their packets, without decoding; one of them is reached from the key frame
shown before it. Where packets have no stamps, or the stamps do not lead to the frames, the file is decoded from its
start instead. Every read opens the file anew, so that threads do not meet.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from operator import itemgetter
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from echo_plugin.cine import ByteArray, Cine
from echo_plugin.errors import UnreadableCineError
from echo_plugin.io.dicom_header import LARGEST_FRAME_PX, MOST_FRAMES
from echo_plugin.io.stored_bytes import StoredBytes, damage_named, unreadable

_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm,mpeg,mpegts,asf"
"""FFmpeg's names. Playlists are not among them: they make the reader open other files and addresses."""


@dataclass(frozen=True)
class VideoFrames:
    """The frames of a video file, decoded on demand; holds no open file.

    ``stamps`` : (T,) ascending time stamps in units of the stream's time base; None: frames can only be counted.
    ``keys`` : stamp of every key frame, ascending, and the place to seek for it: its decoding time, which the
    indices of AVI and MP4 go by.
    """

    stored: StoredBytes
    shape: tuple[int, int, int, int]
    stamps: tuple[int, ...] | None = field(repr=False)
    keys: tuple[tuple[int, int], ...] = field(repr=False)

    def read(self, frame_indices: Sequence[int]) -> ByteArray:
        """Return the (N, H, W, C) uint8 frames asked for.

        Raises
        ------
        UnreadableCineError
            If the file has been changed or a frame is damaged.
        """
        frames = np.empty((len(frame_indices), *self.shape[1:]), dtype=np.uint8)
        places: dict[int, list[int]] = {}
        for place, frame_index in enumerate(frame_indices):
            places.setdefault(frame_index, []).append(place)
        if not places:
            return frames
        with damage_named(self.stored.path, "a frame that cannot be decoded"), _opened(self.stored) as opened:
            wanted = sorted(places)
            shown = _counted(*opened, wanted) if self.stamps is None else self._sought(*opened, wanted)
            for frame_index, frame in shown:
                frames[places[frame_index]] = self._pixels(frame)
        return frames

    def _sought(
        self, container: InputContainer, stream: VideoStream, wanted: Sequence[int]
    ) -> Iterator[tuple[int, VideoFrame]]:
        assert self.stamps is not None
        decoded: Iterator[VideoFrame] = iter(())
        frame: VideoFrame | None = None
        for frame_index in wanted:
            stamp = self.stamps[frame_index]
            key, place = self.keys[max(bisect_right(self.keys, stamp, key=itemgetter(0)) - 1, 0)]
            if frame is None or frame.pts is None or frame.pts < key:
                container.seek(place, stream=stream, backward=True)
                decoded = container.decode(stream)
            frame = next((frame for frame in decoded if frame.pts is not None and frame.pts >= stamp), None)
            if frame is None or frame.pts != stamp:
                raise unreadable(self.stored.path, f"has no frame at index {frame_index} that can be decoded.")
            yield frame_index, frame

    def _pixels(self, frame: VideoFrame) -> ByteArray:
        if (frame.height, frame.width) != self.shape[1:3]:
            raise unreadable(
                self.stored.path,
                f"changes from {self.shape[1]} x {self.shape[2]} px to {frame.height} x {frame.width} px.",
            )
        if self.shape[3] == 1:
            return np.asarray(frame.to_ndarray(format="gray"), dtype=np.uint8)[..., None]
        return np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8)


def read_video(path: Path, image_id: str) -> Cine:
    """Return the cine of a video file: grey where its pixel format is, without spacing; times by its time stamps.

    Raises
    ------
    UnreadableCineError
        If the file is damaged or cut off, has no picture, or pictures too large or too many.
    """
    stored = StoredBytes.of(path)
    with damage_named(path, "no video that can be decoded"):
        with _opened(stored) as (container, stream):
            stamps, keys = _packet_stamps(container, stream, path)
            time_base = stream.time_base
        with _opened(stored) as (container, stream):
            first = next(container.decode(stream), None)
        if first is None or not 0 < first.height * first.width <= LARGEST_FRAME_PX:
            raise unreadable(path, f"has no picture of 1 to {LARGEST_FRAME_PX} px.")
        shape = (first.height, first.width, 1 if first.format.name.startswith("gray") else 3)
        if stamps and keys and stamps[0] == first.pts:
            frames = VideoFrames(stored, (len(stamps), *shape), stamps, keys)
            if _reaches_last_frame(frames):
                return Cine(image_id=image_id, frames=frames, frame_times_ms=_times_ms(stamps, time_base))
        shown = _frame_stamps(stored)
    frames = VideoFrames(stored, (len(shown), *shape), None, ())
    return Cine(image_id=image_id, frames=frames, frame_times_ms=_times_ms(shown, time_base))


@contextmanager
def _opened(stored: StoredBytes) -> Iterator[tuple[InputContainer, VideoStream]]:
    with stored.open() as file, av.open(file, container_options={"format_whitelist": _CONTAINERS}) as container:
        assert isinstance(container, InputContainer)  # mode "r"
        if not container.streams.video:
            raise unreadable(stored.path, "has no pictures; a video with one is accepted.")
        yield container, container.streams.video[0]


def _packet_stamps(
    container: InputContainer, stream: VideoStream, path: Path
) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
    """Return the ascending stamps of all packets that are shown, and the key frames; empty: they tell no order."""
    stamps, keys, count = [], [], 0
    for packet in container.demux(stream):
        if packet.size == 0:
            continue
        count += 1
        if count > MOST_FRAMES:
            raise unreadable(path, f"has more than {MOST_FRAMES} pictures.")
        if packet.is_keyframe and packet.pts is not None:
            keys.append((packet.pts, packet.pts if packet.dts is None else min(packet.pts, packet.dts)))
        if not packet.is_discard:
            stamps.append(packet.pts)
    if container.format.name.startswith("mov") and count < stream.frames:
        raise unreadable(path, f"is truncated: {count} of {stream.frames} pictures are there.")
    known = [stamp for stamp in stamps if stamp is not None]
    in_coded_order = container.format.name == "avi" and stream.codec_context.has_b_frames and known == sorted(known)
    if len(set(known)) != len(stamps) or in_coded_order:  # AVI numbers reordered H.264 as it is coded, not as shown
        return (), ()
    return tuple(sorted(known)), tuple(sorted(keys))


def _reaches_last_frame(frames: VideoFrames) -> bool:
    try:
        frames.read([frames.shape[0] - 1])
    except UnreadableCineError:
        return False
    return True


def _frame_stamps(stored: StoredBytes) -> list[int | None]:
    """Return the stamp of every frame by decoding all."""
    with _opened(stored) as (container, stream):
        return [frame.pts for frame in container.decode(stream)]


def _counted(container: InputContainer, stream: VideoStream, wanted: Sequence[int]) -> Iterator[tuple[int, VideoFrame]]:
    remaining = set(wanted)
    for frame_index, frame in enumerate(container.decode(stream)):
        if frame_index in remaining:
            remaining.discard(frame_index)
            yield frame_index, frame
        if not remaining:
            return
    msg = f"the frames at {sorted(remaining)[:5]} are missing"
    raise ValueError(msg)


def _times_ms(stamps: Sequence[int | None], time_base: Fraction | None) -> NDArray[np.float64] | None:
    """Return the (T,) times from the first frame in ms; None: not known, or a still."""
    known = sorted(stamp for stamp in stamps if stamp is not None)
    if time_base is None or len(known) != len(stamps) or len(known) < 2:
        return None
    times = (np.array(known, dtype=np.int64) - known[0]) * float(time_base * 1000)
    return times if np.all(np.diff(times) > 0) else None
