# SPDX-License-Identifier: Apache-2.0
"""3D Slicer's own core loads what the server serves; what an annotator changes there comes back to the same pixels.

``MONAILABEL_ECHO_PICTURES=.github/pictures`` keeps the picture for the README.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import requests
from PIL import Image

from echo_plugin.annotations import view_words
from echo_plugin.cine import to_grey
from echo_plugin.io.volume import rendition_geometry

pytestmark = [pytest.mark.server, pytest.mark.slicer]

FRAME_INDEX = 3
MOVE_MM = (1.0, -0.75)
SCRIPT = Path(__file__).with_name("slicer_session.py")
CORNERS = ("x1", "y1", "x2", "y2")


def corners(boxes) -> np.ndarray:
    return np.array([[box["frame_index"], *(box[c] for c in CORNERS)] for box in boxes])


@pytest.fixture(scope="module")
def in_slicer(server, slicer_client_module, tmp_path_factory):
    """What the server served, and what Slicer held, drew and wrote of it."""
    folder = tmp_path_factory.mktemp("slicer")
    client = slicer_client_module.MONAILabelClient(server.url, str(folder), client_id="reader-2")
    image_id = server.studies.image_ids()[0]
    volume = folder / f"{image_id}.nrrd"
    volume.write_bytes(requests.get(f"{server.url}/datastore/image?image={image_id}", timeout=60).content)
    markups, answer = client.infer("septal_boxes", image_id, {"result_extension": ".nrrd"})
    session = {
        "volume": str(volume),
        "markups": markups,
        "picture": str(folder / "slice.png"),
        "submission": str(folder / "tmpSubmission.json"),
        "frame_index": FRAME_INDEX,
        "move_mm": MOVE_MM,
    }
    path = folder / "session.json"
    path.write_text(json.dumps(session))
    done = subprocess.run([sys.executable, SCRIPT, path], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    held = json.loads(path.with_suffix(".result.json").read_text())
    return {"client": client, "image_id": image_id, "answer": answer, "held": held, **session}


def test_slicer_shows_the_pixels_of_the_cine(server, in_slicer):
    cine = server.studies.read_cine(in_slicer["image_id"])

    grey = to_grey(cine.pixels).reshape(-1)

    assert in_slicer["held"]["dimensions"] == [cine.width, cine.height, cine.frame_count]
    assert in_slicer["held"]["voxels"] == grey[:: max(1, len(grey) // 4096)].tolist()


def test_slicer_holds_each_predicted_box_on_its_frame_and_place(in_slicer):
    predicted, held = corners(in_slicer["answer"]["boxes"]), corners(in_slicer["held"]["rois"])

    assert len(predicted) > 0
    assert predicted[:, 0].tolist() == held[:, 0].tolist()
    np.testing.assert_allclose(held[:, 1:], predicted[:, 1:], atol=0.01)  # half a pixel would show a wrong convention
    names = {"interatrial": "IAS", "interventricular": "IVS"}
    for roi, box in zip(in_slicer["held"]["rois"], in_slicer["answer"]["boxes"], strict=True):
        assert roi["label"].startswith(names[box["septum"]])


def test_a_dragged_box_is_stored_where_slicer_shows_it_and_the_others_stay(server, in_slicer, slicer_client_module):
    held = in_slicer["held"]
    cine = server.studies.read_cine(in_slicer["image_id"])

    in_slicer["client"].save_label(in_slicer["image_id"], in_slicer["submission"], params={"model": "septal_boxes"})

    stored = server.studies.annotation(in_slicer["image_id"])
    expected = corners(held["rois"])
    expected[held["dragged"]] = corners([held["after_drag"]])
    np.testing.assert_allclose([[b.frame_index, *b.xyxy] for b in stored.boxes], expected, atol=0.01)
    mm_per_px = np.diag(rendition_geometry(cine).ijk_to_lps)[:2]
    moved = corners([held["after_drag"]])[0, 1:3] - corners(held["rois"])[held["dragged"], 1:3]
    np.testing.assert_allclose(moved * mm_per_px, MOVE_MM, atol=1e-3)
    assert [box.septum.value for box in stored.boxes] == [box["septum"] for box in in_slicer["answer"]["boxes"]]
    assert all(box.score is None for box in stored.boxes)
    assert stored.author == "reader-2"


def test_the_slice_view_shows_the_box_round_its_wall(server, in_slicer):
    picture = np.asarray(Image.open(in_slicer["picture"]).convert("RGB")).astype(int)
    if folder := os.environ.get("MONAILABEL_ECHO_PICTURES"):
        Image.open(in_slicer["picture"]).save(Path(folder) / "slicer.png")

    x1, y1, x2, y2 = (round(end) for end in in_slicer["held"]["drawn"])
    is_drawn = np.ptp(picture, axis=2) > 100  # the cine is grey, a box is orange or blue
    corner_px = 12  # there the handles are drawn, not the outline
    rows = slice(max(y1 + corner_px, 0), min(y2 - corner_px, picture.shape[0]))
    for column in (x1, x2):
        assert is_drawn[rows, max(column - 3, 0) : column + 4].any(axis=1).mean() > 0.9


def test_the_caption_of_a_view_stands_on_each_frame_and_is_not_submitted(server, in_slicer, tmp_path):
    markups, answer = in_slicer["client"].infer("views", in_slicer["image_id"], {})
    document = json.loads(Path(markups).read_text())
    with_boxes = json.loads(Path(in_slicer["submission"]).read_text())
    document["markups"] += with_boxes["markups"][:-1]  # all but the empty ROI of the SAM2 tool, which is added again
    path = tmp_path / "both.mrk.json"
    path.write_text(json.dumps(document))
    session = {key: in_slicer[key] for key in ("volume", "frame_index", "move_mm")}
    session |= {"markups": str(path), "picture": str(tmp_path / "x.png"), "submission": str(tmp_path / "sub.json")}
    (tmp_path / "session.json").write_text(json.dumps(session))

    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path / "session.json"], capture_output=True, timeout=300, check=False
    )

    assert done.returncode == 0
    held = json.loads((tmp_path / "session.result.json").read_text())
    view = answer["view"]
    said = view_words(view["view"], view["probability"], is_still=view["is_still"], is_standard=view["is_standard"])
    assert said.startswith(("no standard view (", f"{view['view']} {view['probability']:.2f}"))
    assert held["captions"] == [said] * answer["frames"]
    assert held["caption_frames"] == list(range(answer["frames"]))
    assert {markup["type"] for markup in json.loads(Path(session["submission"]).read_text())["markups"]} == {"ROI"}
