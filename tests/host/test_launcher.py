# SPDX-License-Identifier: Apache-2.0
"""The launcher checks before it loads half a minute of libraries, and says what to do."""

import json
import socket

import pytest
from PIL import Image

from echo_plugin.errors import EchoError
from echo_plugin.host.launcher import ready_text, serve, server_environment
from echo_plugin.model_card import STARTERS


@pytest.fixture
def studies(tmp_path):
    folder = tmp_path / "studies"
    folder.mkdir()
    Image.new("L", (64, 48)).save(folder / "still.png")
    return folder


@pytest.fixture
def models(tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


def test_a_missing_study_folder_is_named_with_a_way_to_get_one(tmp_path, models):
    with pytest.raises(EchoError, match=r"nowhere does not exist; `monailabel-echo phantom .*nowhere --patients 4`"):
        serve(tmp_path / "nowhere", models)


def test_a_folder_without_cines_is_refused(tmp_path, models):
    with pytest.raises(EchoError, match="holds no cine"):
        serve(models, models)


def test_a_missing_model_folder_is_named(studies, tmp_path):
    with pytest.raises(EchoError, match=r"Model folder .*nowhere does not exist"):
        serve(studies, tmp_path / "nowhere")


def test_an_archive_address_is_refused_in_one_sentence(models):
    from pathlib import Path

    with pytest.raises(EchoError, match="DICOMweb address; name it with --pacs"):
        serve(Path("http://pacs.example/dicom-web"), models)


def test_a_port_in_use_is_named(studies, models):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        with pytest.raises(EchoError, match=rf"Port {port} of 127\.0\.0\.1 cannot be used .*--port"):
            serve(studies, models, port=port)


def test_without_a_model_folder_the_studies_get_one_of_their_own(studies):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()

        with pytest.raises(EchoError, match="cannot be used"):  # ends it before the libraries are loaded
            serve(studies, port=taken.getsockname()[1])

    starters = {path.name for path in STARTERS.glob("*.safetensors")}
    assert {path.name for path in (studies / ".echo_models").glob("*.safetensors")} == starters
    assert (studies / ".echo_models").is_dir()


def test_a_host_that_is_not_ours_is_named(studies, models):
    with pytest.raises(EchoError, match=r"192\.0\.2\.1"):
        serve(studies, models, host="192.0.2.1", port=0)


def test_the_environment_is_what_monai_label_and_its_children_need(studies, models, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)

    environment = server_environment(studies, models, conf={"device": "cpu"}, port=8001)

    assert environment["MONAI_LABEL_AUTO_UPDATE_SCORING"] == "false"
    assert environment["MONAI_LABEL_SESSIONS"] == "false"
    assert json.loads(environment["MONAI_LABEL_APP_CONF"]) == {"models": str(models), "device": "cpu"}
    assert environment["PYTHONPATH"]


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "http://127.0.0.1:8000"), ("0.0.0.0", "http://127.0.0.1:8000"), ("::1", "http://[::1]:8000")],
)
def test_the_ready_text_names_an_address_that_can_be_opened(host, url, studies):
    text = ready_text(host, 8000, str(studies))

    assert f"server {url}," in text
    assert "Next Sample" in text
    assert "label from R-1 to IAS or IVS" in text
    assert "not for clinical use" in text
