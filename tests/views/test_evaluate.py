# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from echo_plugin.anatomy import View
from echo_plugin.errors import TrainingDataError
from echo_plugin.training.options import TrainOptions
from echo_plugin.training.views import train_views
from echo_plugin.views.evaluate import evaluate_views

torch.set_num_threads(1)
OPTIONS = TrainOptions(epochs=2, batch_size=8, image_size=32, frames_per_cine=1, device="cpu", temporal="image")


def test_cines_of_unknown_views_measure_whether_the_model_says_so(easy_studies, tmp_path):
    card = train_views(easy_studies, tmp_path, OPTIONS, vocabulary=(View.A4C, View.A2C))

    report = evaluate_views(easy_studies, tmp_path, tmp_path / "out", device="cpu")

    assert card.config["open_set_score"] in ("entropy", "energy", "other")
    assert report["classes"] == ["A4C", "A2C"]
    assert report["cines"] == 4  # the PSAX-AV cines of the two test patients are strange to this model
    assert report["metrics"]["standard views kept"]["patients"] == 2
    assert 0 <= report["metrics"]["no standard view, and said so"]["value"] <= 1
    assert {"Confusion", "Reliability", "Worst cines"} == {plot["title"] for plot in report["plots"]}
    assert "child0" not in (tmp_path / "out" / "report.html").read_text()


def test_a_folder_without_a_view_that_the_model_knows_is_refused(easy_studies, tmp_path, monkeypatch):
    train_views(easy_studies, tmp_path, OPTIONS, vocabulary=(View.A4C, View.A2C))
    monkeypatch.setattr("echo_plugin.views.evaluate._view_name", lambda cine: "PLAX-LV")

    with pytest.raises(TrainingDataError, match=r"no held-out cine of a view that the model tells apart \(A4C, A2C\)"):
        evaluate_views(easy_studies, tmp_path, tmp_path / "out", device="cpu")
