# SPDX-License-Identifier: Apache-2.0
"""The verbs of the evidence for a defect: help, exit codes, one sentence for a failure."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from echo_plugin.anatomy import Defect
from echo_plugin.annotations import DefectPrediction
from echo_plugin.answer import predict
from echo_plugin.answer.gallery import KeptGallery
from echo_plugin.answer.prediction import CineEmbedding
from echo_plugin.cine import Cine
from echo_plugin.cli.main import app, main
from echo_plugin.evidence import explain
from echo_plugin.evidence.comparison import SAME_PATIENT
from echo_plugin.model_card import STARTERS, ModelCard, TrainingCohort
from echo_plugin.network_config import EmbedderConfig


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Return what runs the command in this process and returns exit code, stdout and stderr."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
        monkeypatch.setattr(sys, "argv", ["monailabel-echo", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


@pytest.mark.parametrize("verb", ["gallery", "verify", "patient", "explain"])
def test_every_verb_helps_with_an_example(run, verb: str) -> None:
    code, out, _ = run(verb, "--help")

    assert code == 0
    assert f"Example: monailabel-echo {verb}" in " ".join(out.split())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("verify", "absent.dcm", "absent.dcm"), "absent.dcm"),
        (("patient", "absent"), "absent"),
        (("gallery", "--studies", "absent"), "Study folder 'absent' is no directory"),
    ],
)
def test_a_failure_ends_with_1_and_one_sentence(run, arguments: tuple[str, ...], sentence: str) -> None:
    code, _, err = run(*arguments)

    assert code == 1
    assert sentence in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.heavy
def test_past_cases_are_not_put_among_the_public_weights(run, tmp_path: Path) -> None:
    (tmp_path / "studies").mkdir()

    code, _, _ = run("gallery", "--studies", tmp_path / "studies", "--models", STARTERS)

    assert code == 0
    assert (tmp_path / "studies" / ".echo_models").is_dir()
    assert not list(STARTERS.glob("gallery*"))


class KnownEmbedding:
    """A pipeline that says the same of every cine."""

    def __init__(self, models: Path, *, device: str) -> None:
        self.gallery = KeptGallery(models)

    def embed(self, cine: Cine) -> CineEmbedding:
        share = {Defect.NORMAL: 0.1, Defect.ASD: 0.8, Defect.VSD: 0.1}
        card = ModelCard(
            "m", "1", "t", "none", tuple(d.value for d in share), EmbedderConfig(), TrainingCohort("n", 1, 1, "0" * 64)
        )
        vector = np.ones(1, dtype=np.float32)
        defect = DefectPrediction(Defect.ASD, share, dict.fromkeys(share, 40.0), (0,))
        return CineEmbedding(vector, vector, np.zeros(3), defect, card, card)


@pytest.fixture
def studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two stills of one child and one of another, which only patients.csv says."""
    monkeypatch.setattr(predict, "EchoPipeline", KnownEmbedding)
    for name in ("child7/a.png", "child7/b.png", "child8/a.png"):
        path = tmp_path / "study" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 7).save(path)
    rows = "child7/a.png,p7\nchild7/b.png,p7\nchild8/a.png,p8\n"
    (tmp_path / "study" / "patients.csv").write_text(f"image_id,patient_id\n{rows}")
    return tmp_path / "study"


def test_two_cines_of_one_patient_of_the_study_folder_are_told(studies: Path) -> None:
    notes = []
    for second in ("child7/b.png", "child8/a.png"):
        answer = CliRunner().invoke(
            app, ["verify", str(studies / "child7/a.png"), str(studies / second), "--models", str(studies), "--json"]
        )
        notes.append(json.loads(answer.output)["notes"])

    assert [SAME_PATIENT in each for each in notes] == [True, False]


def test_cines_of_two_patients_of_the_study_folder_are_not_joined(studies: Path) -> None:
    answer = CliRunner().invoke(app, ["patient", str(studies), "--models", str(studies)])

    assert str(answer.exception) == "The 3 cines are of 2 patients; those of one are accepted."


def test_an_explanation_without_an_answer_says_why(studies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    share = {Defect.NORMAL: 0.2, Defect.ASD: 0.8}
    silent = DefectPrediction(Defect.ASD, share, dict.fromkeys(share, 40.0), (3,), abstained="no septum found")
    found = explain.Explanation(3, silent, (0, 0, 4, 4), np.zeros((8, 8)), np.zeros((8, 8), dtype=np.uint8))
    monkeypatch.setattr(explain, "explain_defect", lambda pipeline, cine, frame: found)
    out = studies / "why.png"

    answer = CliRunner().invoke(app, ["explain", str(studies / "child7/a.png"), "--out", str(out)])

    assert answer.output == f"abstained: no septum found; it would be ASD 0.80: frame 3 is drawn in {out}.\n"
