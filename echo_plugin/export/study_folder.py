# SPDX-License-Identifier: Apache-2.0
"""Export of a study folder's annotated cines: COCO JSON, CSV tables, pictures, films, and DICOM with reports.

Pseudonyms for everybody, black for everything that is no tissue. Authors, dates, file names and the gallery of
embeddings are never exported. A secret in the study folder makes the pseudonyms, so that a later export has the same
ones and only the folder's holder can tell who is who.
"""

from __future__ import annotations

import csv
import json
import logging
import secrets
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageDraw

from echo_plugin.anatomy import SHORT_NAMES, Septum
from echo_plugin.annotations import Annotation, SeptalBox
from echo_plugin.cine import ByteArray, Cine
from echo_plugin.durable import write_atomically
from echo_plugin.errors import AnnotationError, EchoError, UnreadableCineError
from echo_plugin.export.deidentify import Pseudonyms, deidentified_instance, masked, tissue_mask
from echo_plugin.io.annotation_store import AnnotationStore
from echo_plugin.io.dicom_sr import Observer, boxes_report, write_report
from echo_plugin.io.study_folder import StudyFolder
from echo_plugin.io.study_index import ANNOTATIONS_DIRECTORY

logger = logging.getLogger(__name__)

KEY_FILE = ".echo_export_key"
_KEY_BYTES = 32
OBSERVER = Observer("Annotator")
COLOURS = {
    Septum.INTERATRIAL: (86, 180, 233),  # told apart by the colour-blind (Okabe and Ito)
    Septum.INTERVENTRICULAR: (230, 159, 0),
    Septum.UNSPECIFIED: (240, 228, 66),
}
UNKNOWN_FRAME_TIME_MS = 40.0
"""A film needs a speed: that of a cine without frame times. The table of cines says which these are."""
CATEGORIES = {Septum.INTERATRIAL: 1, Septum.INTERVENTRICULAR: 2, Septum.UNSPECIFIED: 3}


class ExportFormat(StrEnum):
    """What can be written, each into a folder of its name."""

    COCO = "coco"
    CSV = "csv"
    SR = "sr"
    PNG = "png"
    MP4 = "mp4"


@dataclass(frozen=True)
class Exported:
    """How many cines were written, and one sentence for each that was not."""

    cines: int
    problems: tuple[str, ...] = ()


def export_study_folder(
    studies: Path,
    out: Path,
    formats: Collection[ExportFormat],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Exported:
    """Write the annotated cines of ``studies`` to ``out``, a new or empty folder.

    A cine whose tissue cannot be told from text is not exported.

    Raises
    ------
    EchoError
        If nothing is annotated, or ``out`` holds something.
    """
    folder = StudyFolder(studies)
    image_ids = folder.annotated_ids()
    if not image_ids:
        msg = f"Study folder {studies} has no annotated cine; an export is of what people said."
        raise EchoError(msg)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        msg = f"Export folder {out} is not empty; name a new one."
        raise EchoError(msg)
    for kind in formats:
        (out / kind).mkdir(parents=True)
    if ExportFormat.COCO in formats:
        (out / ExportFormat.COCO / "images").mkdir()
    pseudonyms = Pseudonyms(_key(folder.root))
    done: list[ExportedCine] = []
    problems: list[str] = []
    for number, image_id in enumerate(image_ids, start=1):
        name = pseudonyms.name("cine", image_id)
        try:
            done.append(_export_cine(folder, image_id, name, pseudonyms, out, formats))
        except (UnreadableCineError, AnnotationError) as exc:
            logger.warning("Not exported: %s", exc)
            problems.append(str(exc))
        if progress:
            progress(number, len(image_ids))
    if ExportFormat.COCO in formats:
        write_coco(done, out / ExportFormat.COCO / "annotations.json")
    if ExportFormat.CSV in formats:
        write_csv(done, out / ExportFormat.CSV)
    return Exported(len(done), tuple(problems))


def _export_cine(
    folder: StudyFolder, image_id: str, name: str, pseudonyms: Pseudonyms, out: Path, formats: Collection[ExportFormat]
) -> ExportedCine:
    annotation = folder.annotation(image_id)
    assert annotation is not None
    cine = folder.read_cine(image_id)
    identity = cine.patient_id or folder.entry(image_id).patient_id or image_id
    patient = pseudonyms.name("patient", identity)
    mask = tissue_mask(cine)
    if ExportFormat.COCO in formats or ExportFormat.PNG in formats:
        frames = masked(cine.read_frames(annotation.annotated_frames), mask)
        _write_pictures(frames, annotation, name, out, formats)
    if ExportFormat.SR in formats or ExportFormat.MP4 in formats:
        frames = masked(cine.pixels, mask)
        if ExportFormat.MP4 in formats:
            path = out / ExportFormat.MP4 / f"{name}.mp4"
            write_film(frames, annotation.boxes, path, frame_time_ms=cine.frame_time_ms)
        if ExportFormat.SR in formats:
            _write_dicom(replace(cine, patient_id=identity), frames, annotation, pseudonyms, name, out)
    return ExportedCine(name, patient, cine.frame_count, cine.height, cine.width, cine.frame_time_ms, annotation)


def _write_pictures(
    frames: ByteArray, annotation: Annotation, name: str, out: Path, formats: Collection[ExportFormat]
) -> None:
    for frame_index, frame in zip(annotation.annotated_frames, frames, strict=True):
        file = frame_name(name, frame_index)
        if ExportFormat.COCO in formats:
            Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame).save(
                out / ExportFormat.COCO / "images" / file
            )
        if ExportFormat.PNG in formats:
            with_boxes(frame, annotation.boxes_on(frame_index)).save(out / ExportFormat.PNG / file)


