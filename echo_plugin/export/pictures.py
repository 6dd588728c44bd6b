# SPDX-License-Identifier: Apache-2.0
"""Boxes drawn on masked frames, as PNG pictures and as a film."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

from echo_plugin.anatomy import Septum
from echo_plugin.annotations import SeptalBox
from echo_plugin.cine import ByteArray
from echo_plugin.io.septum_text import SHORT_NAMES

COLOURS = {
    Septum.INTERATRIAL: (86, 180, 233),  # told apart by the colour-blind (Okabe and Ito)
    Septum.INTERVENTRICULAR: (230, 159, 0),
    Septum.UNSPECIFIED: (240, 228, 66),
}
UNKNOWN_FRAME_TIME_MS = 40.0
"""A film needs a speed: that of a cine without frame times. The table of cines says which these are."""


def with_boxes(frame: ByteArray, boxes: Sequence[SeptalBox]) -> Image.Image:
    """Return a (H, W, C) uint8 frame as an RGB picture with its boxes and their septa."""
    picture = Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame).convert("RGB")
    draw = ImageDraw.Draw(picture)
    for box in boxes:
        draw.rectangle((box.x1, box.y1, box.x2, box.y2), outline=COLOURS[box.septum], width=2)
        draw.text((box.x1 + 3, box.y1 + 2), SHORT_NAMES[box.septum], fill=COLOURS[box.septum])
    return picture


def write_film(frames: ByteArray, boxes: Sequence[SeptalBox], path: Path, *, frame_time_ms: float | None) -> None:
    """Write (T, H, W, C) frames with their boxes as H.264 in MP4; a last odd row or column is left out."""
    height, width = (side // 2 * 2 for side in frames.shape[1:3])
    rate = Fraction(1000.0 / (frame_time_ms or UNKNOWN_FRAME_TIME_MS)).limit_denominator(1000)
    with av.open(str(path), "w") as film:
        stream = film.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "18", "preset": "veryfast", "threads": "1"}
        for index, frame in enumerate(frames):
            picture = with_boxes(frame, [box for box in boxes if box.frame_index == index])
            pixels = np.ascontiguousarray(np.asarray(picture)[:height, :width])
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                film.mux(packet)
        for packet in stream.encode():
            film.mux(packet)
