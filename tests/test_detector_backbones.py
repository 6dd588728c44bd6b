# SPDX-License-Identifier: Apache-2.0
"""Whom the benchmark of the detector's backbones measures on."""

import shutil
from pathlib import Path
from types import ModuleType

import pytest

from echo_plugin.errors import TrainingDataError
from echo_plugin.io.study_folder import StudyFolder
from echo_plugin.model_card import load_card
from echo_plugin.training.datasets import open_labelled_folder
from echo_plugin.training.provenance import known_patients
from tests.script import load_script


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return load_script("tests/benchmarks/detector_backbones.py")


@pytest.fixture(scope="module")
def parts(easy_studies: Path, published_detector: Path) -> dict[str, str]:
    patients = sorted(open_labelled_folder(easy_studies).defects)
    return known_patients(load_card(published_detector, "septal_detector"), patients)


@pytest.mark.heavy
def test_nobody_is_measured_whom_the_detector_has_learned_from(
    benchmark: ModuleType, easy_studies: Path, published_detector: Path, parts: dict[str, str], capsys
) -> None:
    frames = benchmark.held_out_frames(easy_studies, published_detector, 64)

    measured = {frames.cines[i].patient_id for i in frames.cine.tolist()}
    assert measured == {patient for patient, part in parts.items() if part == "test"}
    assert "10 patients of" in capsys.readouterr().err


def test_a_folder_of_those_who_were_learned_from_is_refused(
    benchmark: ModuleType, easy_studies: Path, published_detector: Path, parts: dict[str, str], tmp_path: Path
) -> None:
    root = shutil.copytree(easy_studies, tmp_path / "studies")
    folder = StudyFolder(root)
    for image_id in folder.annotated_ids():
        if parts[folder.entry(image_id).patient_id] == "test":
            (root / "annotations" / f"{image_id}.json").unlink()

    with pytest.raises(TrainingDataError, match="leaves nothing to measure septal_detector on: 10 of its 10"):
        benchmark.held_out_frames(root, published_detector, 64)


def test_a_row_that_was_trained_with_other_arguments_is_not_taken_for_this_one(benchmark: ModuleType, tmp_path: Path):
    path = tmp_path / "ResNet-18" / "asked.json"
    benchmark.require_same(path, {"minutes": "35", "seed": "0"})
    benchmark.require_same(path, {"minutes": "35", "seed": "0"})

    with pytest.raises(TrainingDataError, match="The row in ResNet-18 was trained with minutes 35; give the same"):
        benchmark.require_same(path, {"minutes": "60", "seed": "0"})


def test_the_table_names_patients_and_intervals_of_both_samples(benchmark: ModuleType) -> None:
    figures = {"value": 0.8, "low": 0.7, "high": 0.9, "patients": 18, "split": "held out", "baseline": None}
    row = {"row": "ResNet-18", "AP50": figures, "of_few": figures | {"low": None, "high": None}}
    row |= {
        "patients": 60,
        "frames": 400,
        "training_frames": 100,
        "epochs": 50,
        "minutes": 7.5,
        "ms": 20.1,
        "parameters": 21_000_000,
    }

    line = benchmark.table([row]).splitlines()[2]

    assert "| 0.800 (18) | 0.800 [0.700, 0.900] | 400 (60) | 20.1 |" in line
