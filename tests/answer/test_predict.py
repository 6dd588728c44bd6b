# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from echo_plugin.anatomy import DEFECTS, DETECTED_SEPTA, Defect, View
from echo_plugin.answer.boxes import TrackOptions
from echo_plugin.answer.gallery import Gallery, PastCase, write_gallery
from echo_plugin.answer.predict import EchoPipeline
from echo_plugin.cine import Cine, FramesInMemory, UltrasoundRegion
from echo_plugin.cli.main import app
from echo_plugin.errors import ModelMismatchError, ModelNotFoundError
from echo_plugin.host.infer_tasks import show_similar_cases
from echo_plugin.io.cine_file import read_cine
from echo_plugin.model_card import DefectDecision, ModelCard, TrainingCohort
from echo_plugin.models.checkpoint import publish
from echo_plugin.models.defect_embedder import DefectEmbedder
from echo_plugin.models.septal_detector import SeptalDetector
from echo_plugin.models.view_classifier import ViewClassifier
from echo_plugin.network_config import DetectorConfig, EmbedderConfig, ViewConfig

torch.set_num_threads(1)
VIEWS = (View.A4C, View.PSAX_AV, View.OTHER)


def publish_network(directory: Path, name: str, network: torch.nn.Module, classes: tuple[str, ...]) -> ModelCard:
    config = network.config
    card = ModelCard(
        name, "1", name, config.backbone, classes, config,
        TrainingCohort("random weights", 1, 1, "0" * 64),
    )  # fmt: skip
    return publish(directory, network.state_dict(), card)


def publish_detector(directory: Path, seed: int = 0) -> ModelCard:
    torch.manual_seed(seed)
    detector = SeptalDetector(DetectorConfig(input_size_px=64, score_threshold=0.0, boxes_per_frame=5))
    torch.nn.init.normal_(detector.head.classification_head.cls_logits.weight, std=0.2)
    return publish_network(directory, "septal_detector", detector, tuple(s.value for s in DETECTED_SEPTA))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models")
    publish_detector(directory)
    torch.manual_seed(1)
    embedder = DefectEmbedder(EmbedderConfig(input_size_px=64))
    publish_network(directory, "defect_embedder", embedder, tuple(d.value for d in DEFECTS))
    views = ViewClassifier(ViewConfig(classes=len(VIEWS), input_size_px=64))
    publish_network(directory, "view_classifier", views, tuple(v.value for v in VIEWS))
    return directory


@pytest.fixture
def cine() -> Cine:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 60, 80, 1), dtype=np.uint8)
    return Cine("a4c_007", FramesInMemory(pixels), np.arange(9) * 40.0, (UltrasoundRegion(10, 5, 75, 55),), "p1")


@pytest.fixture(scope="session")
def pipeline(models: Path) -> EchoPipeline:
    return EchoPipeline(models, device="cpu", track=TrackOptions(operating_score=0.0))


@pytest.mark.heavy
def test_prediction_has_the_json_of_the_contract(pipeline: EchoPipeline, cine: Cine) -> None:
    entry = json.loads(json.dumps(pipeline.predict(cine).to_json(cine, Path("x.dcm")), allow_nan=False))

    assert list(entry) == [
        "path", "image_id", "frames", "height", "width", "frame_time_ms", "view", "boxes", "defect", "nearest",
        "models", "timings_ms",
    ]  # fmt: skip
    assert (entry["path"], entry["image_id"], entry["frames"]) == ("x.dcm", "a4c_007", 9)
    assert (entry["height"], entry["width"], entry["frame_time_ms"]) == (60, 80, 40.0)
    keys = {"view", "probability", "probabilities", "frame_indices", "is_still", "is_standard"}
    assert set(entry["view"]) == keys
    assert set(entry["view"]["probabilities"]) == {"A4C", "PSAX-AV", "OTHER"}
    assert set(entry["boxes"][0]) == {"frame_index", "x1", "y1", "x2", "y2", "septum", "score"}
    assert set(entry["defect"]["angles_deg"]) == set(entry["defect"]["probabilities"]) == {"Normal", "ASD", "VSD"}
    assert entry["nearest"] == []
    assert entry["models"]["detector"] == {"name": "septal_detector", "version": "1", "trained_on": "random weights"}
    assert set(entry["models"]) == {"detector", "defects", "views"}
    assert entry["timings_ms"]["total"] > 0


