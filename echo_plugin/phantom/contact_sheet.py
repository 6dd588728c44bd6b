# SPDX-License-Identifier: Apache-2.0
"""A picture of a phantom study for the eye: a row for each view, frames through the beat, the true boxes drawn in."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from echo_plugin.anatomy import Septum, View
from echo_plugin.annotations import SeptalBox
from echo_plugin.cine import ByteArray
from echo_plugin.io.annotation_store import annotation_from_json
from echo_plugin.io.cine_file import read_cine
from echo_plugin.io.study_index import ANNOTATIONS_DIRECTORY

SEPTUM_RGB = {
    Septum.INTERATRIAL: (90, 200, 255),
    Septum.INTERVENTRICULAR: (255, 165, 60),
    Septum.UNSPECIFIED: (230, 230, 230),
}
"""The colour of each septum's box."""

_CELL_WIDTH_PX = 320
_CAPTION_PX = 16
_FONT_PX = 12


@dataclass(frozen=True)
class SheetRow:
    """One row: ``pictures`` are (H, W) or (H, W, 3) uint8, each with its own boxes (px of the picture) and caption."""

    title: str
    pictures: tuple[ByteArray, ...] = field(repr=False)
    boxes: tuple[tuple[SeptalBox, ...], ...] = field(repr=False)
    captions: tuple[str, ...]


def frames_through_the_beat(phases: NDArray[np.float64], count: int) -> list[int]:
    """Return ``count`` 0-based frame indices whose phases are nearest to 0, 1/count, 2/count, ..."""
    wanted = np.arange(count) / count
    distance = np.abs((phases[None, :] - wanted[:, None] + 0.5) % 1.0 - 0.5)
    return [int(frame_index) for frame_index in distance.argmin(axis=1)]


def _row_of_cine(study: Path, facts: dict[str, str], count: int) -> SheetRow:
    phases = np.array([float(phase) for phase in facts["phases"].split(";")])
    frame_indices = frames_through_the_beat(phases, count)
    label = study / ANNOTATIONS_DIRECTORY / f"{facts['image_id']}.json"
    boxes = annotation_from_json(label.read_text(encoding="utf-8"), source=label.name).boxes if label.exists() else ()
    size = f" {float(facts['defect_size_mm']):.1f} mm" if facts["defect_size_mm"] else ""
    return SheetRow(
        title="\n".join((facts["view"], facts["defect"] + size, *facts["file"].split("/"))),
        pictures=tuple(read_cine(study / facts["file"]).read_frames(frame_indices)),
        boxes=tuple(tuple(box for box in boxes if box.frame_index == index) for index in frame_indices),
        captions=tuple(f"frame {index}, phase {phases[index]:.2f}" for index in frame_indices),
    )


def _cell(picture: ByteArray, boxes: Iterable[SeptalBox], caption: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    grey_or_rgb = picture[..., 0] if picture.ndim == 3 and picture.shape[2] == 1 else picture
    scale = _CELL_WIDTH_PX / picture.shape[1]
    height = max(1, round(picture.shape[0] * scale))
    scaled = Image.fromarray(grey_or_rgb).convert("RGB").resize((_CELL_WIDTH_PX, height), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(scaled)
    for box in boxes:
        draw.rectangle(tuple(float(corner) * scale for corner in box.xyxy), outline=SEPTUM_RGB[box.septum], width=2)
    cell = Image.new("RGB", (_CELL_WIDTH_PX, height + _CAPTION_PX))
    cell.paste(scaled, (0, 0))
    ImageDraw.Draw(cell).text((4, height + 1), caption, fill=(210, 210, 210), font=font)
    return cell


def draw_contact_sheet(rows: Sequence[SheetRow]) -> Image.Image:
    """Return the RGB picture of the rows below one another, titles on the left; rows may differ in length."""
    font = ImageFont.truetype(str(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), _FONT_PX)
    cells = [[_cell(*parts, font) for parts in zip(row.pictures, row.boxes, row.captions, strict=True)] for row in rows]
    heights = [max(cell.height for cell in row) + 4 for row in cells]
    title_width = 20 + max(int(font.getlength(line)) for row in rows for line in row.title.split("\n"))
    width = title_width + max(len(row) for row in cells) * (_CELL_WIDTH_PX + 4)
    sheet = Image.new("RGB", (width, sum(heights)), (24, 24, 28))
    draw = ImageDraw.Draw(sheet)
    top = 0
    for row, row_cells, height in zip(rows, cells, heights, strict=True):
        draw.multiline_text((8, top + 8), row.title, fill=(240, 240, 240), font=font)
        for column, cell in enumerate(row_cells):
            sheet.paste(cell, (title_width + column * (_CELL_WIDTH_PX + 4), top))
        top += height
    return sheet


def write_contact_sheet(study: Path, png: Path, *, phases: int = 4) -> None:
    """Write a PNG with the first cine of each view of a phantom study folder; ``phases`` : frames of each row."""
    with (study / "phantom.csv").open(encoding="utf-8", newline="") as table:
        first_of_view = {View(facts["view"]): facts for facts in reversed(list(csv.DictReader(table)))}
    rows = [_row_of_cine(study, first_of_view[view], phases) for view in View if view in first_of_view]
    png.parent.mkdir(parents=True, exist_ok=True)
    draw_contact_sheet(rows).save(png)
