# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from echo_plugin.anatomy import VIEW_VOCABULARIES, View
from echo_plugin.answer.preprocess import to_model_input
from echo_plugin.answer.views import choose_clips, choose_rule, cine_scores
from echo_plugin.errors import TrainingDataError
from echo_plugin.model_card import LearnedTimes, OpenSetRule, ViewDecision
from echo_plugin.models.checkpoint import build_view_classifier, load_published
from echo_plugin.models.view_classifier import ViewClassifier, sample_clips
from echo_plugin.network_config import ViewConfig
from echo_plugin.training import view_stages, views
from echo_plugin.training.datasets import open_labelled_folder
from echo_plugin.training.options import ViewOptions
from echo_plugin.training.provenance import known_patients
from echo_plugin.training.view_stages import ClipChoice, ClipTable, learned_times, view_recipe
from echo_plugin.training.views import cines_of_views, train_views, view_config, words_for_other_views

torch.set_num_threads(1)
TINY = {"epochs": 2, "batch_size": 8, "image_size": 32, "frames_per_cine": 1, "device": "cpu", "start": "scratch"}
TWO = (View.A4C, View.PSAX_AV)
OURS = view_recipe(ViewOptions())


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("pooling", "sampling", "temporal", "frames"),
    [("image", None, "mean", 1), ("attention", "spaced", "attention", 4)],
)
def test_every_way_to_join_frames_is_published_and_rebuilt(
    easy_studies, tmp_path, monkeypatch, pooling, sampling, temporal, frames
):
    options = ViewOptions(**TINY, temporal=pooling, sampling=sampling)
    timed = []
    monkeypatch.setattr(views, "learned_times", lambda labelled, cines: timed.extend(cines) or LearnedTimes(7.0, 70.0))
    monkeypatch.setattr(views, "open_set_rule", lambda *_: OpenSetRule("energy", -1.5))

    card = train_views(easy_studies, tmp_path, options, vocabulary=TWO)

    published, state = load_published(tmp_path, "view_classifier")
    network = build_view_classifier(published)
    network.load_state_dict(state)
    assert (network.config.temporal, network.config.frames_per_clip) == (temporal, frames)
    assert network.config.sampling == (sampling or "consecutive")
    assert card.training.recipe == "ours"
    assert "of colour Doppler it sees the brightness alone" in card.limits
    assert card.decision == ViewDecision(OpenSetRule("energy", -1.5), LearnedTimes(7.0, 70.0))
    measured_by = {cine.patient_id for cine in timed}
    assert set(known_patients(card, sorted(measured_by)).values()) == {"train"}
    assert len(measured_by) == card.cohort.split["train"]
    assert card.training.mirror is False


def labelled_cines(*frame_counts):
    return [SimpleNamespace(frame_count=count) for count in frame_counts]


def test_the_open_set_limit_is_that_of_the_validation_cines_that_move(monkeypatch):
    """Of the logits that the network gives, those of a still, which would move the limit, do not count."""
    known = np.array([[4.0, 0.0], [3.0, 0.0], [0.0, 2.0], [0.2, 0.0], [90.0, 0.0]])
    views_of, members = torch.tensor([0, 0, 1, 1, 0]), torch.arange(5)
    table = ClipTable(torch.zeros(5), members[:, None], views_of, members, {"validation": members})
    monkeypatch.setattr(view_stages, "clip_logits", lambda model, table, chosen, stage: known[chosen.numpy()])
    names = [view.value for view in TWO]

    rule = views.open_set_rule(None, table, names, labelled_cines(12, 12, 12, 12, 1))

    scores = [cine_scores(row[None], names) for row in known[:4]]
    assert rule == choose_rule(scores, np.array([True, True, True, False]), np.zeros(4, bool))
    assert rule != views.open_set_rule(None, table, names, labelled_cines(12, 12, 12, 12, 12))
    assert views.open_set_rule(None, table, names, labelled_cines(1, 1, 1, 1, 1)) is None


