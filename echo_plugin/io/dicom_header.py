# SPDX-License-Identifier: Apache-2.0
"""What the header of a DICOM cine says, checked, and where its pixel data begin; no pixel is decoded.

Only the elements listed here are read: names, addresses and everything private are skipped over. What cannot be true
(a frame time of 0, regions that leave the picture) is None or absent, never a guess.

References
----------
PS3.10 section 7 (file format); PS3.5 section 7 and A (encodings); PS3.3 C.7.6.3 (image pixels), C.7.6.5 and C.7.6.6
(cine and multi-frame), C.7.2.2 (patient's age), C.8.5.5 (US regions), 10.7 and C.7.6.3.1.7 (spacing and aspect ratio)
"""

from __future__ import annotations

import math
import re
import struct
import zlib
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from echo_plugin.cine import RegionDataType, UltrasoundRegion, is_uid
from echo_plugin.io.stored_bytes import StoredBytes, damage_named, unreadable

_IDENTITY = (
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "PatientID",
    "PatientAge",
    "PatientBirthDate",
    "StudyDate",
    "HeartRate",
)
_REGIONS_AND_TIMES = (
    "SequenceOfUltrasoundRegions",
    "FrameTime",
    "FrameTimeVector",
    "FrameIncrementPointer",
    "CineRate",
)
_PIXELS = (
    "NumberOfFrames",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "ExtendedOffsetTable",
)
_DISPLAY = (
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "VOILUTSequence",
    "PixelSpacing",
    "PixelAspectRatio",
    *(
        f"{kind}{colour}PaletteColorLookupTable{part}"
        for colour in ("Red", "Green", "Blue")
        for kind, part in (("", "Descriptor"), ("", "Data"), ("Segmented", "Data"))
    ),
)
TAGS_READ = (*_IDENTITY, *_REGIONS_AND_TIMES, *_PIXELS, *_DISPLAY)
"""DICOM keywords."""


UNDEFINED_LENGTH = 0xFFFFFFFF
LARGEST_FRAME_PX = 1 << 26
"""8192 x 8192; the largest ultrasound screens have 2 to 4 million pixels."""
MOST_FRAMES = 1_000_000
LARGEST_UNPACKED_BYTES = 1 << 31
_DEFLATED = DeflatedExplicitVRLittleEndian.encode()
_FRAME_TIME = 0x00181063
_FRAME_TIME_VECTOR = 0x00181065
_DAYS_IN = {"D": 1.0, "W": 7.0, "M": 365.25 / 12, "Y": 365.25}
_OLDEST_DAYS = 130 * 366
_CENTIMETRES = 3
"""(0018,6024), (0018,6026) *Physical Units X/Y Direction*, C.8.5.5.1.15."""
_TWO_DIMENSIONAL = 1
"""(0018,6012) *Region Spatial Format*, C.8.5.5.1.1; M-mode and spectra are other formats."""


@dataclass(frozen=True)
class DicomHeader:
    """The checked header of one SOP instance.

    ``frame_times_ms`` (T,), ``regions``, the UIDs and the facts of the patient as in :class:`echo_plugin.cine.Cine`.
    ``samples_per_pixel`` 1 or 3, ``bits_allocated`` 8 or 16, ``pixel_offset`` and ``pixel_length`` the place of the
    value of (7FE0,0010) *Pixel Data* in bytes (length ``UNDEFINED_LENGTH``: encapsulated), ``pixel_vr`` "OB", "OW" or
    "" (implicit). ``dataset`` holds the few elements that say how pixels are shown, their shape among them.
    """

    sop_instance_uid: str | None
    series_instance_uid: str | None
    study_instance_uid: str | None
    patient_id: str | None = field(repr=False)
    patient_age_days: int | None
    heart_rate_bpm: float | None
    frames: int
    height: int
    width: int
    frame_times_ms: NDArray[np.float64] | None = field(repr=False)
    regions: tuple[UltrasoundRegion, ...]
    transfer_syntax_uid: str
    photometric_interpretation: str
    samples_per_pixel: int
    planar_configuration: int
    bits_allocated: int
    bits_stored: int
    is_signed: bool
    is_little_endian: bool
    pixel_offset: int
    pixel_length: int
    pixel_vr: str
    dataset: Dataset = field(repr=False)


