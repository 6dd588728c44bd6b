# SPDX-License-Identifier: Apache-2.0
"""The weights that come with the app: whole, honest about their origin, and sensible on cines nobody trained on."""

from pathlib import Path

import numpy as np
import pytest

from echo_plugin.answer.predict import VIEW_CLIPS, EchoPipeline
from echo_plugin.answer.views import choose_clips
from echo_plugin.cine import Cine, FramesInMemory
from echo_plugin.geometry import box_iou
from echo_plugin.io.study_folder import StudyFolder
from echo_plugin.model_card import ViewDecision, load_card
from echo_plugin.network_config import ViewConfig

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "apps" / "echo" / "model"
NAMES = ("septal_detector", "defect_embedder", "view_classifier", "masked_autoencoder")


@pytest.fixture(scope="module")
def pipeline() -> EchoPipeline:
    return EchoPipeline(MODELS, device="cpu")


def test_starter_weights_stay_under_80_mb_together() -> None:
    sizes = [path.stat().st_size for path in MODELS.glob("*.safetensors")]

    assert len(sizes) == len(NAMES)
    assert sum(sizes) < 80e6


@pytest.mark.parametrize("name", NAMES)
def test_a_starter_card_says_phantoms_only_and_how_to_train_it_again(name: str) -> None:
    card = load_card(MODELS, name)

    assert card.trained_on.startswith("phantoms only")
    assert "not for clinical use" in card.intended_use
    assert card.training.command.startswith("monailabel-echo ")
    assert card.training.wall_time_s > 0
    assert card.metrics
    assert all(metric.patients > 10 for metric in card.metrics.values())


def test_the_shipped_views_look_at_one_beat_at_the_interval_that_they_learned_from() -> None:
    """3 s of 100 frames a second at 120 beats a minute: 25.7 ms from frame to frame, within 500 ms and a clip."""
    card = load_card(MODELS, "view_classifier")
    times_ms = np.arange(300) * 10.0
    frames = FramesInMemory(np.zeros((300, 4, 4, 1), np.uint8))
    cine = Cine("fast", frames, frame_times_ms=times_ms, heart_rate_bpm=120)

    clips = choose_clips(card.network_as(ViewConfig), card.decision_as(ViewDecision).times, cine, VIEW_CLIPS)

    assert set(np.diff(clips, axis=1).ravel().tolist()) <= {2, 3}
    assert np.ptp(clips) < 50 + 8
    assert "of colour Doppler it sees the brightness alone" in card.limits


@pytest.mark.heavy
def test_labelled_sample_boxes_are_found(pipeline: EchoPipeline) -> None:
    """On the labelled sample cines, of phantom children that no training saw."""
    folder = StudyFolder(ROOT / "sample_studies")
    found = []
    for image_id in folder.annotated_ids():
        annotation, cine = folder.annotation(image_id), folder.read_cine(image_id)
        frame_indices = annotation.annotated_frames[::6]
        answer = pipeline.predict(cine, tasks=("boxes",), frame_indices=frame_indices)
        for truth in (box for box in annotation.boxes if box.frame_index in frame_indices):
            candidates = [b for b in answer.boxes if (b.frame_index, b.septum) == (truth.frame_index, truth.septum)]
            overlaps = [box_iou(truth.xyxy[None], b.xyxy[None])[0, 0] for b in candidates]
            found.append(max(overlaps, default=0.0))

    assert np.mean(found) > 0.4


@pytest.mark.heavy
def test_every_task_answers_on_every_sample(pipeline: EchoPipeline) -> None:
    folder = StudyFolder(ROOT / "sample_studies")
    views = []
    for image_id in folder.image_ids():
        cine = folder.read_cine(image_id)
        entry = pipeline.predict(cine, frame_indices=(0, cine.frame_count // 2)).to_json(cine, Path("x.dcm"))
        views.append(entry["view"]["view"])
        assert sum(entry["defect"]["probabilities"].values()) == pytest.approx(1, abs=1e-3)
        assert set(entry["defect"]["angles_deg"]) == {"Normal", "ASD", "VSD"}

    assert set(views) <= {"A4C", "SC-4C", "A5C", "A2C", "A3C-LV", "A3C-RV"}
    assert sum(view in ("A4C", "SC-4C") for view in views) >= 0.75 * len(views)
