# SPDX-License-Identifier: Apache-2.0
"""A wheel of this tree, installed into an empty environment outside the checkout, does what the checkout does."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

pytestmark = [pytest.mark.heavy, pytest.mark.server]
ROOT = Path(__file__).resolve().parents[1]
LONGEST_S = 180


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts folder of an environment that holds the wheel and the locked packages, and nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "build", "--quiet", "--wheel", "--out-dir", folder, ROOT], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, folder / "env"], check=True)
    scripts = folder / "env" / ("Scripts" if os.name == "nt" else "bin")
    packages = ["--no-deps", "-r", ROOT / "requirements.lock", wheel]
    subprocess.run([*uv, "pip", "install", "--quiet", "--python", scripts / "python", *packages], check=True)
    return scripts


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sample studies, outside the checkout."""
    return shutil.copytree(ROOT / "sample_studies", tmp_path_factory.mktemp("outside") / "studies")


def command(scripts: Path, *arguments: object) -> list[str]:
    return [str(scripts / "monailabel-echo"), *map(str, arguments)]


def run(scripts: Path, cwd: Path, *arguments: object) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command(scripts, *arguments), cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_info_lists_the_starter_models_that_the_wheel_carries(installed: Path, tmp_path: Path) -> None:
    said = run(installed, tmp_path, "info")

    assert all(name in said for name in ("septal_detector", "view_classifier", "defect_embedder"))


def test_predict_answers_for_a_file(installed: Path, studies: Path, tmp_path: Path) -> None:
    file = next(iter(sorted(studies.rglob("*.dcm"))))

    (answer,) = json.loads(run(installed, tmp_path, "predict", file, "--frames", "0,5", "--json", "-"))

    assert answer["view"]["view"] == "SC-4C"
    assert {box["frame_index"] for box in answer["boxes"]} <= {0, 5}


def test_train_publishes_a_detector(installed: Path, studies: Path, tmp_path: Path) -> None:
    run(
        installed, tmp_path, "train", "detector", "--studies", studies, "--models", tmp_path / "models", "--epochs", 1,
        "--image-size", 64, "--max-minutes", 0.2,
    )  # fmt: skip

    assert {path.name for path in (tmp_path / "models").glob("septal_detector.*")} >= {
        "septal_detector.json",
        "septal_detector.safetensors",
    }


def test_serve_answers_3d_slicer(installed: Path, studies: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            command(installed, "serve", "--studies", studies, "--port", port),
            cwd=tmp_path, env=environment, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        info = wait_for_info(f"http://127.0.0.1:{port}/info/", server, tmp_path / "log")
    finally:
        server.terminate()
        server.wait(30)

    assert {"septal_boxes", "defects", "views"} <= set(info["models"])


def wait_for_info(url: str, server: subprocess.Popen, log: Path) -> dict:
    end = time.monotonic() + LONGEST_S
    while time.monotonic() < end:
        assert server.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)
        except OSError:
            time.sleep(0.2)
    raise AssertionError(log.read_text())