def read_header_and_bytes(path: Path) -> tuple[DicomHeader, StoredBytes]:
    """Return the header of a DICOM file and the bytes in which its pixel offset counts; no pixel is decoded.

    Raises
    ------
    UnreadableCineError
        If the file is no DICOM image, or its header contradicts itself or is beyond reason.
    """
    stored = StoredBytes.of(path)
    with damage_named(path, "a DICOM header that cannot be parsed"):
        with stored.open() as file:
            start = file.read(4096)
        if not is_dicom(start):
            raise unreadable(path, "is not DICOM: neither a preamble nor a data element begins it.")
        data_set_start = _end_of_meta(start)
        if _DEFLATED in start[:data_set_start]:
            stored = replace(stored, unpacked=_inflate(stored, data_set_start))
        with stored.open() as file:
            dataset = dcmread(file, stop_before_pixels=True, force=True, specific_tags=list(TAGS_READ))
            implicit, little_endian = _encoding(dataset)
            vr, offset, length = _pixel_data(stored, file, implicit=implicit, order="<" if little_endian else ">")
        place: dict[str, str | int] = {
            "pixel_vr": vr,
            "pixel_offset": offset,
            "pixel_length": length,
            "is_little_endian": little_endian,
        }
        return _checked(path, dataset, place), stored


def is_dicom(first_bytes: bytes) -> bool:
    """Whether a file that begins so is DICOM: the preamble of PS3.10, or a data set that starts without one."""
    if first_bytes[128:132] == b"DICM":
        return True
    group, element = struct.unpack("<HH", first_bytes[:4].ljust(4, b"\xff"))
    return group in (0x0002, 0x0008) and element <= 0x0070 and len(first_bytes) > 132


def _end_of_meta(start: bytes) -> int:
    """Return where the data set begins, by (0002,0000) *File Meta Information Group Length*; 0: cannot be told."""
    if start[128:138] != b"DICM\x02\x00\x00\x00UL":
        return 0
    return 144 + int(struct.unpack_from("<I", start, 140)[0])


def _inflate(stored: StoredBytes, offset: int) -> bytes:
    """Return the data set of a *Deflated Explicit VR Little Endian* file, at most ``LARGEST_UNPACKED_BYTES``."""
    with stored.open() as file:
        packed = stored.exactly(file, offset, stored.length - offset)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    unpacked = inflater.decompress(packed, min(LARGEST_UNPACKED_BYTES, 1100 * len(packed)))
    if not inflater.eof:
        raise unreadable(stored.path, "holds a deflated data set that is cut off or far too large.")
    return unpacked


def _encoding(dataset: Dataset) -> tuple[bool, bool]:
    """Return whether the data set was read as implicit VR and as little endian."""
    if hasattr(dataset, "original_encoding"):  # pydicom >= 3
        implicit, little_endian = dataset.original_encoding
    else:
        implicit, little_endian = dataset.read_implicit_vr, dataset.read_little_endian
    return bool(implicit), bool(little_endian)


def _pixel_data(stored: StoredBytes, file: BinaryIO, *, implicit: bool, order: str) -> tuple[str, int, int]:
    """Return VR, place and length of the value of (7FE0,0010) *Pixel Data*, the element at which ``file`` stands."""
    start = file.tell()
    head = file.read(12)
    if len(head) < 8 or struct.unpack_from(order + "HH", head) != (0x7FE0, 0x0010):
        raise unreadable(stored.path, "is DICOM without (7FE0,0010) 'Pixel Data'; an image is accepted.")
    if implicit:
        return "", start + 8, int(struct.unpack_from(order + "I", head, 4)[0])
    return head[4:6].decode("ascii"), start + 12, int(struct.unpack_from(order + "I", head, 8)[0])


