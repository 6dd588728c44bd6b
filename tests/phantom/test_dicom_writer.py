# SPDX-License-Identifier: Apache-2.0
import io
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pydicom
import pytest
from pydicom.uid import UID

from echo_plugin.cine import RegionDataType, to_grey
from echo_plugin.io.cine_file import read_cine
from echo_plugin.phantom.dicom_writer import Encoding, InstanceIdentity, write_dicom_cine
from echo_plugin.phantom.screen import draw_overlay, sample_machine

IDENTITY = InstanceIdentity("1.2.3.1", "1.2.3.2", "1.2.3.3", 4, 8 * 3600 + 125)
every_encoding = pytest.mark.parametrize("encoding", Encoding, ids=lambda e: e.value)


@pytest.fixture
def machine():
    return replace(sample_machine(np.random.default_rng(2)), has_ecg=True, jpeg_quality=92, has_status_bar=False)


@pytest.fixture
def screen(fan_cine, machine, child):
    return draw_overlay(fan_cine, machine, child, clock=IDENTITY.clock, rng=np.random.default_rng(3))


@pytest.fixture
def write(tmp_path, fan_cine, screen, machine, child):
    def write(encoding, **changes):
        path = tmp_path / f"{encoding.value}.dcm"
        arguments = {"patient": child, "machine": machine, "identity": IDENTITY} | changes
        write_dicom_cine(path, fan_cine, screen, encoding=encoding, **arguments)
        return path

    return write


@every_encoding
def test_a_dicom_validator_finds_no_error(write, encoding):
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed (Debian: dicom3tools)")

    done = subprocess.run(["dciodvfy", write(encoding)], capture_output=True, text=True, check=False)

    said = done.stdout + done.stderr
    assert "USMultiFrameImage" in said
    assert "Error" not in said
    assert "Warning" not in said


@every_encoding
def test_pixels_come_back(write, screen, encoding):
    stored = to_grey(screen.pixels)[..., None] if encoding.is_grey else screen.pixels

    pixels = read_cine(write(encoding)).pixels

    assert pixels.shape == stored.shape
    if encoding.is_lossy:
        assert np.abs(grey_luma(pixels) - grey_luma(stored)).mean() < 2.0
    else:
        assert np.array_equal(pixels, stored)


def grey_luma(pixels):
    return pixels.astype(np.float64).mean(axis=3)


@every_encoding
def test_time_region_and_identity_come_back(write, fan_cine, child, encoding):
    cine = read_cine(write(encoding))

    (tissue,) = (region for region in cine.regions if region.data_type is RegionDataType.TISSUE)
    assert tissue == fan_cine.region
    assert cine.frame_time_ms == pytest.approx(fan_cine.frame_time_ms)
    assert cine.heart_rate_bpm == 120
    assert cine.patient_id == child.patient_id
    assert cine.image_id == "1.2.3.3"
    assert (cine.study_instance_uid, cine.series_instance_uid) == ("1.2.3.1", "1.2.3.2")


def test_the_ecg_strip_is_a_region_of_its_own_in_seconds(write, screen):
    regions = pydicom.dcmread(write(Encoding.RAW_GREY)).SequenceOfUltrasoundRegions

    ecg = regions[0]
    assert ecg.RegionDataType == 0xA
    assert ecg.PhysicalUnitsXDirection == 4
    assert ecg.PhysicalDeltaX == pytest.approx(screen.ecg_seconds_per_px)
    assert ecg.RegionLocationMaxX1 == screen.ecg.x2 - 1


def test_the_header_says_synthetic_but_neither_view_nor_defect(write):
    ds = pydicom.dcmread(write(Encoding.JPEG_COLOUR))

    del ds.PixelData
    text = ds.to_json()
    assert ds.QualityControlSubject == "YES"
    assert "ynthetic" in ds.ManufacturerModelName
    assert "A4C" not in text
    assert "ASD" not in text


def test_age_birth_date_and_study_date_agree(write, child):
    ds = pydicom.dcmread(write(Encoding.RAW_GREY))

    assert ds.PatientAge == "013M"
    assert ds.PatientBirthDate == "20181127"
    assert ds.StudyDate == "20200101"


@every_encoding
def test_the_same_arguments_give_the_same_bytes(write, encoding):
    first = write(encoding).read_bytes()

    assert write(encoding).read_bytes() == first


def test_compression_is_declared(write):
    lossy = pydicom.dcmread(write(Encoding.JPEG_COLOUR))
    exact = pydicom.dcmread(write(Encoding.RLE_COLOUR))

    assert (lossy.LossyImageCompression, lossy.LossyImageCompressionMethod) == ("01", "ISO_10918_1")
    assert float(lossy.LossyImageCompressionRatio) > 1
    assert lossy.PhotometricInterpretation == "YBR_FULL_422"
    assert exact.LossyImageCompression == "00"
    assert UID(exact.file_meta.TransferSyntaxUID).name == "RLE Lossless"


def test_an_odd_width_is_refused_where_colour_is_halved(make_cine, machine, child):
    cine = make_cine(height=160, width=161)
    screen = draw_overlay(cine, machine, child, clock="08:00:00", rng=np.random.default_rng(0))

    with pytest.raises(ValueError, match="161 columns cannot be YBR_FULL_422"):
        write_dicom_cine(io.BytesIO(), cine, screen, patient=child, machine=machine, identity=IDENTITY)
