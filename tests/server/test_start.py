# SPDX-License-Identifier: Apache-2.0
"""How a server starts, what it says then, and how it ends."""

import shutil

import psutil
import pytest

pytestmark = pytest.mark.server


def test_a_ready_server_says_what_to_open_and_what_to_do(server):
    said = server.log.read_text()

    assert f"READY. Serving {server.root} at {server.url}" in said
    assert f"In 3D Slicer  module MONAI Label, server {server.url}" in said
    status, page = server.ask("GET", "/")
    assert (status, b"Next Sample" in page) == (200, True)
    status, lines = server.ask("GET", "/logs/?lines=20")
    assert (status, b"Traceback" in lines) == (200, False)


@pytest.mark.heavy
def test_monai_labels_own_command_serves_the_app_too(
    start_server, phantom_studies, slicer_client_module, new_image, tmp_path
):
    studies = shutil.copytree(phantom_studies, tmp_path / "studies", ignore=shutil.ignore_patterns(".echo*"))
    process, url, log = start_server(
        "monailabel.main", "start_server", "--app", "apps/echo", "--studies", studies, "--host", "127.0.0.1"
    )
    client = slicer_client_module.MONAILabelClient(url, str(tmp_path))

    info = client.info()
    sample = client.next_sample("first", {})

    assert list(info["models"]) == ["septal_boxes", "defects", "views", "similar_cases"]
    assert sample["path"].endswith(".nrrd")
    assert psutil.Process(process.pid).environ()["OMP_WAIT_POLICY"] == "PASSIVE"  # as `monailabel-echo serve` sets it
    assert "monailabel-echo serve" in log.read_text()  # MONAI Label's own server leaves holes open, and is said to
    with pytest.raises(slicer_client_module.MONAILabelClientException) as refusal:
        client.infer("septal_boxes", "/etc/passwd", {})
    assert "Status: 500" in refusal.value.msg
    process.terminate()
    process.wait(20)  # or fails
