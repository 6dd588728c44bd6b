# SPDX-License-Identifier: Apache-2.0
"""How a server starts, what it says then, and how it ends."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from echo_plugin.host.folders import read_json
from tests.server.conftest import REPOSITORY

pytestmark = pytest.mark.server


def test_a_ready_server_says_what_to_open_and_what_to_do(server):
    said = server.log.read_text()

    assert f"READY. Serving {server.root} at {server.url}" in said
    assert f"In 3D Slicer  module MONAI Label, server {server.url}" in said
    status, page = server.ask("GET", "/")
    assert (status, b"Next Sample" in page) == (200, True)
    status, lines = server.ask("GET", "/logs/?lines=20")
    assert (status, b"Traceback" in lines) == (200, False)


def checkout() -> dict[Path, int]:
    """Return every file that serving could change, with the time of its last change."""
    files = [path for folder in ("apps", "sample_studies") for path in (REPOSITORY / folder).rglob("*")]
    return {path: path.stat().st_mtime_ns for path in files if path.is_file() and "__pycache__" not in path.parts}


def predict_submit_and_train(client, copy: Path) -> str:
    """Do with the served samples what a person does with 3D Slicer; return the id of the cine."""
    sample = client.next_sample("first", {})
    markups, _ = client.infer("septal_boxes", sample["id"], {})
    client.save_label(sample["id"], markups, "final")
    client.train_start("septal_boxes", {"epochs": 1})
    progress, deadline = copy / ".echo_models" / ".runs" / "septal_boxes.json", time.monotonic() + 120
    while time.monotonic() < deadline and read_json(progress).get("status") != "RUNNING":
        time.sleep(0.2)
    assert read_json(progress)["status"] == "RUNNING"
    client.train_stop()
    return sample["id"]


@pytest.fixture
def copy(server_environment) -> Iterator[Path]:
    """Where the samples are served from; not there before and after the test."""
    folder = Path(server_environment["XDG_DATA_HOME"]) / "monailabel-echo" / "sample_studies"
    yield folder
    shutil.rmtree(folder)


@pytest.mark.heavy
def test_serving_the_samples_changes_nothing_in_the_checkout(start_server, slicer_client_module, copy, tmp_path):
    before = checkout()
    process, url, log = start_server("echo_plugin", "serve", "--studies", "sample_studies")

    image_id = predict_submit_and_train(
        slicer_client_module.MONAILabelClient(url, str(tmp_path), client_id="reader-1"), copy
    )

    process.terminate()
    process.wait(20)
    assert checkout() == before
    assert "reader-1" in (copy / "annotations" / f"{image_id}.json").read_text()
    assert f"served from a copy, {copy}" in log.read_text()


@pytest.mark.heavy
def test_monai_labels_own_command_serves_the_app_and_changes_nothing_either(
    start_server, slicer_client_module, copy, tmp_path
):
    before = checkout()
    process, url, log = start_server(
        "monailabel.main", "start_server", "--app", "apps/echo", "--studies", "sample_studies", "--host", "127.0.0.1"
    )
    client = slicer_client_module.MONAILabelClient(url, str(tmp_path), client_id="reader-1")

    info = client.info()
    image_id = predict_submit_and_train(client, copy)

    assert list(info["models"]) == ["septal_boxes", "defects", "views", "similar_cases"]
    assert psutil.Process(process.pid).environ()["OMP_WAIT_POLICY"] == "PASSIVE"  # as `monailabel-echo serve` sets it
    assert "monailabel-echo serve" in log.read_text()  # MONAI Label's own server leaves holes open, and is said to
    with pytest.raises(slicer_client_module.MONAILabelClientException) as refusal:
        client.infer("septal_boxes", "/etc/passwd", {})
    assert "Status: 500" in refusal.value.msg
    process.terminate()
    process.wait(20)  # or fails
    assert checkout() == before
    assert "reader-1" in (copy / "annotations" / f"{image_id}.json").read_text()
