# SPDX-License-Identifier: Apache-2.0
"""Makers of the small files that data sets are made of."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import av
import itk
import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundMultiFrameImageStorage


class Maker:
    """Writes files below one folder; parents are made."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, name: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def text(self, name: str, text: str) -> Path:
        self.path(name).write_text(text, encoding="utf-8")
        return self.root / name

    def table(self, name: str, columns: str, rows: Sequence[str]) -> Path:
        return self.text(name, "\n".join([columns, *rows]) + "\n")

    def video(self, name: str, frames: int = 3) -> Path:
        with av.open(str(self.path(name)), "w") as container:
            stream = container.add_stream("mjpeg", rate=25)
            stream.width, stream.height, stream.pix_fmt = 32, 24, "yuvj420p"
            for index in range(frames):
                picture = np.full((24, 32, 3), 40 * index, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        return self.root / name

    def picture(self, name: str, value: int = 90, size: tuple[int, int] = (32, 24)) -> Path:
        Image.new("L", size, value).save(self.path(name))
        return self.root / name

    def volume(self, name: str, samples: np.ndarray) -> Path:
        """Samples (T, H, W), or (H, W): the first axis of the file is the column."""
        itk.imwrite(itk.image_from_array(np.ascontiguousarray(samples)), str(self.path(name)))
        return self.root / name

    def dicom(self, name: str, uid: str, patient_id: str | None) -> Path:
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UltrasoundMultiFrameImageStorage, uid
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        cine = FileDataset(name, {}, file_meta=meta, preamble=b"\0" * 128)
        cine.is_little_endian, cine.is_implicit_VR = True, False
        cine.SOPClassUID, cine.SOPInstanceUID = UltrasoundMultiFrameImageStorage, uid
        cine.StudyInstanceUID, cine.SeriesInstanceUID, cine.Modality = "1.2.7", "1.2.7.1", "US"
        if patient_id:
            cine.PatientID = patient_id
        cine.NumberOfFrames, cine.Rows, cine.Columns = 2, 8, 10
        cine.SamplesPerPixel, cine.PhotometricInterpretation, cine.PixelRepresentation = 1, "MONOCHROME2", 0
        cine.BitsAllocated, cine.BitsStored, cine.HighBit = 8, 8, 7
        cine.PixelData = bytes(160)
        cine.save_as(self.path(name), write_like_original=False)
        return self.root / name


def four_chambers(side: int = 60, frames: int = 2) -> np.ndarray:
    """(T, H, W) labels of an upright heart: 1 LV and 2 LA on the right, 4 RV and 3 RA on the left, 4 px of wall."""
    mask = np.zeros((frames, side, side), np.uint8)
    mask[:, 6:30, 32:44], mask[:, 34:54, 32:44] = 1, 2
    mask[:, 6:30, 16:28], mask[:, 34:54, 16:28] = 4, 3
    return mask


def left_heart(side: int = 60, frames: int = 2) -> np.ndarray:
    """(T, H, W) labels as in CAMUS: 1 cavity within 2 myocardium, 3 atrium below it."""
    mask = np.zeros((frames, side, side), np.uint8)
    mask[:, 8:36, 20:44], mask[:, 12:36, 24:40], mask[:, 36:52, 24:40] = 2, 1, 3
    return mask


@pytest.fixture
def src(tmp_path: Path) -> Maker:
    (tmp_path / "src").mkdir()
    return Maker(tmp_path / "src")


@pytest.fixture
def masks() -> Mapping[str, np.ndarray]:
    return {"four chambers": four_chambers(), "left heart": left_heart()}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"
