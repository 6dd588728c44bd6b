# SPDX-License-Identifier: Apache-2.0
"""Cines without their patient: pixels outside the tissue are black, and only listed elements of a header go on.

A list of what may stay, not of what must go: makers put names into elements that nobody expects. UIDs and patient ids
become others that only the holder of a key can make again.

References
----------
PS3.15 E (Basic Application Level Confidentiality Profile, Clean Pixel Data Option)
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from scipy.spatial import ConvexHull

from echo_plugin.cine import ByteArray, Cine, RegionDataType, UltrasoundRegion, to_grey
from echo_plugin.errors import UnreadableCineError
from echo_plugin.io.dicom_sr import coded, dictionary
from echo_plugin.io.sector import find_flicker_area, find_sector_area, header_tissue_region

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