def test_each_frame_has_at_most_one_box_per_septum_inside_the_picture(pipeline: EchoPipeline, cine: Cine) -> None:
    boxes = pipeline.predict(cine, tasks=("boxes",)).boxes

    keys = [(b.frame_index, b.septum) for b in boxes]
    assert {b.frame_index for b in boxes} == set(range(9))
    assert len(set(keys)) == len(keys)
    assert all(0 <= b.x1 < b.x2 <= 80 and 0 <= b.y1 < b.y2 <= 60 for b in boxes)


def test_unlinked_boxes_are_there_for_who_wants_them(pipeline: EchoPipeline, cine: Cine) -> None:
    candidates = pipeline.detect_septa(cine, [2, 4])

    assert {b.frame_index for b in candidates} == {2, 4}
    assert len(candidates) > 4
    asked = pipeline.predict(cine, tasks=("raw_boxes", "defect"), frame_indices=[2, 4])
    assert asked.boxes == candidates
    assert asked.defect == pipeline.predict(cine, tasks=("defect",), frame_indices=[2, 4]).defect


@pytest.mark.heavy
def test_the_command_line_gives_raw_boxes_or_linked_ones(models: Path, tmp_path: Path) -> None:
    picture = tmp_path / "still.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80), dtype=np.uint8)).save(picture)
    entries = []
    for words in ((), ("--raw-boxes",)):
        arguments = ["predict", picture, "--tasks", "boxes", "--models", models, "--device", "cpu", *words]
        answer = CliRunner().invoke(app, [*map(str, arguments), "--json", str(tmp_path / "out.json")])
        assert answer.exit_code == 0, answer.output
        entries.append(json.loads((tmp_path / "out.json").read_text())[0])

    linked, raw = (entry["boxes"] for entry in entries)
    found = EchoPipeline(models, device="cpu").detect_septa(read_cine(picture))
    assert [box["score"] for box in raw] == pytest.approx([box.score for box in found])
    assert len(linked) <= 2 < len(raw)


def test_same_cine_twice_gives_the_same_answer(pipeline: EchoPipeline, cine: Cine) -> None:
    first, second = (pipeline.predict(cine) for _ in range(2))

    assert (first.boxes, first.view, first.defect) == (second.boxes, second.view, second.defect)


@pytest.mark.parametrize("tasks", [("boxes",), ("nearest",)])
def test_asking_for_no_frame_is_refused_in_one_sentence(pipeline: EchoPipeline, cine: Cine, tasks: tuple) -> None:
    with pytest.raises(ValueError, match=r"Frames \[\] name no frame; 0-based indices, or None for every frame"):
        pipeline.predict(cine, tasks=tasks, frame_indices=[])


def test_asked_frames_are_predicted_alone(pipeline: EchoPipeline, cine: Cine) -> None:
    prediction = pipeline.predict(cine, tasks=("boxes", "defect"), frame_indices=(5, 0))

    assert {b.frame_index for b in prediction.boxes} == {0, 5}
    assert prediction.defect is not None
    assert set(prediction.defect.frame_indices) <= {0, 5}
    assert prediction.view is None


def test_defect_alone_uses_boxes_without_returning_them(pipeline: EchoPipeline, cine: Cine) -> None:
    prediction = pipeline.predict(cine, tasks=("defect",))

    assert prediction.boxes == ()
    assert prediction.defect is not None
    assert not prediction.defect.is_whole_frame
    assert len(prediction.defect.crops) == 9
    assert set(prediction.models) == {"detector", "defects"}


