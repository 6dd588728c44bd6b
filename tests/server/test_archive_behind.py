# SPDX-License-Identifier: Apache-2.0
"""A real server whose cines are in another server's DICOMweb: infer, next sample and submit work by SOP instance."""

from __future__ import annotations

import json
import shutil
import stat
from urllib.parse import quote

import pytest

from echo_plugin.annotations import Annotation
from echo_plugin.io.annotation_store import annotation_to_json
from echo_plugin.io.study_folder import StudyFolder

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def beside(tmp_path_factory):
    return tmp_path_factory.mktemp("beside") / "archive"


@pytest.fixture(scope="module")
def behind(server, serve_archive, model_folder, beside, tmp_path_factory):
    """The server in front of the archive that the session's server is, with models, and so a gallery, of its own."""
    models = shutil.copytree(model_folder, tmp_path_factory.mktemp("behind") / "models")
    return serve_archive(f"{server.url}/dicom-web", beside, models)


@pytest.fixture
def image_id(server) -> str:
    return server.studies.image_ids()[-1]


def test_the_archives_cines_are_listed_and_searched(behind, server):
    _, listing = behind.ask("GET", "/datastore/?output=all")
    _, ours = behind.ask("GET", "/dicom-web/studies?limit=2")
    _, theirs = server.ask("GET", "/dicom-web/studies?limit=2")

    assert set(listing["objects"]) == set(server.studies.image_ids())
    assert [study["0020000D"] for study in ours] == [study["0020000D"] for study in theirs]
    assert len(ours) == 2


def test_a_cine_of_the_archive_is_predicted(behind, server, image_id):
    status, answer = behind.ask("POST", f"/infer/septal_boxes?image={quote(image_id)}&output=json")
    _, expected = server.ask("POST", f"/infer/septal_boxes?image={quote(image_id)}&output=json")

    assert status == 200
    assert answer["boxes"] == expected["boxes"]


def test_a_submission_is_kept_beside_the_archive(behind, image_id, beside):
    body = _form("label", "label.json", annotation_to_json(Annotation(image_id, (), (0,))))

    status, saved = behind.ask(
        "PUT", f"/datastore/label?image={quote(image_id)}", body, Content_Type="multipart/form-data; boundary=b"
    )

    assert (status, saved["annotated_frames"]) == (200, [0])
    assert StudyFolder(beside).annotated_ids() == [image_id]
    assert stat.S_IMODE(beside.stat().st_mode) == 0o700


def test_the_next_sample_comes_from_the_archive(behind, server):
    status, chosen = behind.ask(
        "POST", "/activelearning/first", json.dumps({}).encode(), Content_Type="application/json"
    )

    assert status == 200
    assert chosen["id"] in server.studies.image_ids()


def _form(name: str, filename: str, content: str) -> bytes:
    head = f'--b\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\n\r\n'
    return f"{head}{content}\r\n--b--\r\n".encode()