def _write_dicom(
    cine: Cine, frames: ByteArray, annotation: Annotation, pseudonyms: Pseudonyms, name: str, out: Path
) -> None:
    """Write the cine without identity and, where there are boxes, a report on it."""
    now = datetime(2000, 1, 1)  # the day of an examination is part of an identity, and so is that of its export
    instance = deidentified_instance(cine, np.ascontiguousarray(frames), pseudonyms, now=now)
    instance.save_as(out / ExportFormat.SR / f"{name}.dcm", write_like_original=False)
    if annotation.boxes:
        report = boxes_report(instance, annotation.boxes, OBSERVER, now=now)
        write_report(report, out / ExportFormat.SR / f"{name}_boxes.dcm")


def parse_formats(text: str) -> Sequence[ExportFormat]:
    """Return the formats of a comma-separated list.

    >>> parse_formats("coco, csv")
    (<ExportFormat.COCO: 'coco'>, <ExportFormat.CSV: 'csv'>)
    """
    names = [name.strip().lower() for name in text.split(",")]
    for name in names:
        if name not in list(ExportFormat):
            msg = f"Format {name!r} is unknown; {', '.join(ExportFormat)} are accepted."
            raise ValueError(msg)
    return tuple(dict.fromkeys(ExportFormat(name) for name in names))


def _key(root: Path) -> bytes:
    """Return the secret of a study folder, made at its first export and readable by its owner only.

    Raises
    ------
    EchoError
        If it cannot be read or made, or is damaged: other pseudonyms would be made with another one.
    """
    path = root / KEY_FILE
    try:
        if not path.exists():
            with AnnotationStore(root / ANNOTATIONS_DIRECTORY).locked():
                if not path.exists():  # another export may have made it meanwhile
                    write_atomically(path, secrets.token_bytes(_KEY_BYTES), mode=0o600)
        key = path.read_bytes()
    except OSError as exc:
        msg = f"Export key {KEY_FILE} of the study folder cannot be used ({exc.strerror or exc}); make it accessible."
        raise EchoError(msg) from exc
    if len(key) != _KEY_BYTES:
        msg = (
            f"Export key {KEY_FILE} of the study folder has {len(key)} bytes, not {_KEY_BYTES}; restore it from a"
            " backup, or delete it to get other pseudonyms than before."
        )
        raise EchoError(msg)
    return key


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
