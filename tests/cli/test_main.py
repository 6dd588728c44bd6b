# SPDX-License-Identifier: Apache-2.0
"""The command's contract: exit codes, one sentence for a failure, JSON on stdout and nothing else there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "echo_plugin", *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("verb", ["serve", "predict", "train", "evaluate", "review", "phantom", "info"])
def test_every_verb_helps_with_an_example(verb: str) -> None:
    answer = run(verb, "--help")

    assert answer.returncode == 0
    assert f"Example: monailabel-echo {verb}" in " ".join(answer.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("train", "valves", "--studies", "x"), "valves"),
        (("predict", "x.dcm", "--tasks", "murmur"), "murmur"),
        (("predict", "x.dcm", "--frames", "first"), "first"),
        (("predict", "x.dcm", "--tasks", "view", "--raw-boxes"), "--raw-boxes"),
        (("phantom", "out", "--patients", "0"), "patients"),
        (("phantom", "out", "--patients", "1", "--views", "A4C,A9C"), "A9C"),
        (("serve", "--port", "0"), "port"),
        (("predict", "x.dcm", "--device", "tpu"), "tpu"),
        (("train", "views", "--studies", "x", "--from", "nowhere"), "nowhere"),
        (("phantom", "out", "--patients", "1", "--fetal", "--views", "A4C"), "--fetal"),
        (("train", "mae"), "--images"),
        (("train", "views", "--studies", "x", "--sampling", "random"), "consecutive"),
        (("train", "views", "--studies", "x", "--pooling", "lstm"), "attention"),
        (("train", "views", "--images", "x"), "--images"),
        (("train", "views", "--studies", "x", "--mask-ratio", "0.5"), "--mask-ratio"),
        (("train", "mae", "--images", "x", "--recipe", "usf-mae"), "usf-mae"),
        (("nonsense",), "nonsense"),
    ],
)
def test_bad_usage_ends_with_2_and_names_the_word(arguments: tuple[str, ...], word: str) -> None:
    answer = run(*arguments)

    assert answer.returncode == 2
    assert word in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_failure_ends_with_1_and_one_sentence(tmp_path: Path) -> None:
    answer = run("predict", tmp_path / "absent.dcm")

    assert answer.returncode == 1
    assert answer.stderr.strip().splitlines() == [
        f"{tmp_path / 'absent.dcm'} does not exist; name a cine or a folder of cines."
    ]


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    answer = run("predict", tmp_path / "absent.dcm", "--debug")

    assert answer.returncode == 1
    assert "Traceback" in answer.stderr


def test_missing_models_are_one_sentence_that_says_how_to_get_them(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("L", (64, 64)).save(tmp_path / "still.png")

    answer = run("predict", tmp_path / "still.png", "--models", tmp_path)

    assert answer.returncode == 1
    assert "Traceback" not in answer.stderr
    assert "monailabel-echo train" in answer.stderr


@pytest.mark.heavy
def test_a_batch_with_a_damaged_file_is_one_json_list_and_ends_with_1(
    published_detector: Path, easy_studies: Path, tmp_path: Path
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


def test_info_prints_json_alone_on_stdout(tmp_path: Path) -> None:
    answer = run("info", "--models", tmp_path, "--json", "-")

    facts = json.loads(answer.stdout)

    assert answer.returncode == 0
    assert facts["models"] == []
    assert facts["versions"]["monailabel-echo"] == "0.2.0"


def test_training_on_an_unlabelled_folder_is_refused_in_one_sentence(tmp_path: Path) -> None:
    answer = run("train", "detector", "--studies", tmp_path, "--models", tmp_path / "models", "--epochs", "1")

    assert answer.returncode == 1
    assert "holds no annotated cine" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert not (tmp_path / "models").exists() or not list((tmp_path / "models").iterdir())


def test_a_training_into_a_new_folder_goes_on_from_the_shipped_weights(tmp_path: Path) -> None:
    from echo_plugin.cli.options import DEFAULT_MODELS, Trainable
    from echo_plugin.cli.train import starter_folder

    assert starter_folder(tmp_path, Trainable.DETECTOR, "starter") == DEFAULT_MODELS
    assert (DEFAULT_MODELS / "septal_detector.json").is_file()
    assert starter_folder(tmp_path, Trainable.DETECTOR, "scratch") is None
    (tmp_path / "septal_detector.json").write_text("{}")
    assert starter_folder(tmp_path, Trainable.DETECTOR, "starter") is None
    assert starter_folder(tmp_path, Trainable.DEFECTS, "views") == DEFAULT_MODELS
    assert starter_folder(tmp_path, Trainable.VIEWS, "mae") == DEFAULT_MODELS
    (tmp_path / "masked_autoencoder.json").touch()
    assert starter_folder(tmp_path, Trainable.VIEWS, "mae") is None