def test_cines_of_views_outside_the_vocabulary_are_counted_and_named(easy_studies, tmp_path, caplog):
    options = ViewOptions(**TINY)

    with pytest.raises(
        TrainingDataError, match=r"at least 3 patients .*; 0 are annotated\. 36 cines are left out"
    ) as told:
        train_views(easy_studies, tmp_path, options, vocabulary=VIEW_VOCABULARIES["fetal-5"])

    assert "the vocabulary fetal-5 lacks (A4C 24, PSAX-AV 12)" in str(told.value)
    assert str(told.value).endswith("; --vocabulary ned-12 or ned-16 or paediatric has some of them.")
    assert "(A4C 24, PSAX-AV 12)" in caplog.text


def test_nothing_is_said_of_other_views_where_there_are_none(easy_studies, caplog):
    labelled = open_labelled_folder(easy_studies)

    assert len(cines_of_views(labelled, TWO)) == 36
    assert words_for_other_views(labelled, TWO) == caplog.text == ""


def test_the_intervals_that_clips_keep_are_those_of_the_training_cines():
    times = {"slow": 40.0, "slower": 60.0, "fast": 20.0, "unknown": None}
    folder = SimpleNamespace(entry=lambda name: SimpleNamespace(frame_time_ms=times[name]))
    labelled = SimpleNamespace(folder=folder)
    cines = [SimpleNamespace(image_id=name, frame_count=11) for name in times]
    still = SimpleNamespace(image_id="fast", frame_count=1)

    learned = learned_times(labelled, [*cines, still])

    assert learned == LearnedTimes(40.0, 400.0)
    assert learned_times(labelled, [still, cines[3]]) is None


SAMPLES = Path(__file__).resolve().parents[2] / "sample_studies"
SMALL = ViewConfig(classes=2, input_size_px=32)


def coarse(labelled, cine):
    """Return times three times as long as the interval of a cine."""
    step = labelled.folder.entry(cine.image_id).frame_time_ms
    return LearnedTimes(3 * step, step * cine.frame_count)


@pytest.mark.parametrize("sampling", ["consecutive", "spaced"])
def test_clips_to_learn_from_and_to_measure_are_those_that_a_prediction_takes(sampling):
    labelled, config = open_labelled_folder(SAMPLES), replace(SMALL, sampling=sampling)
    cine = labelled.cines[0]
    times = coarse(labelled, cine)

    prepared = ClipChoice(config, times, (4, 1)).prepare(labelled, [cine], None)

    read = labelled.folder.read_cine(cine.image_id)
    predicted = [choose_clips(config, times, read, count) for count in (4, 1)]
    pixels, _ = to_model_input(read, np.concatenate(predicted).ravel().tolist(), 32)
    assert torch.equal(prepared.pixels, pixels)
    assert not np.array_equal(predicted[0], sample_clips(config, cine.frame_count, 4))


def test_frames_of_another_choice_are_not_taken_from_the_cache(tmp_path):
    labelled = open_labelled_folder(SAMPLES)
    cine = labelled.cines[0]

    by_number = ClipChoice(SMALL, None, (4,)).prepare(labelled, [cine], tmp_path)
    by_time = ClipChoice(SMALL, coarse(labelled, cine), (4,)).prepare(labelled, [cine], tmp_path)

    assert by_number.pixels.shape == by_time.pixels.shape
    assert not torch.equal(by_number.pixels, by_time.pixels)


@pytest.mark.heavy
def test_a_training_by_other_times_does_not_go_on_with_an_interrupted_one(easy_studies, tmp_path, monkeypatch):
    class Enough(Exception):
        pass

    keys = []

    def stop(*_, kept, **__):
        keys.append(kept[1])
        raise Enough

    monkeypatch.setattr(views, "learn_views", stop)
    for times in (None, LearnedTimes(40.0, 400.0), LearnedTimes(20.0, 400.0), None):
        monkeypatch.setattr(views, "learned_times", lambda *_, times=times: times)
        with pytest.raises(Enough):
            train_views(easy_studies, tmp_path, ViewOptions(**TINY), vocabulary=TWO)

    assert keys[0] == keys[3]
    assert len(set(keys)) == 3