def _checked(path: Path, dataset: Dataset, place: dict[str, str | int]) -> DicomHeader:
    """Return the header if every number in it can be true of an ultrasound image."""
    frames = _number(path, dataset, "NumberOfFrames", range(1, MOST_FRAMES + 1), 1)
    height = _number(path, dataset, "Rows", range(1, 1 << 16))
    width = _number(path, dataset, "Columns", range(1, 1 << 16))
    if height * width > LARGEST_FRAME_PX:
        raise unreadable(path, f"has frames of {height} x {width} px; up to {LARGEST_FRAME_PX} px are accepted.")
    samples = _number(path, dataset, "SamplesPerPixel", (1, 3), 1)
    allocated = _number(path, dataset, "BitsAllocated", (8, 16))
    syntax = str(getattr(dataset, "file_meta", Dataset()).get("TransferSyntaxUID") or ExplicitVRLittleEndian)
    return DicomHeader(
        sop_instance_uid=_uid(dataset, "SOPInstanceUID"),
        series_instance_uid=_uid(dataset, "SeriesInstanceUID"),
        study_instance_uid=_uid(dataset, "StudyInstanceUID"),
        patient_id=_patient_id(dataset),
        patient_age_days=age_days(dataset),
        heart_rate_bpm=positive_number(stated(dataset, "HeartRate")),
        frames=frames,
        height=height,
        width=width,
        frame_times_ms=frame_times_ms(dataset, frames),
        regions=valid_regions(stated(dataset, "SequenceOfUltrasoundRegions") or (), height, width),
        transfer_syntax_uid=syntax,
        photometric_interpretation=str(dataset.get("PhotometricInterpretation") or "").strip().upper(),
        samples_per_pixel=samples,
        planar_configuration=_number(path, dataset, "PlanarConfiguration", (0, 1), 0),
        bits_allocated=allocated,
        bits_stored=_number(path, dataset, "BitsStored", range(1, allocated + 1), allocated),
        is_signed=_number(path, dataset, "PixelRepresentation", (0, 1), 0) == 1,
        dataset=dataset,
        **place,  # type: ignore[arg-type]
    )


def _number(path: Path, dataset: Dataset, keyword: str, accepted: Container[int], absent: int | None = None) -> int:
    """Return the whole number of an element; ``absent`` where the header leaves it out or empty, if that is allowed."""
    value = dataset.get(keyword)
    if value in (None, "") and absent is not None:
        return absent
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = -1
    if number not in accepted:
        tag = Tag(tag_for_keyword(keyword) or 0)
        shown = f"{accepted.start} to {accepted.stop - 1}" if isinstance(accepted, range) else accepted
        found = "is missing" if value in (None, "") else f"is {str(value)[:40]!r}"
        raise unreadable(
            path,
            f"cannot be read as a cine: ({tag.group:04X},{tag.element:04X}) {keyword!r} {found}; {shown} is accepted.",
        )
    return number


def _uid(dataset: Dataset, keyword: str) -> str | None:
    text = str(stated(dataset, keyword) or "").strip()
    return text if is_uid(text) else None


def _patient_id(dataset: Dataset) -> str | None:
    value = stated(dataset, "PatientID") or ""
    # a backslash, which parts values, is met in ids of one value
    text = "\\".join(map(str, value)) if isinstance(value, MultiValue) else str(value)
    return text.strip() or None


def stated(header: Dataset, keyword: str) -> Any:
    """Return the value of an element that a cine can be read without; None: absent, empty, or not of its VR."""
    try:
        value = header.get(keyword)
    except (ValueError, TypeError, OverflowError, NotImplementedError, LookupError):
        return None
    return None if value == "" else value


def positive_number(value: object) -> float | None:
    """Return the value as a float if it is a finite number above zero, else None: not known."""
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if math.isfinite(number) and number > 0 else None


def frame_times_ms(header: Dataset, frames: int) -> NDArray[np.float64] | None:
    """Return the (T,) times of the frames in ms, 0 for the first; None: not known, or a still.

    (0028,0009) *Frame Increment Pointer* says which of *Frame Time* and *Frame Time Vector* holds; without it the
    first that is given of them, then *Cine Rate* (frames/s). *Recommended Display Frame Rate* is not looked at: it
    says how fast to play the frames, which for a slowed-down cine is not how fast they were taken.
    """
    if frames < 2:
        return None
    vector = _times_of_vector(stated(header, "FrameTimeVector"), frames)
    step_ms = positive_number(stated(header, "FrameTime"))
    pointer = stated(header, "FrameIncrementPointer")
    pointers = {int(tag) for tag in pointer} if isinstance(pointer, Sequence) else {int(pointer or 0)}
    if vector is not None and (step_ms is None or (_FRAME_TIME_VECTOR in pointers and _FRAME_TIME not in pointers)):
        return vector
    if step_ms is None:
        rate = positive_number(stated(header, "CineRate"))
        step_ms = None if rate is None else 1000.0 / rate
    return None if step_ms is None else np.arange(frames, dtype=np.float64) * step_ms


