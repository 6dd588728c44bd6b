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
from echo_plugin.cine import ByteArray, Cine
from echo_plugin.io.annotation_store import annotation_from_json
from echo_plugin.io.cine_file import read_cine
from echo_plugin.io.study_index import ANNOTATIONS_DIRECTORY
from echo_plugin.phantom.bmode import PhantomCine

SEPTUM_RGB = {
    Septum.INTERATRIAL: (90, 200, 255),
    Septum.INTERVENTRICULAR: (255, 165, 60),
    Septum.UNSPECIFIED: (230, 230, 230),
}
"""The colour of each septum's box."""

_CELL_WIDTH_PX = 320
_CAPTION_PX = 16
_FONT_PX = 12
_VIEW_ORDER = {view: place for place, view in enumerate(View)}


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


def _boxes_on(boxes: Iterable[SeptalBox], frame_indices: Sequence[int]) -> tuple[tuple[SeptalBox, ...], ...]:
    everything = tuple(boxes)
    return tuple(tuple(box for box in everything if box.frame_index == index) for index in frame_indices)


def _title(view: str, defect: str, size_mm: str) -> str:
    return f"{view}\n{defect}" + (f" {float(size_mm):.1f} mm" if size_mm else "")


def row_of_phantom(cine: PhantomCine, count: int) -> SheetRow:
    """Return the row of a cine as the phantom images it, before any overlay."""
    frame_indices = frames_through_the_beat(cine.phases, count)
    size = "" if cine.defect_size_mm is None else str(cine.defect_size_mm)
    return SheetRow(
        title=_title(cine.view.value, cine.defect.value, size),
        pictures=tuple(cine.pixels[index] for index in frame_indices),
        boxes=_boxes_on(cine.boxes, frame_indices),
        captions=tuple(f"frame {index}, phase {cine.phases[index]:.2f}" for index in frame_indices),
    )


def row_of_cine(cine: Cine, title: str, count: int) -> SheetRow:
    """Return a row of frames spread evenly over a cine of unknown phase, without boxes."""
    frame_indices = sorted({int(index) for index in np.linspace(0, cine.frame_count - 1, count)})
    return SheetRow(
        title=title,
        pictures=tuple(cine.read_frames(frame_indices)),
        boxes=((),) * len(frame_indices),
        captions=tuple(f"frame {index}" for index in frame_indices),
    )


def _row_of_file(study: Path, facts: dict[str, str], count: int) -> SheetRow:
    phases = np.array([float(phase) for phase in facts["phases"].split(";")])
    frame_indices = frames_through_the_beat(phases, count)
    label = study / ANNOTATIONS_DIRECTORY / f"{facts['image_id']}.json"
    boxes = annotation_from_json(label.read_text(encoding="utf-8"), source=label.name).boxes if label.exists() else ()
    return SheetRow(
        title=_title(facts["view"], facts["defect"], facts["defect_size_mm"]) + f"\n{facts['file']}".replace("/", "\n"),
        pictures=tuple(read_cine(study / facts["file"]).read_frames(frame_indices)),
        boxes=_boxes_on(boxes, frame_indices),
        captions=tuple(f"frame {index}, phase {phases[index]:.2f}" for index in frame_indices),
    )


def rows_of_study(study: Path, count: int, *, cines_per_view: int = 1) -> list[SheetRow]:
    """Return rows of a phantom study folder, view by view, of different defects where there are."""
    with (study / "phantom.csv").open(encoding="utf-8", newline="") as table:
        cines = list(csv.DictReader(table))
    chosen = []
    for view in sorted({View(cine["view"]) for cine in cines}, key=_VIEW_ORDER.__getitem__):
        of_view = [cine for cine in cines if View(cine["view"]) is view]
        seen: dict[str, int] = {}
        for cine in of_view:  # the first of each defect before the second of any
            seen[cine["defect"]] = seen.get(cine["defect"], 0) + 1
            cine["turn"] = str(seen[cine["defect"]])
        chosen += sorted(of_view, key=lambda cine: int(cine["turn"]))[:cines_per_view]
    return [_row_of_file(study, facts, count) for facts in chosen]


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


def write_contact_sheet(
    source: Path | Sequence[PhantomCine],
    png: Path,
    *,
    phases: int = 4,
    cines_per_view: int = 1,
    real: Sequence[Cine] = (),
) -> None:
    """Write a PNG with a row for each view of a phantom study folder, or for each of the given cines.

    Parameters
    ----------
    phases : frames of each row, spread over the beat.
    cines_per_view : rows of each view of a study folder.
    real : cines of real patients to compare with, a row each, below.

    Raises
    ------
    ValueError
        If there is nothing to show.
    """
    if isinstance(source, Path):
        rows = rows_of_study(source, phases, cines_per_view=cines_per_view)
    else:
        rows = [row_of_phantom(cine, phases) for cine in source]
    rows += [row_of_cine(cine, "real", phases) for cine in real]
    if not rows or phases < 1:
        msg = f"Contact sheet of {len(rows)} cines with {phases} frames each; at least one of each is accepted."
        raise ValueError(msg)
    png.parent.mkdir(parents=True, exist_ok=True)
    draw_contact_sheet(rows).save(png)
