# SPDX-License-Identifier: Apache-2.0
"""Makers of small DICOM files in every encoding that the reader accepts."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    UltrasoundMultiFrameImageStorage,
)

SOP_UID = "1.2.826.0.1.3680043.8.498.1"


def write_dicom(
    path: Path,
    stored: np.ndarray,
    photometric: str = "MONOCHROME2",
    *,
    syntax: str = ExplicitVRLittleEndian,
    encoded: Sequence[bytes] | None = None,
    pixel_data: bytes | None = None,
    **elements: object,
) -> Path:
    """Write (T, H, W, S) samples uncompressed, or ``encoded`` frames encapsulated; ``elements`` are set last."""
    T, H, W, S = stored.shape
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UltrasoundMultiFrameImageStorage
    meta.MediaStorageSOPInstanceUID = SOP_UID
    meta.TransferSyntaxUID = syntax
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.is_little_endian = syntax != ExplicitVRBigEndian
    dataset.is_implicit_VR = syntax == ImplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = UltrasoundMultiFrameImageStorage, SOP_UID
    dataset.PatientID, dataset.PatientName, dataset.Modality = "pseudonym-7", "Nobody^Real", "US"
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = T, H, W, S
    dataset.PhotometricInterpretation = photometric
    dataset.PixelRepresentation = 0
    bits = stored.dtype.itemsize * 8
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    if S == 3:
        dataset.PlanarConfiguration = 0
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    if pixel_data is None:
        pixel_data = stored.tobytes() if encoded is None else encapsulate(list(encoded))
    dataset.PixelData = pixel_data + b"\0" * (len(pixel_data) % 2)
    dataset["PixelData"].VR = "OB" if bits == 8 or encoded is not None else "OW"
    dataset["PixelData"].is_undefined_length = encoded is not None
    dataset.save_as(path, write_like_original=True)
    return path


@pytest.fixture
def make_dicom(tmp_path: Path) -> Callable[..., Path]:
    """Return :func:`write_dicom` into a file of the test's own directory."""

    def make(stored: np.ndarray, photometric: str = "MONOCHROME2", **rest: object) -> Path:
        return write_dicom(tmp_path / "made.dcm", stored, photometric, **rest)

    return make


@pytest.fixture
def speckle() -> np.ndarray:
    """(4, 24, 32, 3) uint8 RGB noise, every frame another."""
    return np.random.default_rng(7).integers(0, 256, (4, 24, 32, 3), dtype=np.uint8)
