# SPDX-License-Identifier: Apache-2.0
"""Export of a study folder's annotated cines: COCO JSON, CSV tables, pictures, films, and DICOM with reports.

Pseudonyms for everybody, black for everything that is no tissue. Authors, dates, file names and the gallery of
embeddings are never exported. A secret in the study folder makes the pseudonyms, so that a later export has the same
ones and only the folder's holder can tell who is who.

Of a header only listed elements go on: makers put names into elements that nobody expects. UIDs and patient ids become
others that only the holder of a key can make again.

References
----------
PS3.15 E (Basic Application Level Confidentiality Profile, Clean Pixel Data Option)
"""

from __future__ import annotations

import csv
import hashlib
import hmac
import json
import logging
import secrets
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from scipy.spatial import ConvexHull

from echo_plugin.anatomy import SHORT_NAMES, Septum
from echo_plugin.annotations import Annotation, SeptalBox
from echo_plugin.cine import ByteArray, Cine, RegionDataType, UltrasoundRegion, to_grey
from echo_plugin.durable import write_atomically
from echo_plugin.errors import AnnotationError, EchoError, UnreadableCineError
from echo_plugin.io.annotation_store import AnnotationStore
from echo_plugin.io.dicom_sr import Observer, boxes_report, coded, dictionary, write_report
from echo_plugin.io.sector import find_flicker_area, find_sector_area, header_tissue_region
from echo_plugin.io.study_folder import StudyFolder
from echo_plugin.io.study_index import ANNOTATIONS_DIRECTORY

_FRAMES_LOOKED_AT = 16
_LEFT_EMPTY = (
    "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName",
    "Manufacturer", "Laterality", "PatientOrientation",
)  # fmt: skip
_CENTIMETRES = 3
"""(0018,6024) *Physical Units X Direction*."""


@dataclass(frozen=True)
class Pseudonyms:
    """Other names for patients, cines and UIDs; ``key`` makes the same ones again, and nobody without it can."""

    key: bytes = field(repr=False)

    def name(self, kind: str, identity: str) -> str:
        """Return the pseudonym of an identity, such as ``patient-5f0c9b3a2e11``."""
        return f"{kind}-{self._digest(kind, identity)[:12]}"

    def uid(self, original: str) -> str:
        """Return another UID."""
        return f"2.25.{int(self._digest('uid', original)[:32], 16)}"

    def _digest(self, kind: str, identity: str) -> str:
        return hmac.new(self.key, f"{kind}:{identity}".encode(errors="replace"), hashlib.sha256).hexdigest()


def tissue_mask(cine: Cine) -> NDArray[np.bool_]:
    """Return the (H, W) pixels that show tissue: the hull of what moves like tissue, inside the header's region.

    A page of text has texture too, so in what stands still texture counts only inside a region of the header.

    Raises
    ------
    UnreadableCineError
        If no tissue can be told from the rest: such a cine must not leave.
    """
    count = min(_FRAMES_LOOKED_AT, cine.frame_count)
    frame_indices = np.linspace(0, cine.frame_count - 1, count).astype(int).tolist()
    grey, region = to_grey(cine.read_frames(frame_indices)), header_tissue_region(cine)
    area = find_flicker_area(grey)
    if area is None and region is not None and _tells_tissue_from_text(region, cine):
        area = find_sector_area(grey)
    if area is not None and region is not None:
        inside = np.zeros_like(area)
        inside[round(region.y1) : round(region.y2), round(region.x1) : round(region.x2)] = True
        area &= inside
    if area is None or np.count_nonzero(area) < 16:
        msg = f"Cine {cine.image_id} shows no sector that could be told from text; it is not exported."
        raise UnreadableCineError(msg)
    rows, columns = np.nonzero(area)
    points = np.stack([columns, rows], axis=1)
    hull = points[ConvexHull(points).vertices]
    picture = Image.new("1", (cine.width, cine.height))
    ImageDraw.Draw(picture).polygon([(int(x), int(y)) for x, y in hull], fill=1, outline=1)
    return np.asarray(picture, dtype=bool)


