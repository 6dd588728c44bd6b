# SPDX-License-Identifier: Apache-2.0
"""The command's contract: exit codes, one sentence for a failure, JSON on stdout and nothing else there."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from echo_plugin.cli.main import VERBS, app, main


@dataclass(frozen=True)
class Answer:
    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Answer]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """What runs the command in this process, as its entry point does."""

    def ask(*arguments: str | Path) -> Answer:
        monkeypatch.setattr(sys, "argv", ["monailabel-echo", *map(str, arguments)])
        monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        return Answer(int(ended.value.code or 0), shown.out, shown.err)

    return ask


def test_help_fits_one_screen_and_names_the_verbs_of_the_contract_first() -> None:
    page = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "100", "TERMINAL_WIDTH": "100"}).output

    lines = page.splitlines()
    verbs = [line.split()[1] for line in lines if line.startswith("│ ") and line[2].isalpha()]
    assert len(lines) <= 40
    assert tuple(verbs[:7]) == VERBS
    assert {"labels", "export", "review", "gallery", "verify", "patient", "explain", "reproduce"} == set(verbs[7:])


@pytest.mark.parametrize("verb", ["serve", "predict", "train", "evaluate", "review", "phantom", "info"])
def test_every_verb_helps_with_an_example(verb: str) -> None:
    answer = CliRunner().invoke(app, [verb, "--help"])

    assert answer.exit_code == 0
    assert f"Example: monailabel-echo {verb}" in " ".join(answer.output.split())


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("train", "valves", "--studies", "x", "--models", "m"), "valves"),
        (("predict", "x.dcm", "--tasks", "murmur"), "murmur"),
        (("predict", "x.dcm", "--frames", "first"), "first"),
        (("predict", "x.dcm", "--tasks", "view", "--raw-boxes"), "--raw-boxes"),
        (("phantom", "out", "--patients", "0"), "patients"),
        (("phantom", "out", "--patients", "1", "--views", "A4C,A9C"), "A9C"),
        (("serve", "--port", "0"), "port"),
        (("predict", "x.dcm", "--device", "tpu"), "tpu"),
        (("train", "views", "--studies", "x", "--models", "m", "--from", "nowhere"), "nowhere"),
        (("phantom", "out", "--patients", "1", "--fetal", "--views", "A4C"), "--fetal"),
        (("train", "mae", "--models", "m"), "--images"),
        (("train", "views", "--studies", "x", "--models", "m", "--sampling", "random"), "consecutive"),
        (("train", "views", "--studies", "x", "--models", "m", "--pooling", "lstm"), "attention"),
        (("train", "views", "--models", "m", "--images", "x"), "--images"),
        (("train", "views", "--studies", "x", "--models", "m", "--mask-ratio", "0.5"), "--mask-ratio"),
        (("train", "detector", "--studies", "x", "--margin", "0.5"), "--margin"),
        (("train", "detector", "--studies", "x", "--models", "m", "--from", "face"), "face"),
        (("train", "detector", "--studies", "x", "--models", "m", "--recipe", "usf-mae"), "usf-mae"),
        (("train", "views", "--studies", "x", "--models", "m", "--pooling", "gru", "--chunks", "2"), "--chunks"),
        (("evaluate", "detector", "--studies", "x", "--out", "y", "--folds", "3"), "--folds"),
        (("train", "mae", "--images", "x", "--recipe", "usf-mae"), "--recipe"),
        (("nonsense",), "nonsense"),
    ],
)
def test_bad_usage_ends_with_2_and_names_the_word(run: Run, arguments: tuple[str, ...], word: str) -> None:
    answer = run(*arguments)

    assert answer.returncode == 2
    assert word in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1


def test_a_failure_ends_with_1_and_one_sentence(run: Run, tmp_path: Path) -> None:
    answer = run("predict", tmp_path / "absent.dcm")

    assert answer.returncode == 1
    assert answer.stderr.strip().splitlines() == [
        f"{tmp_path / 'absent.dcm'} does not exist; name a cine or a folder of cines."
    ]


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["monailabel-echo", "predict", str(tmp_path / "absent.dcm"), "--debug"])
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)

    with pytest.raises(OSError, match="does not exist"):
        main()


def test_missing_models_are_one_sentence_that_says_how_to_get_them(run: Run, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("L", (64, 64)).save(tmp_path / "still.png")

    answer = run("predict", tmp_path / "still.png", "--models", tmp_path)

    assert answer.returncode == 1
    assert "Traceback" not in answer.stderr
    assert "monailabel-echo train" in answer.stderr


@pytest.mark.heavy
def test_a_batch_with_a_damaged_file_is_one_json_list_and_ends_with_1(
    run: Run, published_detector: Path, easy_studies: Path, tmp_path: Path
) -> None:
    cines = tmp_path / "cines"
    cines.mkdir()
    whole = (easy_studies / "child00_0.png").read_bytes()
    (cines / "a.png").write_bytes(whole)
    (cines / "b.png").write_bytes(whole[: len(whole) // 2])
    (cines / "c.png").write_bytes(whole)

    answer = run("predict", cines, "--tasks", "boxes,defect", "--models", published_detector, "--json", "-")

    first, damaged, last = json.loads(answer.stdout)
    assert answer.returncode == 1
    assert [Path(entry["path"]).name for entry in (first, damaged, last)] == ["a.png", "b.png", "c.png"]
    assert set(damaged) == {"path", "error"}
    assert "b.png" in damaged["error"]
    assert damaged["error"] in answer.stderr
    assert first["view"] is None
    assert first["defect"]["probability"] == last["defect"]["probability"] > 0


@pytest.mark.heavy
def test_info_prints_json_alone_on_stdout(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "echo_plugin", "info", "--models", str(tmp_path), "--json", "-"]
    answer = subprocess.run(words, capture_output=True, text=True, check=False)

    facts = json.loads(answer.stdout)

    assert answer.returncode == 0
    assert facts["models"] == []
    assert facts["versions"]["monailabel-echo"] == "0.2.0"


def test_training_on_an_unlabelled_folder_is_refused_in_one_sentence(run: Run, tmp_path: Path) -> None:
    answer = run("train", "detector", "--studies", tmp_path, "--models", tmp_path / "models", "--epochs", "1")

    assert answer.returncode == 1
    assert "holds no annotated cine" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert not (tmp_path / "models").exists() or not list((tmp_path / "models").iterdir())


def test_a_training_into_a_new_folder_goes_on_from_the_shipped_weights(tmp_path: Path) -> None:
    from echo_plugin.cli.options import DEFAULT_MODELS
    from echo_plugin.cli.train import starter_folder

    assert starter_folder(tmp_path, "septal_detector", "starter") == DEFAULT_MODELS
    assert (DEFAULT_MODELS / "septal_detector.json").is_file()
    assert starter_folder(tmp_path, "septal_detector", "scratch") is None
    (tmp_path / "septal_detector.json").write_text("{}")
    assert starter_folder(tmp_path, "septal_detector", "starter") is None
    assert starter_folder(tmp_path, "defect_embedder", "views") == DEFAULT_MODELS
    assert starter_folder(tmp_path, "view_classifier", "mae") == DEFAULT_MODELS
    (tmp_path / "masked_autoencoder.json").touch()
    assert starter_folder(tmp_path, "view_classifier", "mae") is None
