# SPDX-License-Identifier: Apache-2.0
"""Phantom screens as DICOM Ultrasound Multi-frame Image Storage, in the encodings that machines use.

The header says what the pixels are and that they are synthetic; it says neither view nor defect.

References
----------
PS3.3 A.7 (Ultrasound Multi-frame Image IOD), C.8.5.5 (US Region Calibration), C.8.5.6 (US Image), C.7.6.5 (Cine).
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import BinaryIO

import numpy as np
import simplejpeg
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.encoders import get_encoder  # type: ignore[attr-defined]  # exported in 2.4 and 3 alike
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
    UltrasoundMultiFrameImageStorage,
    generate_uid,
)

from echo_plugin.cine import ByteArray, to_grey
from echo_plugin.phantom.bmode import PhantomCine
from echo_plugin.phantom.heart import STUDY_DATE, PhantomPatient
from echo_plugin.phantom.screen import Machine, Rectangle, Screen, r_wave_times_ms


class Encoding(Enum):
    """How the pixels are stored."""

    JPEG_COLOUR = "jpeg-ybr422"
    """JPEG baseline, YBR_FULL_422: what nearly every machine sends."""
    JPEG_GREY = "jpeg-grey"
    """JPEG baseline, MONOCHROME2."""
    RLE_COLOUR = "rle-rgb"
    """RLE lossless, RGB."""
    RAW_COLOUR = "raw-rgb"
    """Uncompressed RGB, explicit VR little endian."""
    RAW_GREY = "raw-grey"
    """Uncompressed MONOCHROME2, explicit VR little endian."""
    JPEG_2000 = "jpeg2000-rgb"
    """JPEG 2000 lossless with the reversible colour transform."""

    @property
    def is_lossy(self) -> bool:
        """Whether reading gives back other pixels than were written."""
        return self in (Encoding.JPEG_COLOUR, Encoding.JPEG_GREY)

    @property
    def is_grey(self) -> bool:
        """Whether one sample per pixel is stored."""
        return self in (Encoding.JPEG_GREY, Encoding.RAW_GREY)

    @property
    def transfer_syntax(self) -> UID:
        """(0002,0010) *Transfer Syntax UID*."""
        syntaxes = {
            Encoding.JPEG_COLOUR: JPEGBaseline8Bit,
            Encoding.JPEG_GREY: JPEGBaseline8Bit,
            Encoding.RLE_COLOUR: RLELossless,
            Encoding.JPEG_2000: JPEG2000Lossless,
        }
        return syntaxes.get(self, ExplicitVRLittleEndian)

    @property
    def photometric_interpretation(self) -> str:
        """(0028,0004) *Photometric Interpretation*."""
        if self.is_grey:
            return "MONOCHROME2"
        return {Encoding.JPEG_COLOUR: "YBR_FULL_422", Encoding.JPEG_2000: "YBR_RCT"}.get(self, "RGB")


def _run_length_encoded(frame: ByteArray) -> bytes:
    """Return the PackBits segments of the planes of one (H, W, 3) frame."""
    height, width, samples = frame.shape
    return get_encoder(RLELossless).encode(
        frame,
        encoding_plugin="pydicom",
        rows=height,
        columns=width,
        samples_per_pixel=samples,
        planar_configuration=0,
        photometric_interpretation="RGB",
        bits_allocated=8,
        bits_stored=8,
        pixel_representation=0,
        number_of_frames=1,
    )


def encode_frame(frame: ByteArray, encoding: Encoding, quality: int) -> bytes:
    """Return one (H, W, 3|1) frame as one compressed codestream."""
    if encoding is Encoding.JPEG_COLOUR:
        return simplejpeg.encode_jpeg(np.ascontiguousarray(frame), quality, "RGB", "422")
    if encoding is Encoding.JPEG_GREY:
        return simplejpeg.encode_jpeg(np.ascontiguousarray(frame), quality, "GRAY", "Gray")
    if encoding is Encoding.RLE_COLOUR:
        return _run_length_encoded(frame)
    codestream = io.BytesIO()
    Image.fromarray(frame).save(codestream, "JPEG2000", no_jp2=True, mct=1, irreversible=False)
    return codestream.getvalue()


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