def _tells_tissue_from_text(region: UltrasoundRegion, cine: Cine) -> bool:
    """Whether a region of the header is a part of the picture; one that is all of it excludes no text."""
    return (region.x2 - region.x1, region.y2 - region.y1) != (cine.width, cine.height)


def masked(frames: ByteArray, mask: NDArray[np.bool_]) -> ByteArray:
    """Return (T, H, W, C) frames that are black where ``mask`` (H, W) is not."""
    return frames * mask[None, :, :, None]


def deidentified_instance(cine: Cine, frames: ByteArray, pseudonyms: Pseudonyms, *, now: datetime) -> Dataset:
    """Return an uncompressed DICOM ultrasound instance of masked ``frames`` (T, H, W, C) without any identity."""
    identity = cine.sop_instance_uid or cine.image_id
    instance = Dataset()
    instance.SOPClassUID = uid.UltrasoundMultiFrameImageStorage
    instance.SOPInstanceUID = pseudonyms.uid(identity)
    instance.StudyInstanceUID = pseudonyms.uid(cine.study_instance_uid or f"study of {identity}")
    instance.SeriesInstanceUID = pseudonyms.uid(cine.series_instance_uid or f"series of {identity}")
    patient = pseudonyms.name("patient", cine.patient_id or identity)
    instance.PatientID, instance.PatientName = patient, f"{patient}^"
    for keyword in _LEFT_EMPTY:
        setattr(instance, keyword, "")
    instance.Modality, instance.SeriesNumber, instance.InstanceNumber = "US", 1, 1
    instance.ContentDate, instance.ContentTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    instance.ImageType = ["DERIVED", "SECONDARY"]
    instance.PatientIdentityRemoved, instance.BurnedInAnnotation = "YES", "NO"
    instance.DeidentificationMethod = "monailabel-echo: listed elements, pixels of tissue"
    codes = dictionary().DCM
    instance.DeidentificationMethodCodeSequence = Items(
        [coded(codes.BasicApplicationConfidentialityProfile), coded(codes.CleanPixelDataOption)]
    )
    _set_pixels(instance, cine, frames)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = instance.SOPClassUID, instance.SOPInstanceUID
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    instance.file_meta, instance.is_little_endian, instance.is_implicit_VR = meta, True, False
    instance.preamble = b"\0" * 128
    return instance


def _set_pixels(instance: Dataset, cine: Cine, frames: ByteArray) -> None:
    T, H, W, C = frames.shape
    if cine.frame_times_ms is not None and T > 1:
        instance.FrameTimeVector = [0.0, *(round(float(step), 4) for step in np.diff(cine.frame_times_ms))]
        instance.FrameIncrementPointer = 0x00181065
    regions = [item for region in cine.regions if (item := _region(region)) is not None]
    if regions:
        instance.SequenceOfUltrasoundRegions = Items(regions)
    instance.NumberOfFrames, instance.Rows, instance.Columns, instance.SamplesPerPixel = T, H, W, C
    instance.PhotometricInterpretation = "RGB" if C == 3 else "MONOCHROME2"
    if C == 3:
        instance.PlanarConfiguration = 0
    instance.BitsAllocated = instance.BitsStored = 8
    instance.HighBit, instance.PixelRepresentation = 7, 0
    content = frames.tobytes()
    instance.PixelData = content + b"\0" * (len(content) % 2)
    instance["PixelData"].VR = "OB"


def _region(region: UltrasoundRegion) -> Dataset | None:
    if region.data_type is not RegionDataType.TISSUE or region.mm_per_px_x is None or region.mm_per_px_y is None:
        return None
    item = Dataset()
    item.RegionSpatialFormat, item.RegionDataType, item.RegionFlags = 1, int(region.data_type), 0
    item.RegionLocationMinX0, item.RegionLocationMinY0 = int(region.x1), int(region.y1)
    item.RegionLocationMaxX1, item.RegionLocationMaxY1 = int(region.x2) - 1, int(region.y2) - 1
    item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = _CENTIMETRES
    item.PhysicalDeltaX, item.PhysicalDeltaY = region.mm_per_px_x / 10, region.mm_per_px_y / 10
    return item


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
