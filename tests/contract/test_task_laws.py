# SPDX-License-Identifier: Apache-2.0
"""The laws that every prediction task keeps, whatever it predicts."""

import copy
import dataclasses
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest

from echo_plugin.anatomy import DEFECTS, PAEDIATRIC, Defect, Septum
from echo_plugin.annotations import DefectPrediction, SeptalBox, ViewPrediction
from echo_plugin.answer.gallery import NearestCase, PastCase
from echo_plugin.answer.predict import EchoPipeline
from echo_plugin.answer.prediction import CinePrediction
from echo_plugin.cine import Cine, FramesInMemory
from echo_plugin.errors import ModelNotFoundError, UnknownImageError, UnreadableCineError
from echo_plugin.host.infer_tasks import DEFECT, SEPTAL_BOXES, SIMILAR_CASES, VIEW, CineInferTask
from echo_plugin.io.volume import rendition_geometry
from echo_plugin.model_card import ModelCard, TrainingCohort, card_to_json
from echo_plugin.network_config import EmbedderConfig

EVERY_TASK = pytest.mark.parametrize(
    "about", [SEPTAL_BOXES, DEFECT, VIEW, SIMILAR_CASES], ids=["septal_boxes", "defects", "views", "similar_cases"]
)
IMAGE_ID = "1.2.3.4"


class KnownAnswer:
    """A pipeline whose answer is known; ``is_empty``: nothing was found."""

    def __init__(self, models_dir: Path, *, is_empty: bool = False) -> None:
        self.models_dir = models_dir
        self.is_empty = is_empty

    def predict(self, cine, *, tasks, frame_indices):
        boxes = () if self.is_empty else (SeptalBox(2, 3.0, 4.0, 20.0, 30.0, Septum.INTERATRIAL, 0.9),)
        view = defect = None
        if "view" in tasks:
            view = ViewPrediction(PAEDIATRIC[0], {v: 1 / len(PAEDIATRIC) for v in PAEDIATRIC}, (0,))
        if "defect" in tasks:
            probabilities = {Defect.NORMAL: 0.05, Defect.ASD: 0.91, Defect.VSD: 0.04}
            angles = {d: 41.2 if d is Defect.ASD else 90.0 for d in DEFECTS}
            defect = DefectPrediction(Defect.ASD, probabilities, angles, (2,), is_whole_frame=self.is_empty)
        return CinePrediction(boxes, view, defect, (), {}, {"total": 1.0})


def cine_of(frames: int = 4) -> Cine:
    pixels = np.random.default_rng(0).integers(0, 255, (frames, 48, 64, 1), np.uint8)
    return Cine(image_id=IMAGE_ID, frames=FramesInMemory(pixels))


def read(image):
    if image != IMAGE_ID:
        msg = f"Image {image} is not in the study folder."
        raise UnknownImageError(msg)
    return cine_of(), Path("cine.dcm")


