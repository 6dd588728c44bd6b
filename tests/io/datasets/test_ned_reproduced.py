# SPDX-License-Identifier: Apache-2.0
"""The paper's protocol on its own data set: a small made tree laid out as NED, imported and measured in five folds."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from echo_plugin.cli.main import app
from echo_plugin.io.patients_file import PATIENTS_FILE
from echo_plugin.papers import views
from echo_plugin.papers.views import ROWS

pytestmark = pytest.mark.heavy

torch.set_num_threads(1)


@pytest.fixture
def ned(src) -> Path:
    """Six cases with a four-chamber and a mitral cine each, one class that NED has not, one video without a label."""
    for case in range(6):
        folder = f"neo-echoset-raw/echos_video/case{case}"
        for name in ("a.mp4", "b.mp4", "c.mp4", "stray.mp4"):
            src.video(f"{folder}/{name}", frames=5)
        rows = ["a,APICAL_4C_LVRV", "b.mp4,PSAX_MV", "c.mp4,VALVE_CLOSEUP"]
        src.table(f"{folder}/labels.csv", "Filename,Classification", rows)
    return src.root


def test_ned_is_measured_in_five_folds_of_cases(ned: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (views, views, views):
        monkeypatch.setattr(module, "ROWS", ROWS[:1])
    monkeypatch.setattr(views, "COMPARISONS", ())
    sizes = ["--epochs", "2", "--image-size", "32", "--device", "cpu"]

    answer = CliRunner().invoke(app, ["reproduce", "views", str(out), "--data", str(ned), *sizes])

    assert answer.exit_code == 0, answer.exception
    report = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert report["units"] == [f"seed0-fold{fold}" for fold in range(5)]
    assert (report["patients"], report["cines"], report["on_phantoms"]) == (6, 12, False)
    tested = [json.loads(path.read_text())["cines"] for path in sorted((out / "runs").glob("*.json"))]
    assert sorted(cine for fold in tested for cine in fold) == list(range(12))
    owners = (out / "study" / PATIENTS_FILE).read_text(encoding="utf-8")
    assert all(f"case{case}" in owners for case in range(6))
    assert "| image classifier |" in answer.stdout and "89.55/88.99/89.55/89.20" in answer.stdout
    assert (out / "table.md").read_text(encoding="utf-8").startswith("6 patients, 12 cines, 5 units")


def test_another_layout_is_refused_in_one_sentence(src, out: Path) -> None:
    src.text("something/else.txt", "")

    answer = CliRunner().invoke(app, ["reproduce", "views", str(out), "--data", str(src.root)])

    assert "is not laid out as NED; <case>/labels.csv" in str(answer.exception)
    assert not (out / "study").exists()