@pytest.mark.heavy
def test_whole_frames_are_compared_when_no_septum_is_found(models: Path, cine: Cine) -> None:
    blind = EchoPipeline(models, device="cpu", track=TrackOptions(operating_score=2.0))

    prediction = blind.predict(cine)

    assert prediction.boxes == ()
    assert prediction.defect is not None
    assert prediction.defect.is_whole_frame
    assert prediction.defect.crops == ()


@pytest.fixture(scope="module")
def four_classes(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An embedder of walls that tells four defects apart and abstains, beside the detector and the view classifier."""
    directory = tmp_path_factory.mktemp("four")
    for path in models.iterdir():
        if path.is_file():
            shutil.copy(path, directory)
    torch.manual_seed(1)
    embedder = DefectEmbedder(EmbedderConfig(input_size_px=64, classes=4, cropping="walls"))
    card = publish_network(directory, "defect_embedder", embedder, ("Normal", "ASD", "VSD", "AVSD"))
    decision = DefectDecision(focus=0.5, abstain_angle_deg=10.0)
    publish(directory, embedder.state_dict(), dataclasses.replace(card, decision=decision))
    return directory


@pytest.mark.heavy
def test_classes_are_those_of_the_card_and_each_wall_has_its_crop(four_classes: Path, cine: Cine) -> None:
    always = EchoPipeline(four_classes, device="cpu", track=TrackOptions(operating_score=0.0))

    entry = always.predict(cine, tasks=("defect",)).to_json(cine, Path("x.dcm"))["defect"]

    assert list(entry["probabilities"]) == list(entry["angles_deg"]) == ["Normal", "ASD", "VSD", "AVSD"]
    assert {crop["septum"] for crop in entry["crops"]} == {"interatrial", "interventricular"}
    assert entry["abstained"].startswith("unlike every class (")


def test_no_septum_gets_no_answer_where_the_card_says_when_to_abstain(four_classes: Path, cine: Cine) -> None:
    blind = EchoPipeline(four_classes, device="cpu", track=TrackOptions(operating_score=2.0))

    defect = blind.predict(cine, tasks=("defect",)).defect

    assert defect is not None
    assert (defect.is_whole_frame, defect.abstained) == (True, "no septum found")


@pytest.fixture
def sure_of_a_view(four_classes: Path, tmp_path: Path) -> Callable[[View], Path]:
    """Make the models' view classifier call everything one view."""

    def sure(view: View) -> Path:
        shutil.copytree(four_classes, tmp_path / view.name)
        classes = (View.A4C, View.SUPRASTERNAL_ARCH)
        network = ViewClassifier(ViewConfig(classes=2, input_size_px=64)).eval()
        torch.nn.init.zeros_(network.head[1].weight)
        network.head[1].bias.data = torch.tensor([9.0 if view is c else 0.0 for c in classes])
        publish_network(tmp_path / view.name, "view_classifier", network, tuple(c.value for c in classes))
        return tmp_path / view.name

    return sure


@pytest.mark.heavy
@pytest.mark.parametrize("tasks", [("defect",), ("boxes", "defect"), ("view", "boxes", "defect")])
def test_a_defect_is_not_answered_from_a_view_that_does_not_show_it(
    sure_of_a_view: Callable[[View], Path], cine: Cine, tasks: tuple[str, ...]
) -> None:
    always = TrackOptions(operating_score=0.0)
    arch = EchoPipeline(sure_of_a_view(View.SUPRASTERNAL_ARCH), device="cpu", track=always)
    apical = EchoPipeline(sure_of_a_view(View.A4C), device="cpu", track=always)

    unsuitable, suitable = arch.predict(cine, tasks=tasks), apical.predict(cine, tasks=tasks)

    assert unsuitable.defect.abstained == "view SSN-ARCH does not show this septum"
    assert suitable.defect.abstained.startswith("unlike every class (")
    assert (unsuitable.view is None) is ("view" not in tasks)
    assert unsuitable.models["views"].classes == ("A4C", "SSN-ARCH")


def test_without_a_view_classifier_a_defect_is_answered_all_the_same(four_classes: Path, tmp_path: Path, cine) -> None:
    shutil.copytree(four_classes, tmp_path / "models")
    for path in (tmp_path / "models").glob("view_classifier.*"):
        path.unlink()

    assert EchoPipeline(tmp_path / "models", device="cpu").predict(cine, tasks=("defect",)).defect is not None


def test_still_picture_is_a_cine_of_one_frame(pipeline: EchoPipeline) -> None:
    still = Cine("still", FramesInMemory(np.full((1, 50, 50, 3), 80, dtype=np.uint8)))

    prediction = pipeline.predict(still)

    assert prediction.view is not None
    assert prediction.view.frame_indices == (0,)
    assert prediction.view.words.endswith("(one frame)")
    assert prediction.to_json(still, "still")["view"]["is_still"] is True
    assert prediction.defect is not None


def test_nothing_that_was_not_asked_needs_its_model(tmp_path: Path, models: Path, cine: Cine) -> None:
    for suffix in ("json", "safetensors"):
        (tmp_path / f"view_classifier.{suffix}").symlink_to(models / f"view_classifier.{suffix}")
    lone = EchoPipeline(tmp_path, device="cpu")

    assert lone.predict(cine, tasks=("view",)).view is not None
    assert set(lone.cards()) == {"view_classifier"}
    with pytest.raises(ModelNotFoundError, match=r"detector is not published .* `monailabel-echo train detector"):
        lone.predict(cine, tasks=("boxes",))


@pytest.mark.heavy
def test_what_is_published_later_is_used_from_the_next_prediction_on(tmp_path: Path, cine: Cine) -> None:
    first = publish_detector(tmp_path, seed=0)
    pipeline = EchoPipeline(tmp_path, device="cpu")
    before = pipeline.predict(cine, tasks=("boxes",))
    second = publish_detector(tmp_path, seed=8)

    after = pipeline.predict(cine, tasks=("boxes",))

    assert before.models["detector"].sha256 == first.sha256
    assert after.models["detector"].sha256 == second.sha256 != first.sha256
    assert pipeline.reload_if_published() == ()


@pytest.mark.heavy
def test_models_are_loaded_before_the_first_request_if_wished(models: Path) -> None:
    pipeline = EchoPipeline(models, device="cpu")

    assert pipeline.reload_if_published() == ("septal_detector", "defect_embedder", "view_classifier")
    assert pipeline.reload_if_published() == ()


@pytest.mark.heavy
def test_threads_get_the_answer_of_one(pipeline: EchoPipeline, cine: Cine) -> None:
    alone = pipeline.predict(cine)
    answers: list[object] = []
    threads = [threading.Thread(target=lambda: answers.append(pipeline.predict(cine).boxes)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert answers == [alone.boxes] * 3


def test_nearest_cases_come_from_the_gallery_of_the_same_embedder(tmp_path: Path, models: Path, cine: Cine) -> None:
    for path in models.iterdir():
        (tmp_path / path.name).symlink_to(path)
    pipeline = EchoPipeline(tmp_path, device="cpu")
    sha256 = pipeline.cards()["defect_embedder"].sha256
    embeddings = np.eye(3, 512, dtype=np.float32)
    cases = tuple(
        PastCase(name, f"p{number}", Defect.VSD, View.A4C, f"1.2.{number}") for number, name in enumerate("abc", 1)
    )

    write_gallery(tmp_path, Gallery(sha256, embeddings, cases))
    found = pipeline.predict(cine, tasks=("defect",))
    alone = pipeline.predict(cine, tasks=("nearest",))
    write_gallery(tmp_path, Gallery("other", embeddings, cases))

    assert {near.case.image_id for near in found.nearest} == {"b", "c"}
    assert (alone.nearest, alone.defect, alone.boxes) == (found.nearest, None, ())
    entry = next(e for e in found.to_json(cine, "x")["nearest"] if e["image_id"] == "b")
    assert set(entry) == {
        "image_id", "defect", "similarity", "view", "study_instance_uid", "series_instance_uid", "sop_instance_uid",
    }  # fmt: skip
    assert (entry["view"], entry["study_instance_uid"], entry["sop_instance_uid"]) == ("A4C", "1.2.2", None)
    assert pipeline.predict(cine, tasks=("defect",)).nearest == ()


@pytest.mark.heavy
def test_a_whole_frame_is_compared_with_no_past_case_and_it_is_said(tmp_path: Path, models: Path, cine: Cine) -> None:
    for path in models.iterdir():
        (tmp_path / path.name).symlink_to(path)
    blind = EchoPipeline(tmp_path, device="cpu", track=TrackOptions(operating_score=2.0))
    sha256 = blind.cards()["defect_embedder"].sha256
    write_gallery(tmp_path, Gallery(sha256, np.eye(1, 512, dtype=np.float32), (PastCase("a", "p2", Defect.ASD),)))

    for tasks in (("nearest",), ("defect",)):
        found = blind.predict(cine, tasks=tasks)
        assert (found.nearest, found.has_no_septum) == ((), True)
    assert not blind.predict(cine, tasks=("boxes",)).has_no_septum
    assert show_similar_cases(blind.predict(cine, tasks=("nearest",))).caption == "no septum found to compare"


def test_an_embedding_has_unit_length_and_says_which_models_made_it(pipeline: EchoPipeline, cine: Cine) -> None:
    embedded = pipeline.embed(cine)

    assert embedded.vector.dtype == np.float32
    assert np.linalg.norm(embedded.vector) == pytest.approx(1.0, abs=1e-4)
    assert (embedded.embedder.name, embedded.detector.name) == ("defect_embedder", "septal_detector")
    assert embedded.defect == pipeline.predict(cine, tasks=("defect",)).defect


def test_weights_that_do_not_fit_their_card_are_refused(tmp_path: Path, cine: Cine) -> None:
    torch.manual_seed(0)
    detector = SeptalDetector(DetectorConfig(input_size_px=64, pyramid_channels=48))
    detector.config = DetectorConfig(input_size_px=64)
    publish_network(tmp_path, "septal_detector", detector, tuple(s.value for s in DETECTED_SEPTA))

    with pytest.raises(ModelMismatchError, match=r"has 'backbone\.fpn\.inner_blocks\.0\.0\.weight' of shape"):
        EchoPipeline(tmp_path, device="cpu").predict(cine, tasks=("boxes",))


def test_unknown_task_and_frame_are_refused(pipeline: EchoPipeline, cine: Cine) -> None:
    with pytest.raises(ValueError, match="Task 'mood' is unknown; view, boxes, defect"):
        pipeline.predict(cine, tasks=("mood",))
    with pytest.raises(IndexError, match="a4c_007 has no frame 9"):
        pipeline.predict(cine, tasks=("boxes",), frame_indices=(9,))


class WaitingFrames:
    """Frames that are decoded only once ``go`` is set."""

    def __init__(self, pixels: np.ndarray, go: threading.Event) -> None:
        self._frames, self._go, self.has_waited_in_vain = FramesInMemory(pixels), go, False

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self._frames.shape

    def read(self, frame_indices: Sequence[int]) -> np.ndarray:
        self.has_waited_in_vain |= not self._go.wait(timeout=20)
        return self._frames.read(frame_indices)


@pytest.mark.parametrize("tasks", [("view",), ("boxes",), ("defect",)])
def test_a_file_that_is_decoded_slowly_keeps_no_other_waiting(
    pipeline: EchoPipeline, cine: Cine, tasks: tuple[str, ...]
) -> None:
    go, regions = threading.Event(), (UltrasoundRegion(0, 0, 80, 60),)
    frames = WaitingFrames(np.zeros((4, 60, 80, 1), np.uint8), go)
    other = Cine("slow", frames, regions=regions)
    slow = threading.Thread(target=pipeline.predict, args=(other,), kwargs={"tasks": tasks})
    slow.start()

    pipeline.predict(cine, tasks=tasks)
    go.set()
    slow.join()

    assert not frames.has_waited_in_vain