@pytest.fixture
def temporary_folder(tmp_path, monkeypatch):
    """A folder of its own for temporary files, to see what is left there."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@EVERY_TASK
def test_info_is_json_of_a_type_that_slicer_lists(about, tmp_path):
    info = json.loads(json.dumps(CineInferTask(about, KnownAnswer(tmp_path), read).info()))

    assert info["type"] == "detection"
    assert info["labels"]
    assert info["description"].startswith(about.title)


@EVERY_TASK
def test_labels_are_those_of_the_published_model(about, tmp_path):
    classes = ("Normal", "ASD", "VSD", "PFO", "AVSD")
    data = TrainingCohort("noise", patients=1, cines=1, digest="0")
    card = ModelCard(about.model, "4", "test", "test", classes, EmbedderConfig(), data)
    (tmp_path / f"{about.model}.json").write_text(card_to_json(card))

    assert CineInferTask(about, KnownAnswer(tmp_path), read).info()["labels"] == list(classes)


@EVERY_TASK
def test_missing_weights_are_named_and_leave_nothing_behind(about, tmp_path, temporary_folder):
    task = CineInferTask(about, EchoPipeline(tmp_path / "none", device="cpu"), read)

    with pytest.raises(ModelNotFoundError, match=r"septal_detector|defect_embedder|view_classifier"):
        task({"image": IMAGE_ID})

    assert list(temporary_folder.iterdir()) == []
    assert f"Model {about.model} is not published in" in task.info()["description"]


@EVERY_TASK
def test_the_request_is_not_modified(about, tmp_path, temporary_folder):
    request = {"image": IMAGE_ID, "frames": "0,2", "client_id": "reader-1", "params": {"nested": [1]}}
    before = copy.deepcopy(request)

    CineInferTask(about, KnownAnswer(tmp_path), read)(request)

    assert request == before


@EVERY_TASK
def test_the_same_request_twice_gets_the_same_answer(about, tmp_path, temporary_folder):
    task = CineInferTask(about, KnownAnswer(tmp_path), read)

    answers = [task({"image": IMAGE_ID}) for _ in range(2)]

    assert answers[0][1] == answers[1][1]
    assert Path(answers[0][0]).read_text() == Path(answers[1][0]).read_text()


@EVERY_TASK
def test_an_empty_prediction_is_a_valid_answer(about, tmp_path, temporary_folder):
    file, answer = CineInferTask(about, KnownAnswer(tmp_path, is_empty=True), read)({"image": IMAGE_ID})

    markups = json.loads(Path(file).read_text())["markups"]
    assert answer["boxes"] == []
    assert all(markup["type"] != "ROI" for markup in markups)


@EVERY_TASK
def test_an_unknown_image_is_named(about, tmp_path):
    with pytest.raises(UnknownImageError, match=r"9\.9\.9"):
        CineInferTask(about, KnownAnswer(tmp_path), read)({"image": "9.9.9"})


@EVERY_TASK
def test_a_cine_that_breaks_the_network_is_named(about, tmp_path, temporary_folder):
    class Breaking(KnownAnswer):
        def predict(self, cine, *, tasks, frame_indices):
            raise RuntimeError("shape '[1, 3]' is invalid")

    with pytest.raises(UnreadableCineError, match=rf"Cine {IMAGE_ID} could not be predicted \(RuntimeError\)"):
        CineInferTask(about, Breaking(tmp_path), read)({"image": IMAGE_ID})

    assert list(temporary_folder.iterdir()) == []


@EVERY_TASK
def test_malformed_frames_are_refused(about, tmp_path):
    with pytest.raises(ValueError, match="Frames 'some' are no list of whole numbers"):
        CineInferTask(about, KnownAnswer(tmp_path), read)({"image": IMAGE_ID, "frames": "some"})


@pytest.mark.parametrize("frames", [0, "0", [0], [0, 2], "2,0", None, "all"])
def test_the_frames_asked_for_are_the_frames_predicted(tmp_path, temporary_folder, frames):
    asked = []

    class Noting(KnownAnswer):
        def predict(self, cine, *, tasks, frame_indices):
            asked.append(frame_indices)
            return super().predict(cine, tasks=tasks, frame_indices=frame_indices)

    CineInferTask(SEPTAL_BOXES, Noting(tmp_path), read)({"image": IMAGE_ID, "frames": frames})

    everything = frames in (None, "all")
    assert asked == [None if everything else (0, 2) if "2" in str(frames) else (0,)]


@pytest.mark.parametrize("frames", [True, [], "", {}, 1.5, [True], [[0]], -1, {"0": 1}])
def test_frames_of_the_wrong_type_are_refused_and_not_taken_for_all(tmp_path, frames):
    with pytest.raises(ValueError, match=r"Frames .* (are no list of whole numbers|hold -1)"):
        CineInferTask(SEPTAL_BOXES, KnownAnswer(tmp_path), read)({"image": IMAGE_ID, "frames": frames})


def test_an_answer_names_neither_folders_nor_the_patients_of_past_cases(tmp_path, temporary_folder):
    class Remembering(KnownAnswer):
        def predict(self, cine, *, tasks, frame_indices):
            answer = super().predict(cine, tasks=tasks, frame_indices=frame_indices)
            near = NearestCase(PastCase("1.2.9", "DOE^JANE", Defect.ASD, sop_instance_uid="1.2.9"), 0.9)
            return dataclasses.replace(answer, nearest=(near,))

    def read_below_a_patient(image):
        return cine_of(), Path("/studies/DOE_JANE/cine.dcm")

    _, answer = CineInferTask(DEFECT, Remembering(tmp_path), read_below_a_patient)({"image": IMAGE_ID})

    assert answer["path"] == "cine.dcm"
    assert "DOE" not in json.dumps(answer)
    (near,) = answer["nearest"]
    assert (near["image_id"], near["defect"], near["similarity"]) == ("1.2.9", "ASD", 0.9)
    assert near["sop_instance_uid"] == "1.2.9"


@EVERY_TASK
def test_the_file_is_the_callers_and_nothing_else_is_left(about, tmp_path, temporary_folder):
    file, answer = CineInferTask(about, KnownAnswer(tmp_path), read)({"image": IMAGE_ID})

    assert [path.name for path in temporary_folder.iterdir()] == [Path(file).name]
    assert file.endswith(".mrk.json")
    assert json.loads(json.dumps(answer)) == answer


def test_a_defect_comes_with_the_crops_it_was_read_from(tmp_path, temporary_folder):
    class Cropping(KnownAnswer):
        def predict(self, cine, *, tasks, frame_indices):
            answer = super().predict(cine, tasks=tasks, frame_indices=frame_indices)
            crop = SeptalBox(2, 1.0, 2.0, 31.0, 32.0, Septum.UNSPECIFIED, 0.9)
            return dataclasses.replace(answer, defect=dataclasses.replace(answer.defect, crops=(crop,)))

    _, answer = CineInferTask(DEFECT, Cropping(tmp_path), read)({"image": IMAGE_ID})

    (crop,) = answer["defect"]["crops"]
    assert (crop["frame_index"], crop["x1"], crop["y1"], crop["x2"], crop["y2"]) == (2, 1.0, 2.0, 31.0, 32.0)


def test_a_defect_is_written_beside_its_wall_and_elsewhere_in_the_corner(tmp_path, temporary_folder):
    file, _ = CineInferTask(DEFECT, KnownAnswer(tmp_path), read)({"image": IMAGE_ID})

    geometry = rendition_geometry(cine_of())
    markups = json.loads(Path(file).read_text())["markups"]
    points = [point["position"] for markup in markups for point in markup["controlPoints"]]
    ijk = (np.linalg.inv(geometry.ijk_to_lps) @ np.array([[*point, 1.0] for point in points]).T).T[:, :3]
    places = {round(k): (i + 0.5, j + 0.5) for i, j, k in ijk}  # Slicer counts voxel centres
    assert places[2] == pytest.approx((20.0, 17.0), abs=1e-6)  # the interatrial box ends there at its middle
    assert places[0] == places[1] == places[3] != places[2]


def test_similar_cases_are_given_alone(tmp_path, temporary_folder):
    class Remembering(KnownAnswer):
        def predict(self, cine, *, tasks, frame_indices):
            assert tasks == ("nearest",)
            near = tuple(
                NearestCase(PastCase(f"1.{n}", f"p{n}", defect), 0.9 - n / 10) for n, defect in enumerate(DEFECTS)
            )
            return CinePrediction((), None, None, near, {}, {})

    file, answer = CineInferTask(SIMILAR_CASES, Remembering(tmp_path), read)({"image": IMAGE_ID})
    alone, _ = CineInferTask(SIMILAR_CASES, KnownAnswer(tmp_path), read)({"image": IMAGE_ID})

    captions = [json.loads(Path(f).read_text())["markups"][0]["controlPoints"][0]["label"] for f in (file, alone)]
    assert captions == ["similar: Normal 0.90, ASD 0.80, VSD 0.70", "no past cases to compare with yet"]
    assert [near["image_id"] for near in answer["nearest"]] == ["1.0", "1.1", "1.2"]
    assert (answer["boxes"], answer["defect"], answer["view"]) == ([], None, None)


def test_a_defect_is_told_with_its_evidence(tmp_path, temporary_folder):
    file, _ = CineInferTask(DEFECT, KnownAnswer(tmp_path), read)({"image": IMAGE_ID})
    alone, _ = CineInferTask(DEFECT, KnownAnswer(tmp_path, is_empty=True), read)({"image": IMAGE_ID})

    captions = [json.loads(Path(f).read_text())["markups"][0]["controlPoints"][0]["label"] for f in (file, alone)]
    assert captions == ["ASD 0.91 (41 deg)", "ASD 0.91 (41 deg), no septum found: whole frames were compared"]
