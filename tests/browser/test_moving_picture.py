# SPDX-License-Identifier: Apache-2.0
"""The README's moving picture: a cine of the sample studies is predicted in OHIF, a box is corrected and submitted.

``MONAILABEL_ECHO_PICTURES=.github/pictures`` writes ohif.gif there; without it nothing is filmed, as the tests of the
panel check what is shown here.
"""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from echo_plugin.io.study_folder import StudyFolder
from tests.browser.reader import Reader

pytestmark = [
    pytest.mark.browser,
    pytest.mark.server,
    pytest.mark.heavy,
    pytest.mark.skipif("MONAILABEL_ECHO_PICTURES" not in os.environ, reason="no picture was asked for"),
]

SAMPLES = Path(__file__).resolve().parents[2] / "sample_studies"
CINE = "PHANTOM-69-0004/IM_0001.dcm"
SIZE_PX, COLOURS = (960, 600), 256
HEART_PX = (320, 160, 600, 460)
"""Where tissue is shown in a picture: it has the finest shades, and counts for more in the palette."""
POINTER = ((0, 0), (0, 17), (4, 13), (7, 20), (10, 19), (7, 12), (13, 12))
MOST_BYTES = 2_500_000


class Film:
    """Pictures of a page, each with the time that it stays and the pointer where the mouse is."""

    def __init__(self, reader: Reader) -> None:
        self.reader, self.at = reader, (640.0, 700.0)
        self.pictures: list[Image.Image] = []
        self.times_ms: list[int] = []

    def take(self, time_ms: int = 110) -> None:
        picture = Image.open(io.BytesIO(self.reader.page.screenshot())).convert("RGB")
        outline = [(self.at[0] + x, self.at[1] + y) for x, y in POINTER]
        ImageDraw.Draw(picture).polygon(outline, fill="white", outline="black")
        self.pictures.append(picture.resize(SIZE_PX, Image.Resampling.LANCZOS))
        self.times_ms.append(time_ms)

    def move(self, to: tuple[float, float], steps: int = 4) -> None:
        (x, y), (to_x, to_y) = self.at, to
        for step in range(1, steps + 1):
            self.at = x + (to_x - x) * step / steps, y + (to_y - y) * step / steps
            self.reader.page.mouse.move(*self.at)
            self.reader.settle()
            self.take(60)

    def point_at(self, name: str) -> Any:
        """Move to a part of the panel; return it."""
        part = self.reader.part(name)
        place = part.bounding_box()
        self.move((place["x"] + place["width"] / 2, place["y"] + place["height"] / 2))
        return part

    def play(self, frames: range) -> None:
        for frame in frames:
            self.reader.go_to(frame)
            self.take()

    def save(self, path: Path) -> None:
        """Write the film in one palette, so that what does not move costs nothing."""
        shown = [*self.pictures[:: max(len(self.pictures) // 6, 1)], *(p.crop(HEART_PX) for p in self.pictures[::4])]
        strip = Image.new("RGB", (SIZE_PX[0], sum(picture.height for picture in shown)))
        top = 0
        for picture in shown:
            strip.paste(picture.resize((SIZE_PX[0], picture.height)), (0, top))
            top += picture.height
        palette = strip.quantize(COLOURS)
        first, *others = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in self.pictures]
        first.save(path, save_all=True, append_images=others, duration=self.times_ms, loop=0, optimize=True)


def test_a_cine_is_predicted_corrected_and_submitted_on_film(start_serving, at_work, tmp_path):
    shutil.copytree(SAMPLES, tmp_path / "studies")
    studies = StudyFolder(tmp_path / "studies")
    image_id = next(i for i in studies.image_ids() if studies.entry(i).path.as_posix().endswith(CINE))
    reader = at_work(start_serving("--studies", studies.root))
    reader.open(studies.entry(image_id).study_instance_uid, image_id)
    film = Film(reader)

    film.play(range(10))
    film.point_at("predict").click()
    film.take(500)
    reader.part("defect").wait_for()
    boxes = reader.wait_for_boxes(image_id, "boxes.some((box) => box.by === 'model')")
    film.take(700)
    film.play(range(10, 21))
    box = max((b for b in boxes if b["frame_index"] == 20), key=lambda b: b["y2"] - b["y1"])
    corner, corrected = reader.to_screen((box["x1"], box["y1"]), (box["x1"] - 5, box["y1"] - 20))
    film.move(corner)
    reader.page.mouse.down()
    film.move(corrected)
    reader.page.mouse.up()
    reader.wait_for_boxes(image_id, "boxes.some((box) => box.by === 'person')")
    film.take(600)
    film.point_at("submit")
    reader.submit()
    film.take(2400)

    picture = Path(os.environ["MONAILABEL_ECHO_PICTURES"]) / "ohif.gif"
    film.save(picture)
    assert studies.annotation(image_id).revision == 1
    assert picture.stat().st_size <= MOST_BYTES
    assert 6_000 <= sum(film.times_ms) <= 10_000
