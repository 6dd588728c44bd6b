# SPDX-License-Identifier: Apache-2.0
"""The split that a data set comes with, in patients.csv, holds in every training."""

import logging
import shutil

import pytest
import torch

from echo_plugin.anatomy import View
from echo_plugin.io.patients_file import PATIENTS_FILE
from echo_plugin.training.datasets import open_labelled_folder
from echo_plugin.training.defects import train_defects
from echo_plugin.training.detector import train_detector
from echo_plugin.training.mae import train_mae
from echo_plugin.training.mae_frames import find_unlabelled, parts_given
from echo_plugin.training.options import DefectOptions, DetectorOptions, MaeOptions, ViewOptions
from echo_plugin.training.provenance import known_patients
from echo_plugin.training.views import train_views

pytestmark = pytest.mark.heavy

torch.set_num_threads(1)
SMALL = {"epochs": 1, "batch_size": 8, "image_size": 64, "frames_per_cine": 1, "device": "cpu"}
OPTIONS = ViewOptions(**SMALL, temporal="image")
VIT = MaeOptions(epochs=1, batch_size=8, image_size=32, backbone="vit_micro_patch8", device="cpu")
PARTS = {f"child{n:02d}": ("test", "validation", "train", "train")[n // 3] for n in range(12)}


def publish_split(studies, parts):
    """Write the parts into the folder's patients.csv."""
    lines = (studies / PATIENTS_FILE).read_text().splitlines()
    rows = [",".join([*line.split(",")[:2], parts[line.split(",")[1]]]) for line in lines[1:]]
    (studies / PATIENTS_FILE).write_text("\n".join(["image_id,patient_id,split", *rows]) + "\n")


@pytest.fixture
def studies(easy_studies, tmp_path):
    """The easy studies with a split of their own."""
    root = shutil.copytree(easy_studies, tmp_path / "studies")
    publish_split(root, PARTS)
    return root


@pytest.mark.parametrize(
    "train",
    [
        lambda studies, models: train_views(studies, models, OPTIONS, vocabulary=(View.A4C, View.PSAX_AV)),
        lambda studies, models: train_defects(studies, models, DefectOptions(**SMALL)),
        lambda studies, models: train_detector(studies, models, DetectorOptions(**SMALL)),
        lambda studies, models: train_mae([studies], models, VIT),
    ],
    ids=["views", "defects", "detector", "mae"],
)
def test_the_split_of_a_data_set_is_kept(studies, tmp_path, train):
    card = train(studies, tmp_path / "models")

    assert known_patients(card, list(open_labelled_folder(studies).defects)) == PARTS


def test_whom_a_model_learned_from_is_not_measured_for_a_split(easy_studies, studies, tmp_path, caplog):
    before = train_mae([easy_studies], tmp_path / "models", VIT)
    everybody = list(open_labelled_folder(studies).defects)
    learned_from = [patient for patient, part in known_patients(before, everybody).items() if part == "train"]
    publish_split(studies, {patient: "test" if patient in learned_from[:4] else "train" for patient in everybody})

    with caplog.at_level(logging.WARNING):
        card = train_views(studies, tmp_path / "models", OPTIONS, vocabulary=(View.A4C, View.PSAX_AV))

    assert known_patients(card, everybody) == known_patients(before, everybody)
    assert "split in patients.csv is not kept for 4 patients" in caplog.text
    assert not any(patient in caplog.text for patient in everybody)


def test_a_patient_whom_two_data_sets_share_is_learned_from_in_neither(studies, tmp_path):
    other = shutil.copytree(studies, tmp_path / "other")
    publish_split(other, PARTS | {"child00": "train", "child09": "validation"})

    cines = find_unlabelled([studies, other], 1, without=tmp_path / "models")

    assert parts_given(cines) == PARTS | {"child09": "validation"}
