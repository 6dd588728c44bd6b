# SPDX-License-Identifier: Apache-2.0
"""What the header of a DICOM cine says, checked, and where its pixel data begin; no pixel is decoded.

Only the tags listed here are read: names, addresses and everything private are skipped over.

References
----------
PS3.3 C.7.6.3 (Image Pixel Module), PS3.10 section 7 (file format), PS3.5 section 7 and A
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Container
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from echo_plugin.cine import UltrasoundRegion
from echo_plugin.io.dicom_regions import valid_regions
from echo_plugin.io.dicom_tags import TAGS_READ
from echo_plugin.io.dicom_times import age_days, frame_times_ms, positive_number, stated
from echo_plugin.io.image_id import is_uid
from echo_plugin.io.stored_bytes import StoredBytes, damage_named, unreadable

UNDEFINED_LENGTH = 0xFFFFFFFF
LARGEST_FRAME_PX = 1 << 26
"""8192 x 8192; the largest ultrasound screens have 2 to 4 million pixels."""
MOST_FRAMES = 1_000_000
LARGEST_UNPACKED_BYTES = 1 << 31
_DEFLATED = DeflatedExplicitVRLittleEndian.encode()


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


def read_dicom_header(path: Path) -> DicomHeader:
    """Return the header of a DICOM file without decoding its pixels.

    Raises
    ------
    UnreadableCineError
        If the file is no DICOM image, or its header contradicts itself or is beyond reason.
    """
    return read_header_and_bytes(path)[0]


def read_header_and_bytes(path: Path) -> tuple[DicomHeader, StoredBytes]:
    """Return the header of a DICOM file and the bytes in which its pixel offset counts."""
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