def table_of(pixels: torch.Tensor) -> ClipTable:
    rows = torch.arange(len(pixels)).reshape(-1, 4)
    labels = torch.arange(len(rows)) % 2
    members = torch.arange(len(rows))
    return ClipTable(pixels, rows, labels, members, {"train": members, "validation": members, "test": members})


def test_frames_of_a_clip_are_moved_and_changed_alike():
    frame = torch.randint(0, 255, (1, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    table = table_of(frame.repeat(8, 1, 1))

    clips = view_stages._varied(table, table.frames, torch.Generator().manual_seed(1), torch.device("cpu"), OURS)

    assert clips.shape == (2, 4, 1, 48, 48)
    assert not torch.allclose(clips[0, 0], clips[1, 0], atol=0.05)  # two clips: two draws
    spread = (clips - clips[:, :1]).abs().mean()  # speckle may differ from frame to frame, where they are may not
    assert spread < 0.25 * (clips[0, 0] - clips[1, 0]).abs().mean()


def test_left_and_right_are_never_exchanged():
    """A bright left half stays on the left in every one of many draws."""
    frame = torch.zeros(1, 48, 48, dtype=torch.uint8)
    frame[:, :, :24] = 200
    table = table_of(frame.repeat(4 * 64, 1, 1))

    clips = view_stages._varied(table, table.frames, torch.Generator().manual_seed(2), torch.device("cpu"), OURS)[
        :, 0, 0
    ]

    left, right = clips[:, 16:32, 12:20].mean(dim=(1, 2)), clips[:, 16:32, 28:36].mean(dim=(1, 2))
    assert (left > right).float().mean() > 0.97


def test_the_classifier_of_single_frames_follows_without_pulling_at_the_encoder():
    torch.manual_seed(0)
    model = ViewClassifier(
        ViewConfig(classes=2, input_size_px=48, stem_dropout=0, gru_dropout=0, head_dropout=0)
    ).eval()
    table = table_of(torch.randint(0, 255, (8, 48, 48), dtype=torch.uint8))
    chosen = torch.tensor([0, 1])

    view_stages._clip_loss(model, table, chosen, torch.Generator().manual_seed(0), OURS).backward()

    assert model.frame_head.weight.grad.abs().sum() > 0
    with_head = model.backbone.fc.weight.grad.clone()
    model.zero_grad()
    with torch.no_grad():
        model.frame_head.weight.mul_(50)
    view_stages._clip_loss(model, table, chosen, torch.Generator().manual_seed(0), OURS).backward()
    torch.testing.assert_close(model.backbone.fc.weight.grad, with_head)


def test_stages_share_the_epochs():
    options = ViewOptions(epochs=10)

    frames, clips = view_stages.stages_of(options, "weave", is_going_on=False)

    assert (frames.name, frames.epochs, clips.name, clips.epochs) == ("frames", 6, "clips", 4)
    assert [s.name for s in view_stages.stages_of(options, "mean", is_going_on=False)] == ["frames"]
    assert [s.epochs for s in view_stages.stages_of(options, "gru", is_going_on=True)] == [10]


def test_image_classifier_is_a_choice_of_the_one_model():
    config = view_config(ViewOptions(temporal="image", backbone="resnet50"), 12)

    assert (config.temporal, config.frames_per_clip, config.backbone) == ("mean", 1, "resnet50")
    assert np.isclose(config.stem_dropout, 0.1)


@pytest.mark.parametrize(("name", "value"), [("temporal", "lstm"), ("sampling", "random"), ("vocabulary", "adult")])
def test_unknown_choices_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"Training option {name} is '{value}'"):
        ViewOptions(**{name: value})
