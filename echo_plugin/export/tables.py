# SPDX-License-Identifier: Apache-2.0
"""What people said of the exported cines, as COCO JSON (detection) and as CSV; both name pseudonyms only."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from echo_plugin.anatomy import Septum
from echo_plugin.annotations import Annotation

CATEGORIES = {Septum.INTERATRIAL: 1, Septum.INTERVENTRICULAR: 2, Septum.UNSPECIFIED: 3}


@dataclass(frozen=True)
class ExportedCine:
    """An annotated cine under its pseudonyms; ``frame_time_ms`` None: not known."""

    name: str
    patient: str
    frames: int
    height: int
    width: int
    frame_time_ms: float | None
    annotation: Annotation


def frame_name(cine: str, frame_index: int) -> str:
    """Return the name of a frame's picture, whose number is 0-based like every frame index.

    >>> frame_name("cine-1a", 7)
    'cine-1a_frame0007.png'
    """
    return f"{cine}_frame{frame_index:04d}.png"


def coco(cines: Sequence[ExportedCine]) -> dict[str, Any]:
    """Return COCO detection JSON: an image for each annotated frame, those without a septum too."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for cine in cines:
        for frame_index in cine.annotation.annotated_frames:
            image_id = len(images) + 1
            images.append(
                {
                    "id": image_id,
                    "file_name": f"images/{frame_name(cine.name, frame_index)}",
                    "width": cine.width,
                    "height": cine.height,
                    "cine": cine.name,
                    "patient": cine.patient,
                    "frame_index": frame_index,
                }
            )
            for box in cine.annotation.boxes_on(frame_index):
                width, height = box.x2 - box.x1, box.y2 - box.y1
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": CATEGORIES[box.septum],
                        "bbox": [box.x1, box.y1, width, height],
                        "area": width * height,
                        "iscrowd": 0,
                    }
                )
    return {
        "info": {"description": "Septal boxes; continuous pixels, origin at the outer corner of the first one"},
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": id_, "name": septum.value, "supercategory": "septum"} for septum, id_ in CATEGORIES.items()
        ],
    }


def write_coco(cines: Sequence[ExportedCine], path: Path) -> None:
    """Write :func:`coco`."""
    path.write_text(json.dumps(coco(cines), indent=1) + "\n", encoding="utf-8")


def write_csv(cines: Sequence[ExportedCine], folder: Path) -> None:
    """Write ``cines.csv`` (one row a cine) and ``boxes.csv`` (one row a box; frames without one are in cines.csv)."""
    with (folder / "cines.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(
            ["cine", "patient", "frames", "height", "width", "frame_time_ms", "view", "defect", "defect_size_mm",
             "annotated_frames"]
        )  # fmt: skip
        for cine in cines:
            said = cine.annotation
            rows.writerow(
                [
                    cine.name,
                    cine.patient,
                    cine.frames,
                    cine.height,
                    cine.width,
                    cine.frame_time_ms,
                    said.view.value if said.view else None,
                    said.defect.value if said.defect else None,
                    said.defect_size_mm,
                    " ".join(map(str, said.annotated_frames)),
                ]
            )
    with (folder / "boxes.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["cine", "patient", "frame_index", "septum", "x1", "y1", "x2", "y2"])
        for cine in cines:
            for box in cine.annotation.boxes:
                corners = [box.x1, box.y1, box.x2, box.y2]
                rows.writerow([cine.name, cine.patient, box.frame_index, box.septum.value, *corners])