def _times_of_vector(vector: object, frames: int) -> NDArray[np.float64] | None:
    """Return the running sum of (0018,1065) *Frame Time Vector*: increments in ms, the first for the first frame."""
    if isinstance(vector, str) or not isinstance(vector, Sequence) or len(vector) != frames:
        return None
    increments = np.array([float(str(step)) for step in vector], dtype=np.float64)
    if not np.all(np.isfinite(increments)) or np.any(increments[1:] <= 0):
        return None
    increments[0] = 0.0  # "the first frame always has a time increment of 0"; some writers repeat the step here
    return np.cumsum(increments)


def age_days(header: Dataset) -> int | None:
    """Return the patient's age at the study in days; None: not known.

    From birth and study date where these do not contradict (0010,1010) *Patient's Age* by more than one of its
    units (a de-identified date does), else from the age as it is stated.
    """
    age = re.fullmatch(r"([0-9]{3})([DWMY])", str(stated(header, "PatientAge") or "").strip())
    born, examined = _day(stated(header, "PatientBirthDate")), _day(stated(header, "StudyDate"))
    counted = (examined - born).days if born and examined else None
    if counted is not None and not 0 <= counted <= _OLDEST_DAYS:
        counted = None
    if age is None:
        return counted
    unit = _DAYS_IN[age[2]]
    stated_days = int(age[1]) * unit
    if counted is not None and stated_days - unit <= counted <= stated_days + 2 * unit:
        return counted
    return round(stated_days)


def _day(value: object) -> date | None:
    text = str(value or "").strip().replace(".", "")
    try:
        return date(int(text[:4]), int(text[4:6]), int(text[6:8])) if len(text) == 8 else None
    except ValueError:
        return None


def valid_regions(items: Iterable[Dataset], height: int, width: int) -> tuple[UltrasoundRegion, ...]:
    """Return the regions of (0018,6011) *Sequence of Ultrasound Regions*, in order; empty: none that can be trusted.

    One region that leaves the pixel matrix shows that the whole sequence was written for another matrix (a resized
    copy), so none is returned then. A maximum equal to the matrix, one px too many, is common and is cut. An item
    without corners is passed over.
    """
    regions = []
    for item in items:
        corners = [stated(item, f"RegionLocation{corner}") for corner in ("MinX0", "MinY0", "MaxX1", "MaxY1")]
        if not all(isinstance(corner, int) for corner in corners):
            continue
        x1, y1, x2, y2 = corners[0], corners[1], corners[2] + 1, corners[3] + 1
        if not (0 <= x1 < x2 <= width + 1 and 0 <= y1 < y2 <= height + 1):
            return ()
        x2, y2 = min(x2, width), min(y2, height)
        if x1 < x2 and y1 < y2:
            mm_x, mm_y = _spacing_mm(item, "X"), _spacing_mm(item, "Y")
            regions.append(UltrasoundRegion(x1, y1, x2, y2, mm_x, mm_y, _data_type(item)))
    return tuple(regions)


def _spacing_mm(item: Dataset, direction: str) -> float | None:
    if stated(item, f"PhysicalUnits{direction}Direction") != _CENTIMETRES:
        return None
    delta_cm = stated(item, f"PhysicalDelta{direction}")  # negative where the axis points the other way
    return positive_number(abs(delta_cm) * 10.0) if isinstance(delta_cm, float | int) else None


def _data_type(item: Dataset) -> RegionDataType:
    number = stated(item, "RegionDataType")
    if number == RegionDataType.TISSUE and stated(item, "RegionSpatialFormat") not in (None, _TWO_DIMENSIONAL):
        return RegionDataType.OTHER  # M-mode of tissue: its columns are times
    try:
        return RegionDataType(number)
    except ValueError:
        return RegionDataType.OTHER
