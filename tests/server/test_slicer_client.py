# SPDX-License-Identifier: Apache-2.0
"""Everything 3D Slicer's stock module does, done by its own client against a real server."""

import hashlib
import json
from pathlib import Path

import itk
import numpy as np
import pytest

from echo_plugin.anatomy import Defect, Septum, View
from echo_plugin.annotations import SeptalBox
from echo_plugin.io.markups import boxes_from_markups, boxes_to_markups
from echo_plugin.io.volume import rendition_geometry

pytestmark = pytest.mark.server

ENTRY_KEYS = {
    "path",
    "image_id",
    "frames",
    "height",
    "width",
    "frame_time_ms",
    "view",
    "boxes",
    "defect",
    "nearest",
    "models",
    "timings_ms",
}
BOXES = (
    SeptalBox(2, 101.25, 80.5, 140.0, 200.75, Septum.INTERVENTRICULAR),
    SeptalBox(2, 110.0, 210.0, 150.5, 260.0, Septum.INTERATRIAL),
    SeptalBox(5, 99.0, 82.0, 141.0, 203.0, Septum.INTERVENTRICULAR),
)


def test_every_model_is_one_that_slicer_lists(slicer_client):
    info = slicer_client.info()

    assert {name: model["type"] for name, model in info["models"].items()} == {
        "septal_boxes": "detection",
        "defects": "detection",
        "views": "detection",
        "similar_cases": "detection",
    }
    assert all(model["description"] and model["labels"] for model in info["models"].values())
    assert info["labels"] == ["interatrial", "interventricular"]
    assert "config" not in info  # Slicer would ask for an upgrade of the server
    assert set(info["trainers"]) == {"septal_boxes", "defects", "views"}
    assert next(iter(info["strategies"])) == "uncertainty"  # which 3D Slicer preselects
    assert {"random", "first", "fewest_labels", "uncertainty", "diversity", "hybrid"} <= set(info["strategies"])
    assert {"failing_view", "suspicious"} <= set(info["strategies"])
    assert info["datastore"]["total"] == 8


def test_no_patient_identity_is_in_what_the_server_lists(server, slicer_client):
    patients = {server.studies.entry(i).patient_id for i in server.studies.image_ids()}

    listing = json.dumps([slicer_client.info(), slicer_client.datastore()])

    assert patients
    assert not [patient for patient in patients if patient and patient in listing]


@pytest.mark.parametrize(
    ("model", "answered"), [("septal_boxes", {"boxes"}), ("defects", {"defect", "boxes"}), ("views", {"view"})]
)
def test_every_model_answers_with_a_file_that_slicer_loads_and_the_whole_story_as_json(
    server, slicer_client, new_image, model, answered
):
    # what logic.infer of Slicer's module adds
    file, answer = slicer_client.infer(model, new_image, {"result_extension": ".nrrd", "result_dtype": "uint8"})

    assert file.endswith(".json")
    markups = json.loads(Path(file).read_text())["markups"]
    assert set(answer) == ENTRY_KEYS
    assert answer["image_id"] == new_image
    assert answer["frames"] == 8
    assert all(answer[key] for key in answered)
    kinds = {markup["type"] for markup in markups}
    if model == "septal_boxes":
        assert len(markups) == len(answer["boxes"])
        assert kinds == {"ROI"}
    else:
        # A point list is no ROI, so Slicer does not submit it; a slice view shows a point on its own frame only
        assert kinds == {"Fiducial"}
        points = markups[0]["controlPoints"]
        said = answer["defect"]["defect"] if model == "defects" else answer["view"]["view"]
        assert len(points) == answer["frames"]
        assert all(point["label"].startswith(said) for point in points)


def test_the_boxes_slicer_draws_are_those_of_the_json(server, slicer_client, new_image):
    file, answer = slicer_client.infer("septal_boxes", new_image, {})

    geometry = rendition_geometry(server.studies.read_cine(new_image))
    drawn = boxes_from_markups(Path(file).read_text(), geometry)

    expected = [[b["frame_index"], b["x1"], b["y1"], b["x2"], b["y2"]] for b in answer["boxes"]]
    assert len(drawn) > 0
    np.testing.assert_allclose([[b.frame_index, *b.xyxy] for b in drawn], expected, atol=1e-6)


def test_the_same_request_gets_the_same_answer(slicer_client, new_image):
    answers = [slicer_client.infer("septal_boxes", new_image, {})[1] for _ in range(2)]

    for answer in answers:
        del answer["timings_ms"]
    assert answers[0] == answers[1]


def test_frames_are_chosen_by_a_parameter(slicer_client, new_image):
    _, answer = slicer_client.infer("septal_boxes", new_image, {"frames": "1,3"})

    assert {box["frame_index"] for box in answer["boxes"]} == {1, 3}


