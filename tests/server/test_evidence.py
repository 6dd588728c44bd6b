# SPDX-License-Identifier: Apache-2.0
"""Past cases, verification and explanations as a viewer asks a real server for them."""

import io
import json
import stat
import time
import urllib.request
import zipfile

import pytest

from echo_plugin.answer.gallery import GALLERY_FILE

pytestmark = pytest.mark.server
LIMIT_S = 120


@pytest.fixture(scope="module")
def labelled(server) -> list[str]:
    return server.studies.annotated_ids()


@pytest.fixture(scope="module")
def with_gallery(server, labelled):
    """The server once it has made the gallery of its five labelled patients by itself."""
    deadline = time.monotonic() + LIMIT_S
    while not (server.models / GALLERY_FILE).is_file():
        assert time.monotonic() < deadline, server.log.read_text(errors="replace")[-3000:]
        time.sleep(0.2)
    return server


def infer(server, model, image):
    status, answer = server.ask("POST", f"/infer/{model}?image={image}&output=json")
    assert status == 200, answer
    return answer.get("params", answer)


def test_server_makes_the_gallery_by_itself_and_nobody_else_can_read_it(with_gallery):
    path = with_gallery.models / GALLERY_FILE

    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_nearest_cases_are_of_other_patients_and_can_be_opened(with_gallery, labelled):
    image = labelled[0]

    answer = infer(with_gallery, "similar_cases", image)

    own = with_gallery.studies.entry(image).patient_id
    assert 1 <= len(answer["nearest"]) <= 5
    for near in answer["nearest"]:
        entry = with_gallery.studies.entry(near["image_id"])
        assert entry.patient_id != own
        assert "patient_id" not in near
        assert near["sop_instance_uid"] == near["image_id"]
        assert (near["study_instance_uid"], near["series_instance_uid"]) == (
            entry.study_instance_uid,
            entry.series_instance_uid,
        )
    assert (answer["boxes"], answer["defect"]) == ([], None)
    assert answer["nearest"] == infer(with_gallery, "defects", image)["nearest"]


def test_the_cines_of_a_patient_are_joined_and_nothing_names_the_patient(with_gallery, labelled):
    status, answer = with_gallery.ask("GET", f"/echo/patient?image={labelled[0]}")

    assert status == 200, answer
    own = with_gallery.studies.entry(labelled[0]).patient_id
    said = answer["patient_defect"]
    assert said["asked"] == sum(e.patient_id == own for e in with_gallery.studies.entries())
    assert sum(said["probabilities"].values()) == pytest.approx(1, abs=1e-6)
    assert own not in json.dumps(answer)


def test_two_cines_are_verified(with_gallery, labelled):
    body = json.dumps({"first": labelled[0], "second": labelled[1]}).encode()

    status, answer = with_gallery.ask("POST", "/echo/verify", body, Content_Type="application/json")

    assert status == 200, answer
    assert -1 <= answer["similarity"] <= 1
    assert [cine["image_id"] for cine in answer["cines"]] == labelled[:2]
    assert {"threshold", "same_defect", "false_acceptance_rate", "false_rejection_rate", "notes"} <= set(answer)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"first": "9.9.9", "second": "9.9.9"}, 404, "Image 9.9.9 is not in the study folder"),
        ({"first": "../../etc/passwd", "second": "x"}, 404, "malformed"),
        ({"first": "9.9.9"}, 422, "second"),
        ([], 422, "body"),
    ],
)
def test_what_cannot_be_verified_is_refused_in_one_sentence(with_gallery, body, status, words):
    found, answer = with_gallery.ask("POST", "/echo/verify", json.dumps(body).encode(), Content_Type="application/json")

    assert found == status
    assert words in answer["detail"]
    assert "\n" not in answer["detail"]


def test_an_explanation_is_a_picture(with_gallery, labelled):
    status, png = with_gallery.ask("GET", f"/echo/explain?image={labelled[0]}&frame=2")
    refused, answer = with_gallery.ask("GET", f"/echo/explain?image={labelled[0]}&frame=99")

    assert (status, png[:4]) == (200, b"\x89PNG")
    with urllib.request.urlopen(f"{with_gallery.url}/echo/explain?image={labelled[0]}", timeout=LIMIT_S) as shown:
        said = json.loads(shown.headers["X-Explanation"])
    predicted = infer(with_gallery, "defects", labelled[0])["defect"]
    assert said["defect"] == predicted["defect"]
    assert said["probability"] == pytest.approx(predicted["probability"], abs=0.005)
    assert said["frame_index"] in predicted["frame_indices"]
    assert (refused, "has no frame 99" in answer["detail"]) == (400, True)


def test_the_gallery_is_neither_served_nor_exported(with_gallery):
    for path in ("/model/defect_gallery", f"/model/{GALLERY_FILE}", f"/datastore/image?image={GALLERY_FILE}"):
        assert with_gallery.ask("GET", path)[0] in (404, 422)

    status, archive = with_gallery.ask("GET", "/datastore/dataset")

    assert status == 200
    names = zipfile.ZipFile(io.BytesIO(archive)).namelist()
    assert names and not any("gallery" in name or "echo_models" in name for name in names)
