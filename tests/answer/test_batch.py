# SPDX-License-Identifier: Apache-2.0
"""Many files at once: what is looked at, and that one bad file harms no other."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from echo_plugin.answer import predict
from echo_plugin.answer.batch import describe_results, find_cine_files, parse_frames, parse_tasks, predict_archive
from echo_plugin.cine import Cine


class FakePrediction:
    """Answers with what it was asked."""

    def __init__(self, asked: dict) -> None:
        self.asked = asked

    def to_json(self, cine: Cine, path: Path) -> dict:
        return {"path": str(path), "frames": cine.frame_count, **self.asked}


class FakePipeline:
    """Stands for the networks: this test is about files."""

    def __init__(self, models: Path, *, device: str) -> None:
        self.device = device

    def predict(self, cine: Cine, *, tasks: tuple, frame_indices: tuple | None) -> FakePrediction:
        return FakePrediction({"tasks": list(tasks), "frame_indices": frame_indices})


@pytest.fixture
def stills(tmp_path: Path) -> Path:
    folder = tmp_path / "stills"
    (folder / "nested").mkdir(parents=True)
    for name in ("b.png", "a.png", "nested/c.png"):
        Image.fromarray(np.full((40, 50), 90, np.uint8)).save(folder / name)
    return folder


def test_folders_are_searched_below_in_order(stills: Path) -> None:
    names = [p.relative_to(stills).as_posix() for p in find_cine_files([stills])]

    assert names == ["a.png", "b.png", "nested/c.png"]


def test_labels_hidden_files_and_prose_are_no_cines(stills: Path) -> None:
    (stills / "annotations").mkdir()
    (stills / "annotations" / "x.png").write_bytes(b"")
    (stills / ".hidden.png").write_bytes(b"")
    (stills / "notes.txt").write_text("text")

    assert len(find_cine_files([stills])) == 3


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.dcm does not exist; name a cine"):
        find_cine_files([tmp_path / "absent.dcm"])


def test_a_folder_without_cines_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no cine; .*\.dcm"):
        find_cine_files([tmp_path])


def test_unknown_tasks_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"\['murmur'\]; view, boxes, defect are accepted"):
        parse_tasks("view,murmur")


@pytest.mark.parametrize(("text", "message"), [("0,x", "no list of whole numbers"), ("-1", "hold -1"), ("", "no list")])
def test_impossible_frames_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_frames(text)


def test_one_damaged_file_is_reported_and_the_others_are_done(stills: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "EchoPipeline", FakePipeline)
    (stills / "b.png").write_bytes((stills / "a.png").read_bytes()[:50])
    reports: list[tuple[int, int]] = []

    results = predict_archive(
        find_cine_files([stills]),
        stills,
        tasks=("boxes",),
        frame_indices=(0,),
        progress=lambda done, total, _: reports.append((done, total)),
    )

    assert [Path(r["path"]).name for r in results] == ["a.png", "b.png", "c.png"]
    assert set(results[1]) == {"path", "error"}
    assert "b.png" in results[1]["error"]
    assert results[0]["tasks"] == ["boxes"]
    assert results[2]["frame_indices"] == (0,)
    assert reports[-1] == (3, 3)
    assert json.dumps(results)


def test_a_file_of_a_study_folder_has_the_id_and_the_patient_it_has_there(
    stills: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Noting(FakePipeline):
        def predict(self, cine: Cine, *, tasks: tuple, frame_indices: tuple | None) -> FakePrediction:
            asked.append((cine.image_id, cine.patient_id))
            return super().predict(cine, tasks=tasks, frame_indices=frame_indices)

    monkeypatch.setattr(predict, "EchoPipeline", Noting)
    (stills / "patients.csv").write_text("image_id,patient_id\nnested/c.png,p3\n")

    predict_archive(find_cine_files([stills / "nested"]), stills)

    assert asked == [("nested%2Fc.png", "p3")]


def test_a_cine_that_breaks_a_network_harms_no_other(stills: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Breaking(FakePipeline):
        def predict(self, cine: Cine, *, tasks: tuple, frame_indices: tuple | None) -> FakePrediction:
            if "b.png" in cine.image_id:
                msg = "out of memory"
                raise RuntimeError(msg)
            return super().predict(cine, tasks=tasks, frame_indices=frame_indices)

    monkeypatch.setattr(predict, "EchoPipeline", Breaking)

    results = predict_archive(find_cine_files([stills]), stills)

    assert ["error" in result for result in results] == [False, True, False]
    assert results[1]["error"] == "b.png could not be predicted: RuntimeError: out of memory"


def test_a_person_is_told_that_a_defect_was_read_from_whole_frames() -> None:
    defect = {"defect": "Normal", "probability": 0.8, "is_whole_frame": True}

    text = describe_results([{"path": "a.dcm", "frames": 3, "boxes": [], "defect": defect}])

    assert text == "a.dcm  3 frames  0 boxes on 0 frames  Normal 0.80 (no septum found: whole frames were compared)\n"


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"is_still": True, "is_standard": None}, "A4C 0.41 (one frame)"),
        ({"is_still": False, "is_standard": False}, "no standard view (A4C 0.41)"),
        ({"is_still": False, "is_standard": True}, "A4C 0.41"),
        ({}, "A4C 0.41"),
    ],
)
def test_a_person_is_told_of_one_frame_and_of_no_standard_view(facts: dict, words: str) -> None:
    text = describe_results([{"path": "a.dcm", "frames": 3, "view": {"view": "A4C", "probability": 0.41, **facts}}])

    assert text == f"a.dcm  3 frames  {words}\n"


def test_a_person_who_did_not_ask_for_boxes_reads_of_none() -> None:
    result = {"path": "a.dcm", "frames": 3, "view": {"view": "A4C", "probability": 0.9}, "boxes": []}

    assert describe_results([result], ["view"]) == "a.dcm  3 frames  A4C 0.90\n"


def test_a_person_reads_one_line_per_cine() -> None:
    text = describe_results(
        [
            {
                "path": "x/a.dcm",
                "frames": 30,
                "view": {"view": "A4C", "probability": 0.93},
                "boxes": [{"frame_index": 0}, {"frame_index": 0}, {"frame_index": 4}],
                "defect": {"defect": "ASD", "probability": 0.71},
            },
            {"path": "b.dcm", "error": "broken"},
        ]
    )

    assert text == "a.dcm  30 frames  A4C 0.93  3 boxes on 2 frames  ASD 0.71\n"