@pytest.mark.parametrize("strategy", ["random", "first", "fewest_labels"])
def test_the_next_sample_is_unlabelled_and_can_be_loaded(server, slicer_client, strategy):
    sample = slicer_client.next_sample(strategy, {})

    content = Path(sample["path"]).read_bytes()
    assert server.studies.entry(sample["id"]).path.parent.name == "new"
    assert sample["name"] == f"{sample['id']}.nrrd"
    assert sample["checksum"] == f"SHA256:{hashlib.sha256(content).hexdigest()}"
    assert server.ask("GET", f"/datastore/image?image={sample['id']}") == (200, content)
    assert sample["strategy"][strategy]["client_id"] == "reader-1"


def test_the_downloaded_volume_has_a_voxel_for_each_pixel(server, new_image, tmp_path):
    status, content = server.ask("GET", f"/datastore/image?image={new_image}")

    path = tmp_path / "cine.nrrd"
    path.write_bytes(content)
    entry = server.studies.entry(new_image)
    assert status == 200
    assert tuple(itk.size(itk.imread(str(path)))) == (entry.width, entry.height, entry.frames)


def submit(slicer_client, tmp_path, image_id, text, **params):
    path = tmp_path / "tmpROI.json"
    path.write_text(text)
    return slicer_client.save_label(image_id, str(path), params={"label_info": [], "model": "septal_boxes", **params})


def test_submitted_boxes_are_kept_with_their_author_and_come_back_unchanged(server, slicer_client, new_image, tmp_path):
    geometry = rendition_geometry(server.studies.read_cine(new_image))

    answer = submit(slicer_client, tmp_path, new_image, boxes_to_markups(BOXES, geometry))

    stored = server.studies.annotation(new_image)
    assert answer["label"] == new_image
    assert stored.author == "reader-1"
    assert stored.annotated_frames == (2, 5)
    back = boxes_from_markups(Path(slicer_client.download_label(new_image, "final")).read_text(), geometry)
    for box, expected in zip(back, BOXES, strict=True):
        assert (box.frame_index, box.septum, box.score) == (expected.frame_index, expected.septum, None)
        np.testing.assert_allclose(box.xyxy, expected.xyxy, atol=1e-6)
    listed = slicer_client.datastore()["objects"][new_image]["labels"]["final"]["info"]
    assert (listed["author"], listed["boxes"]) == ("reader-1", 3)


def test_a_submission_keeps_view_and_defect_and_every_earlier_revision(server, slicer_client, tmp_path):
    image_id = next(i for i in server.studies.annotated_ids() if server.studies.entry(i).path.parent.name != "new")
    before = server.studies.annotation(image_id)
    geometry = rendition_geometry(server.studies.read_cine(image_id))

    submit(slicer_client, tmp_path, image_id, boxes_to_markups(BOXES, geometry))

    after = server.studies.annotation(image_id)
    assert (after.view, after.defect) == (before.view, before.defect)
    assert after.revision == before.revision + 1
    assert before.boxes in [earlier.boxes for earlier in server.studies.history(image_id)]
    assert isinstance(after.view, View)
    assert isinstance(after.defect, Defect)


def test_an_empty_submission_is_a_negative_not_an_error(server, slicer_client, new_image, tmp_path):
    submit(slicer_client, tmp_path, new_image, '{"markups": []}')

    stored = server.studies.annotation(new_image)
    assert stored.boxes == ()
    assert stored.annotated_frames == (4,)


def test_a_label_map_is_refused_in_a_sentence_that_says_what_to_select(
    server, slicer_client, slicer_client_module, new_image, tmp_path
):
    path = tmp_path / "tmp.nii.gz"
    path.write_bytes(b"\x1f\x8b a label map")
    before = server.studies.annotation(new_image)

    with pytest.raises(slicer_client_module.MONAILabelClientException) as refusal:
        slicer_client.save_label(new_image, str(path), params={})

    assert "Status: 422" in refusal.value.msg
    assert "select the model septal_boxes" in refusal.value.msg
    assert server.studies.annotation(new_image) == before


def test_a_change_of_an_outdated_revision_is_a_conflict(
    server, slicer_client, slicer_client_module, new_image, tmp_path
):
    submit(slicer_client, tmp_path, new_image, '{"markups": []}')
    revision = server.studies.annotation(new_image).revision

    with pytest.raises(slicer_client_module.MONAILabelClientException) as refusal:
        submit(slicer_client, tmp_path, new_image, '{"markups": []}', revision=revision - 1)

    assert "Status: 409" in refusal.value.msg
    assert server.studies.annotation(new_image).revision == revision
