# SPDX-License-Identifier: Apache-2.0
"""The benchmark of label errors measures nobody whom the detector learned from."""

import json
import shutil
from types import ModuleType

import pytest

from echo_plugin.errors import TrainingDataError
from echo_plugin.model_card import load_card
from echo_plugin.models.checkpoint import SEPTAL_DETECTOR
from echo_plugin.training.provenance import known_patients
from tests.script import load_script


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return load_script("tests/benchmarks/find_label_errors.py")


def test_patients_that_the_detector_learned_from_are_left_out(benchmark, easy_studies, published_detector, capsys):
    seen = benchmark.look_at(easy_studies, published_detector)

    patients = {judged.cine.patient_id for judged in seen}
    parts = known_patients(load_card(published_detector, SEPTAL_DETECTOR), sorted(patients))
    assert set(parts.values()) == {"test"}
    assert f"{12 - len(patients)} patients are left out" in capsys.readouterr().out


def test_a_detector_that_does_not_say_whom_it_knows_is_not_measured(
    benchmark, easy_studies, published_detector, tmp_path
):
    models = shutil.copytree(published_detector, tmp_path / "models")
    path = models / f"{SEPTAL_DETECTOR}.json"
    card = json.loads(path.read_text())
    card["cohort"]["salt"] = ""
    path.write_text(json.dumps(card))

    with pytest.raises(TrainingDataError, match="does not list the patients it learned from"):
        benchmark.look_at(easy_studies, models)
