# SPDX-License-Identifier: Apache-2.0
"""Who is on a picture without labels: whoever will measure a model must be known by name here too."""

import logging
import os
import shutil
import threading

import numpy as np
import pydicom
import pytest
from PIL import Image

from echo_plugin.errors import AnnotationError
from echo_plugin.training import mae_frames
from echo_plugin.training.mae_frames import decode_frames, find_unlabelled


def picture(path, grey=9):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((40, 40), grey, np.uint8)).save(path)


@pytest.fixture
def study(tmp_path):
    """A study folder ``all/study`` with a picture of the patient Ada, kept for the test."""
    picture(tmp_path / "all" / "study" / "deep" / "a.png")
    (tmp_path / "all" / "study" / "patients.csv").write_text("image_id,patient_id,split\ndeep/a.png,Ada,test\n")
    return tmp_path / "all" / "study"


def found(tmp_path, *folders):
    cines = find_unlabelled(folders, 1, without=tmp_path / "models")
    return [(cine.path.name, cine.patient_id, cine.part) for cine in cines]


@pytest.mark.parametrize("named", ["all", "all/study", "all/study/deep", "all/study/deep/a.png"])
def test_the_patient_is_known_from_whichever_folder_is_named(study, tmp_path, named):
    assert found(tmp_path, tmp_path / named) == [("a.png", "Ada", "test")]


def test_the_nearest_table_that_names_the_picture_counts(study, tmp_path):
    picture(study / "deep" / "b.png")
    (tmp_path / "all" / "patients.csv").write_text("image_id,patient_id\nstudy/deep/a.png,Eve\nstudy/deep/b.png,Ben\n")

    assert found(tmp_path, tmp_path / "all") == [("a.png", "Ada", "test"), ("b.png", "Ben", None)]


@pytest.mark.parametrize("order", [("study", "raw"), ("raw", "study")])
def test_a_link_and_its_source_are_one_picture_whose_patient_is_known(tmp_path, order):
    picture(tmp_path / "raw" / "a.png")
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "linked.png").symlink_to(tmp_path / "raw" / "a.png")
    (tmp_path / "study" / "patients.csv").write_text("image_id,patient_id,split\nlinked.png,Ada,test\n")

    ((_, patient, part),) = found(tmp_path, *(tmp_path / name for name in order))

    assert (patient, part) == ("Ada", "test")


def test_a_nameless_copy_of_a_dicom_file_is_known_by_its_uid_though_it_was_written_anew(shared_data, tmp_path):
    for name, patient in (("named.dcm", "Ada"), ("silent.dcm", "")):
        dataset = pydicom.dcmread(shared_data / "examples_ybr_color.dcm")
        dataset.PatientID = patient
        dataset.save_as(tmp_path / name)

    assert found(tmp_path, tmp_path) == [("named.dcm", "Ada", None), ("silent.dcm", "Ada", None)]


def test_the_header_goes_before_the_table_as_in_the_study_folder(shared_data, tmp_path):
    shutil.copy(shared_data / "examples_ybr_color.dcm", tmp_path)
    ((_, patient, _),) = found(tmp_path, tmp_path)
    (cine,) = find_unlabelled([tmp_path], 1, without=tmp_path / "models")
    (tmp_path / "patients.csv").write_text(f"image_id,patient_id,split\n{cine.image_id},Eve,train\n")

    assert patient is not None
    assert found(tmp_path, tmp_path) == [("examples_ybr_color.dcm", patient, None)]


def test_how_many_files_name_nobody_is_said(study, tmp_path, caplog):
    picture(study / "stray.png", grey=8)

    with caplog.at_level(logging.WARNING):
        found(tmp_path, study)

    assert "1 of 2 files name no patient" in caplog.text
    assert ("stray.png", "stray.png", None) in found(tmp_path, study)


def test_a_malformed_table_is_named_with_its_folder(study, tmp_path):
    (study / "patients.csv").write_text("name\nAda\n")

    with pytest.raises(AnnotationError, match=r"Folder study: patients\.csv: the columns"):
        found(tmp_path, tmp_path / "all")


def test_a_second_training_that_writes_the_same_cache_leaves_no_blank_frames_to_the_first(study, tmp_path, monkeypatch):
    cines = find_unlabelled([study], 1, without=tmp_path / "models")
    read_cine, begun, may_go_on = mae_frames.read_cine, threading.Event(), threading.Event()
    second = threading.Thread(target=lambda: decode_frames(cines, 32, tmp_path / "cache", "mae"))

    def meanwhile(path):
        if threading.current_thread() is second:
            begun.set()
            may_go_on.wait(60)
        else:
            second.start()
            assert begun.wait(60)
        return read_cine(path)

    monkeypatch.setattr(mae_frames, "read_cine", meanwhile)
    pixels = decode_frames(cines, 32, tmp_path / "cache", "mae").pixels.clone()
    may_go_on.set()
    second.join()

    assert pixels.any()


def test_frames_under_their_name_are_complete_and_private(study, tmp_path, monkeypatch):
    cines = find_unlabelled([study], 1, without=tmp_path / "models")
    while_reading = []
    read_cine = mae_frames.read_cine

    def watched(path):
        while_reading.extend(tmp_path.glob("cache/*"))
        return read_cine(path)

    monkeypatch.setattr(mae_frames, "read_cine", watched)
    decode_frames(cines, 32, tmp_path / "cache", "mae")

    assert [(path.name[0], path.suffix) for path in while_reading] == [(".", ".npy")]  # a hidden name until it is whole
    kept = list(tmp_path.glob("cache/*"))
    assert [path.suffix for path in kept] == [".npy"] * 2
    assert os.name == "nt" or all(path.stat().st_mode & 0o077 == 0 for path in kept)
