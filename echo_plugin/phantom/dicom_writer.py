# SPDX-License-Identifier: Apache-2.0
"""Phantom screens as DICOM Ultrasound Multi-frame Image Storage, in the encodings that machines use.

The header says what the pixels are and that they are synthetic; it says neither view nor defect.

References
----------
PS3.3 A.7 (Ultrasound Multi-frame Image IOD), C.8.5.5 (US Region Calibration), C.8.5.6 (US Image), C.7.6.5 (Cine).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    UltrasoundMultiFrameImageStorage,
    generate_uid,
)

from echo_plugin.cine import ByteArray
from echo_plugin.io.luma import to_grey
from echo_plugin.phantom.ecg import r_wave_times_ms
from echo_plugin.phantom.encoding import Encoding, encode_frame
from echo_plugin.phantom.machine import Machine
from echo_plugin.phantom.overlay import Rectangle, Screen
from echo_plugin.phantom.patient import STUDY_DATE, PhantomPatient
from echo_plugin.phantom.phantom_cine import PhantomCine

_IMPLEMENTATION_UID = generate_uid(entropy_srcs=["monailabel-echo", "implementation class"])


@dataclass(frozen=True)
class InstanceIdentity:
    """The UIDs of one cine, its 1-based number in the series and the seconds since midnight when it was recorded."""

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    instance_number: int
    seconds: int

    @property
    def clock(self) -> str:
        """The time of day, HH:MM:SS."""
        return f"{self.seconds // 3600:02d}:{self.seconds // 60 % 60:02d}:{self.seconds % 60:02d}"


def _region_item(x1: int, y1: int, x2: int, y2: int, *, spatial_format: int, data_type: int) -> Dataset:
    item = Dataset()
    item.RegionSpatialFormat = spatial_format
    item.RegionDataType = data_type
    item.RegionFlags = 2  # opaque, scaling protected
    item.RegionLocationMinX0 = x1
    item.RegionLocationMinY0 = y1
    item.RegionLocationMaxX1 = x2 - 1  # inclusive
    item.RegionLocationMaxY1 = y2 - 1
    item.PhysicalUnitsXDirection = 0
    item.PhysicalUnitsYDirection = 0
    item.PhysicalDeltaX = 0.0
    item.PhysicalDeltaY = 0.0
    return item


def _regions(cine: PhantomCine, screen: Screen) -> list[Dataset]:
    """Return the tissue region in cm and, where the screen shows them, the regions of the ECG and the grey bar."""
    r = cine.region
    corners = (int(np.floor(r.x1)), int(np.floor(r.y1)), int(np.ceil(r.x2)), int(np.ceil(r.y2)))
    tissue = _region_item(*corners, spatial_format=1, data_type=1)
    tissue.PhysicalUnitsXDirection = tissue.PhysicalUnitsYDirection = 3  # cm
    tissue.PhysicalDeltaX = (r.mm_per_px_x or 0.0) / 10
    tissue.PhysicalDeltaY = (r.mm_per_px_y or 0.0) / 10
    if "frequency_mhz" in cine.facts:
        tissue.TransducerFrequency = round(1000 * float(cine.facts["frequency_mhz"]))  # kHz
    items = [tissue]

    def corners_of(part: Rectangle) -> tuple[int, int, int, int]:
        return part.x1, part.y1, part.x2, part.y2

    if screen.ecg is not None:
        trace = _region_item(*corners_of(screen.ecg), spatial_format=4, data_type=0xA)  # a wave form: ECG trace
        trace.PhysicalUnitsXDirection = 4  # seconds
        trace.PhysicalDeltaX = screen.ecg_seconds_per_px
        items.insert(0, trace)  # as some machines do: the tissue is not always first
    if screen.grey_bar is not None:
        items.append(_region_item(*corners_of(screen.grey_bar), spatial_format=5, data_type=0xD))  # graphics: grey bar
    return items


def _describe_patient_and_study(ds: Dataset, patient: PhantomPatient, identity: InstanceIdentity) -> None:
    ds.PatientName = patient.name
    ds.PatientID = patient.patient_id
    ds.PatientBirthDate = f"{patient.birth_date:%Y%m%d}"
    ds.PatientSex = patient.sex
    ds.PatientAge = patient.age
    ds.PatientSize = f"{patient.length_m:.2f}"
    ds.PatientWeight = f"{patient.weight_kg:.1f}"
    ds.PatientComments = "Synthetic: an invented child"
    ds.QualityControlSubject = "YES"
    ds.StudyInstanceUID = identity.study_instance_uid
    ds.SeriesInstanceUID = identity.series_instance_uid
    ds.StudyDate = ds.SeriesDate = ds.ContentDate = ds.AcquisitionDate = f"{STUDY_DATE:%Y%m%d}"
    ds.StudyTime = ds.SeriesTime = "080000"
    ds.ContentTime = ds.AcquisitionTime = identity.clock.replace(":", "")
    ds.ReferringPhysicianName = ""
    ds.StudyID = "1"
    ds.AccessionNumber = ""
    ds.StudyDescription = "Synthetic transthoracic echocardiogram"
    ds.Modality = "US"
    ds.SeriesNumber = 1
    ds.InstanceNumber = identity.instance_number
    ds.BodyPartExamined = "HEART"
    ds.PatientOrientation = ""


def _describe_machine(ds: Dataset, machine: Machine) -> None:
    ds.Manufacturer = machine.manufacturer
    ds.ManufacturerModelName = machine.model
    ds.DeviceSerialNumber = machine.serial
    ds.SoftwareVersions = "monailabel-echo phantom"
    ds.InstitutionName = machine.institution
    ds.TransducerData = [machine.probe, "", ""]
    ds.TransducerType = "SECTOR_PHASED"
    ds.MechanicalIndex = f"{machine.mechanical_index:.2f}"


def _describe_cine(ds: Dataset, cine: PhantomCine, screen: Screen) -> None:
    T = len(cine.pixels)
    ds.ImageType = ["ORIGINAL", "PRIMARY", "EPICARDIAL", "0001"]  # 0001: 2D imaging
    ds.NumberOfFrames = T
    ds.FrameIncrementPointer = Tag("FrameTime")
    ds.FrameTime = f"{cine.frame_time_ms:.6f}"
    ds.CineRate = ds.RecommendedDisplayFrameRate = max(1, round(1000 / cine.frame_time_ms))
    ds.PreferredPlaybackSequencing = 0  # looping
    ds.HeartRate = round(cine.heart_rate_bpm)
    r_waves = r_wave_times_ms(cine)
    if r_waves:
        ds.RWaveTimeVector = r_waves
    ds.DepthOfScanField = round((cine.region.y2 - cine.region.y1) * (cine.region.mm_per_px_y or 0.0))
    ds.SequenceOfUltrasoundRegions = _regions(cine, screen)


def _store_pixels(ds: Dataset, pixels: ByteArray, encoding: Encoding, quality: int) -> None:
    """Put (T, H, W, 3|1) pixels into the dataset with what describes them."""
    _, H, W, C = pixels.shape
    ds.SamplesPerPixel = C
    ds.PhotometricInterpretation = encoding.photometric_interpretation
    if C == 3:
        ds.PlanarConfiguration = 1 if encoding is Encoding.RLE_COLOUR else 0
        ds.UltrasoundColorDataPresent = 0  # RGB for the overlay's sake: no colour Doppler
    ds.Rows, ds.Columns = H, W
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit = 7
    ds.PixelRepresentation = 0
    ds.LossyImageCompression = "01" if encoding.is_lossy else "00"
    if not encoding.transfer_syntax.is_compressed:
        ds.PixelData = pixels.tobytes() + b"\0" * (pixels.size % 2)
        return
    frames = [encode_frame(frame, encoding, quality) for frame in pixels]
    if encoding.is_lossy:
        ds.LossyImageCompressionRatio = f"{pixels.size / sum(map(len, frames)):.2f}"
        ds.LossyImageCompressionMethod = "ISO_10918_1"
    ds.PixelData = encapsulate(frames)
    ds["PixelData"].is_undefined_length = True


def write_dicom_cine(
    destination: Path | BinaryIO,
    cine: PhantomCine,
    screen: Screen,
    *,
    patient: PhantomPatient,
    machine: Machine,
    identity: InstanceIdentity,
    encoding: Encoding = Encoding.JPEG_COLOUR,
) -> None:
    """Write what ``screen`` shows of ``cine`` as one DICOM file; the same arguments give the same bytes.

    Raises
    ------
    ValueError
        If the width is odd and the encoding halves the colour's width.
    """
    pixels = to_grey(screen.pixels)[..., None] if encoding.is_grey else screen.pixels
    if encoding is Encoding.JPEG_COLOUR and pixels.shape[2] % 2:
        msg = f"Screen of {pixels.shape[2]} columns cannot be YBR_FULL_422; an even number of columns is accepted."
        raise ValueError(msg)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UltrasoundMultiFrameImageStorage
    meta.MediaStorageSOPInstanceUID = UID(identity.sop_instance_uid)
    meta.TransferSyntaxUID = encoding.transfer_syntax
    meta.ImplementationClassUID = _IMPLEMENTATION_UID
    meta.ImplementationVersionName = "ECHO_PHANTOM_1"
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.is_little_endian, ds.is_implicit_VR = True, False
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID = UltrasoundMultiFrameImageStorage
    ds.SOPInstanceUID = identity.sop_instance_uid
    _describe_patient_and_study(ds, patient, identity)
    _describe_machine(ds, machine)
    _describe_cine(ds, cine, screen)
    _store_pixels(ds, pixels, encoding, machine.jpeg_quality)
    ds.save_as(destination, write_like_original=False)
