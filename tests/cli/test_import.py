# SPDX-License-Identifier: Apache-2.0
"""The command ``monailabel-echo import``: tables for a person, JSON for programs, one sentence for a failure."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from echo_plugin.cli.main import app


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["import", *map(str, arguments)])


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "echo_plugin", "import", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for name in ("A4C/p1/a.png", "PSAX-AV/p2/b.png", "nonsense/c.png"):
        path = tmp_path / "src" / name
        path.parent.mkdir(parents=True)
        Image.new("L", (16, 16), 80).save(path)
    return tmp_path / "src"


def test_an_import_says_what_it_took_and_left(folders: Path, tmp_path: Path) -> None:
    shown = call("class-folders", folders, tmp_path / "one")
    told = call("class-folders", folders, tmp_path / "two", "--json", "-")

    assert (shown.exit_code, told.exit_code) == (0, 0)
    assert "PSAX-AV" in shown.stdout and "neither a view nor a defect" in shown.stdout
    report = json.loads(told.stdout)
    assert (report["cines"], report["patients"]) == (2, 2)
    assert report["left_out"] == [{"what": "nonsense", "reason": "its name is neither a view nor a defect", "count": 1}]


def test_a_second_import_needs_replace(folders: Path, tmp_path: Path) -> None:
    arguments = ("class-folders", folders, tmp_path / "out", "--json", tmp_path / "out" / "report.json")
    first, refused, replaced = call(*arguments), call(*arguments), call(*arguments, "--replace")

    assert (first.exit_code, replaced.exit_code) == (0, 0)
    assert "holds an import of class-folders already; --replace makes it anew" in str(refused.exception)
    assert json.loads((tmp_path / "out" / "report.json").read_text())["cines"] == 2


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (".", "is no file"),
        ("no/x.json", "does not exist"),
    ],
)
def test_a_place_for_no_report_is_refused_before_anything_is_imported(
    folders: Path, tmp_path: Path, name: str, sentence: str
) -> None:
    answer = call("class-folders", folders, tmp_path / "out", "--json", tmp_path / name)

    assert sentence in str(answer.exception)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_takes_no_report_is_refused_before_anything_is_imported(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("echo_plugin.durable.tempfile.TemporaryFile", refuse)

    answer = call("class-folders", folders, tmp_path / "out", "--json", tmp_path / "report.json")

    assert "cannot be written to (Permission denied)" in str(answer.exception)
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_place_of_a_report_is_written_over(folders: Path, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("an earlier one")

    answer = call("class-folders", folders, tmp_path / "out", "--json", tmp_path / "report.json")

    assert answer.exit_code == 0
    assert json.loads((tmp_path / "report.json").read_text())["cines"] == 2


@pytest.mark.heavy
def test_a_wrong_layout_ends_with_1_and_one_sentence(folders: Path, tmp_path: Path) -> None:
    answer = run("camus", folders, tmp_path / "out")

    assert answer.returncode == 1
    assert answer.stderr.strip() == (
        "Folder 'src' is not laid out as CAMUS; database_nifti/patientNNNN/*.nii.gz is accepted."
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(("xray", "a", "b"), "xray"), (("ned", "a", "b", "--test-folds", "7"), "echonet-pediatric")],
)
def test_bad_usage_ends_with_2_and_names_the_word(arguments: tuple[str, ...], word: str) -> None:
    answer = call(*arguments)

    assert answer.exit_code == 2
    assert word in answer.stderr
