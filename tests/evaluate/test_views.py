# SPDX-License-Identifier: Apache-2.0
import json
from collections import Counter

import pytest
import torch
from typer.testing import CliRunner

from echo_plugin.anatomy import View
from echo_plugin.annotations import ViewPrediction
from echo_plugin.cli.main import app
from echo_plugin.errors import TrainingDataError
from echo_plugin.evaluate.views import evaluate_views
from echo_plugin.training.datasets import LabelledCine
from echo_plugin.training.options import ViewOptions
from echo_plugin.training.views import train_views

pytestmark = pytest.mark.heavy

torch.set_num_threads(1)
OPTIONS = ViewOptions(epochs=2, batch_size=8, image_size=32, frames_per_cine=1, device="cpu", temporal="image")


def told(cine: LabelledCine, *, is_standard: bool | None) -> ViewPrediction:
    """Return the right answer, A4C for a view that the model does not know, and whether it is called standard."""
    view = cine.annotation.view if cine.annotation.view in (View.A4C, View.A2C) else View.A4C
    assert view is not None
    return ViewPrediction(view, {View.A4C: float(view is View.A4C), View.A2C: float(view is View.A2C)}, (0,),
                          is_still=is_standard is None, is_standard=is_standard)  # fmt: skip


def test_cines_of_unknown_views_measure_whether_the_model_says_so(easy_studies, tmp_path, monkeypatch):
    """One A4C cine is kept, one refused, a cine of another view told so; the other patient's stills say nothing."""
    train_views(easy_studies, tmp_path, OPTIONS, vocabulary=(View.A4C, View.A2C))

    def answers(chosen, models, device, progress):
        first = min(cine.patient_id for cine in chosen.cines)
        of_patient = Counter()
        for cine in chosen.cines:
            of_patient[cine.patient_id, cine.annotation.view] += 1
            is_kept = cine.annotation.view is View.A4C and of_patient[cine.patient_id, View.A4C] == 1
            yield told(cine, is_standard=None if cine.patient_id == first else is_kept)

    monkeypatch.setattr("echo_plugin.evaluate.views._answers", lambda *a: list(answers(*a)))

    report = evaluate_views(easy_studies, tmp_path, tmp_path / "out", device="cpu")

    assert (report["cines"], report["patients"], report["open_set_cines"]) == (4, 2, 3)
    metrics = report["metrics"]
    assert metrics["accuracy"]["value"] == 1.0
    assert metrics["standard views kept"]["value"] == 0.5
    assert metrics["standard views kept"]["patients"] == 1
    assert metrics["no standard view, and said so"]["value"] == 1.0
    assert metrics["accuracy, no standard view among the answers"]["value"] == pytest.approx(2 / 3)
    assert metrics["expected calibration error"]["value"] == 0.0  # they are all said with certainty, and right
    assert metrics["expected calibration error"]["patients"] == 2


def test_another_seed_draws_other_resamples_and_is_in_the_command(easy_studies, tmp_path, monkeypatch):
    """All twelve children are measured: of two, every seed draws the same three resamples."""
    train_views(easy_studies, tmp_path, OPTIONS, vocabulary=(View.A4C, View.A2C))
    monkeypatch.setattr("echo_plugin.evaluate.held_out.seen_patients", lambda *_: frozenset())
    app_options = ["--studies", str(easy_studies), "--models", str(tmp_path), "--device", "cpu"]

    reports = {}
    for seed in (0, 5):
        out = tmp_path / f"out{seed}"
        answer = CliRunner().invoke(app, ["evaluate", "views", "--out", str(out), *app_options, "--seed", str(seed)])
        assert answer.exit_code == 0, answer.output
        reports[seed] = json.loads((out / "report.json").read_text())

    first, second = (reports[seed]["metrics"]["expected calibration error"] for seed in (0, 5))
    assert (first["value"], first["patients"]) == (second["value"], 12)
    assert first["low"] != second["low"]
    assert first["high"] != second["high"]
    assert reports[5]["seed"] == 5
    assert reports[5]["command"].endswith("--out DIR --seed 5")


def test_stills_are_no_proof_that_a_model_tells_standard_views(easy_studies, tmp_path):
    card = train_views(easy_studies, tmp_path, OPTIONS, vocabulary=(View.A4C, View.A2C))

    report = evaluate_views(easy_studies, tmp_path, tmp_path / "out", device="cpu")

    assert card.decision.open_set is None
    assert report["classes"] == ["A4C", "A2C"]
    assert (report["cines"], report["open_set_cines"]) == (4, 0)
    assert not [name for name in report["metrics"] if "standard" in name]
    assert {"Confusion", "Reliability", "Worst cines"} == {plot["title"] for plot in report["plots"]}
    assert "child0" not in (tmp_path / "out" / "report.html").read_text()


def test_a_folder_without_a_view_that_the_model_knows_is_refused(easy_studies, tmp_path, monkeypatch):
    train_views(easy_studies, tmp_path, OPTIONS, vocabulary=(View.A4C, View.A2C))
    monkeypatch.setattr("echo_plugin.evaluate.views._view_name", lambda cine: "PLAX-LV")

    with pytest.raises(TrainingDataError, match=r"no held-out cine of a view that the model tells apart \(A4C, A2C\)"):
        evaluate_views(easy_studies, tmp_path, tmp_path / "out", device="cpu")
