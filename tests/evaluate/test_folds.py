# SPDX-License-Identifier: Apache-2.0
"""Folds by patient, and the table of the paper made again, on stills so easy that seconds suffice."""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from echo_plugin.anatomy import View
from echo_plugin.errors import ModelMismatchError, TrainingDataError
from echo_plugin.evaluate import folds
from echo_plugin.evaluate.folds import TRAIN_CLIPS, FoldAnswers, clip_table, fold_choice, patient_folds
from echo_plugin.evaluate.views import (
    _open_set_of_folds,
    cross_validate_views,
    open_set_metrics,
    reliability,
    view_metrics,
)
from echo_plugin.io.patients_file import PATIENTS_FILE
from echo_plugin.measure.classes import Cohort
from echo_plugin.model_card import LearnedTimes, ModelCard, Training, TrainingCohort
from echo_plugin.models.checkpoint import load_published, publish
from echo_plugin.models.view_classifier import ViewClassifier
from echo_plugin.network_config import ViewConfig
from echo_plugin.papers import frozen_encoder, views
from echo_plugin.papers import views as module
from echo_plugin.papers.views import ROWS, describe, reproduce_views, verdict
from echo_plugin.training import view_stages
from echo_plugin.training.datasets import open_labelled_folder
from echo_plugin.training.options import ViewOptions
from echo_plugin.training.splits import Split
from echo_plugin.training.views import train_views

pytestmark = pytest.mark.heavy

torch.set_num_threads(1)
TWO = (View.A4C, View.PSAX_AV)
TINY = {"epochs": 2, "batch_size": 8, "image_size": 32, "device": "cpu"}


@given(patients=st.integers(4, 40), folds=st.integers(2, 6), seed=st.integers(0, 9))
def test_every_patient_is_tested_once_and_chooses_no_checkpoint_of_its_own_fold(
    patients: int, folds: int, seed: int
) -> None:
    names = [f"p{n}" for n in range(patients)]
    if patients - -(-patients // folds) < 2 or patients < folds:
        with pytest.raises(TrainingDataError, match="cannot be split"):
            patient_folds(names, folds, seed)
        return

    splits = patient_folds(names * 3, folds, seed)

    assert sorted(p for split in splits for p in split.test) == sorted(names)
    for split in splits:
        assert set(split.train) | set(split.validation) | set(split.test) == set(names)
        assert split.train and split.validation


def test_what_is_measured_is_one_clip_from_the_middle(easy_studies):
    labelled = open_labelled_folder(easy_studies)
    config = ViewConfig(classes=2, input_size_px=32)
    split = patient_folds([c.patient_id for c in labelled.cines], 3, 0)[0]

    frames = fold_choice(config, None).prepare(labelled, labelled.cines, None)
    table = clip_table(frames, config, TWO, split)

    assert len(table.parts["train"]) == TRAIN_CLIPS * 3 * len(split.train)
    assert len(table.parts["test"]) == 3 * len(split.test)
    assert (table.parts["test"] % (TRAIN_CLIPS + 1) == TRAIN_CLIPS).all()


def test_an_encoder_held_still_looks_at_the_same_clips(tmp_path, monkeypatch):
    """Of moving cines: every frame is embedded once, and the clips are those that networks learn from otherwise."""
    labelled = open_labelled_folder(Path(__file__).resolve().parents[2] / "sample_studies")
    times, split = LearnedTimes(60.0, 400.0), Split((labelled.cines[0].patient_id,), (), (), 0)
    views = list(dict.fromkeys(cine.annotation.view for cine in labelled.cines))
    choices = [fold_choice(ViewConfig(2, input_size_px=32, sampling=each), times) for each in ("spaced", "consecutive")]
    monkeypatch.setattr(frozen_encoder, "_embed", lambda frames, *_: frames.pixels.flatten(1)[:, None].contiguous())

    embedded = frozen_encoder.embed_frames(
        labelled, labelled.cines, choices * 2, None, options=ViewOptions(**TINY), kept=tmp_path / "kept.safetensors"
    )

    assert len(embedded.prepared.pixels) <= sum(cine.frame_count for cine in labelled.cines)
    for choice in choices:
        still = embedded.table(choice, views, split)
        moving = clip_table(choice.prepare(labelled, labelled.cines, None), choice.config, views, split)
        assert torch.equal(still.pixels[still.frames], moving.pixels[moving.frames])
        assert torch.equal(embedded.values[still.frames, 0], moving.pixels[moving.frames].flatten(2).float())
        for part in ("train", "validation", "test"):
            assert torch.equal(still.parts[part], moving.parts[part])


def test_clips_of_a_fold_are_at_the_interval_of_the_patients_it_learns_from(
    easy_studies, tmp_path, monkeypatch, stages
):
    labelled = open_labelled_folder(easy_studies)
    splits = patient_folds([c.patient_id for c in labelled.cines], 3, 0)[:2]
    config, timed = ViewConfig(2, input_size_px=32, temporal="mean", frames_per_clip=1), []
    monkeypatch.setattr(folds, "learned_times", lambda _, cines: timed.append({c.patient_id for c in cines}))

    folds.cross_validate(
        labelled, labelled.cines, config, TWO, splits=splits, options=ViewOptions(**TINY), kept=tmp_path
    )

    assert timed == [set(split.train) for split in splits]


def publish_image_classifier(folder, **config):
    """Publish an image classifier of 32 px that has learned nothing."""
    fields = {field.name for field in dataclasses.fields(ViewConfig)} & config.keys()
    network = ViewConfig(2, input_size_px=32, temporal="mean", frames_per_clip=1, **{f: config[f] for f in fields})
    data = TrainingCohort("", 0, 0, "")
    training = Training(**{key: value for key, value in config.items() if key not in fields})
    card = ModelCard("view_classifier", "1", "view", "mean", ("A4C", "PSAX-AV"), network, data, training=training)
    publish(folder, ViewClassifier(network).state_dict(), card)
    return folder / "view_classifier.safetensors"


def test_the_published_architecture_is_measured_by_folds(easy_studies, tmp_path, monkeypatch):
    publish_image_classifier(tmp_path, recipe="usf-mae", mirror=True)
    out, options, mirrored = tmp_path / "out", ViewOptions(**TINY, seed=3), []
    as_it_is = view_stages.mirrored
    monkeypatch.setattr(view_stages, "mirrored", lambda *a: mirrored.append(1) or as_it_is(*a))

    report = cross_validate_views(easy_studies, tmp_path, out, folds=2, options=options)

    assert (report["patients"], report["cines"]) == (12, 36)
    assert sum(map(sum, report["confusion"])) == 36
    assert len(report["folds"]) == 2
    assert report["metrics"]["accuracy"]["baseline"] == pytest.approx(2 / 3)  # A4C is always the commonest
    assert (report["recipe"], report["mirror"]) == ("usf-mae", True)
    assert mirrored
    assert report["begun_with"] == "random weights"
    assert "the other folds, from random weights" in (out / "report.html").read_text()
    error = report["metrics"]["expected calibration error"]
    assert error["low"] <= error["value"] <= error["high"]
    assert "expected calibration error" in (out / "report.html").read_text()
    assert report["open_set_cines"] == 0  # they are stills
    assert report["command"].endswith(
        "evaluate views --studies easy0 --models DIR --out DIR --folds 2 --epochs 2 --seed 3"
    )
    assert "child0" not in (out / "report.json").read_text()
    assert {"Confusion", "Reliability"} <= {plot["title"] for plot in report["plots"]}

    (out / "folds" / "fold1.json").unlink()
    real, learned = folds._learn_fold, []
    monkeypatch.setattr(folds, "_learn_fold", lambda *a, **k: learned.append(1) or real(*a, **k))
    assert cross_validate_views(easy_studies, tmp_path, out, folds=2, options=options) == report
    assert len(learned) == 1


@pytest.fixture
def stages(monkeypatch):
    """The stages that trainings are given, while they learn nothing."""
    given: list[tuple[str, int]] = []

    def pretend(model, table, options, stage, **_):
        given.append((stage.name, stage.epochs))
        return SimpleNamespace(state=model.state_dict(), best_metric=0.0)

    monkeypatch.setattr(folds, "learn_stage", pretend)
    return given


@pytest.mark.parametrize(("temporal", "expected"), [("mean", [("frames", 10)]), ("gru", [("frames", 6), ("clips", 4)])])
def test_every_architecture_learns_for_all_the_epochs(easy_studies, tmp_path, stages, temporal, expected):
    labelled = open_labelled_folder(easy_studies)
    split = patient_folds([c.patient_id for c in labelled.cines], 3, 0)[:1]
    config = ViewConfig(classes=2, input_size_px=32, temporal=temporal)
    options = ViewOptions(**TINY | {"epochs": 10})

    folds.cross_validate(labelled, labelled.cines, config, TWO, splits=split, options=options, kept=tmp_path)

    assert stages == expected


def test_every_row_of_the_table_learns_for_all_the_epochs(easy_studies, tmp_path, stages):
    options = ViewOptions(**TINY | {"epochs": 10})

    reproduce_views(easy_studies, tmp_path, seeds=1, folds=0, options=options, vocabulary=TWO)

    assert stages[0] == ("frames", 6)  # once, for all rows
    of_images = [row for row in ROWS if row.pooling in ("image", "mean")]
    assert sorted(stages[1:]) == [("clips", 4)] * (len(ROWS) - len(of_images)) + [("frames", 4)] * len(of_images)


def test_folds_say_of_cines_but_not_of_stills_whether_their_view_is_standard(easy_studies):
    """Of a fold whose validation patients set no limit nothing is said."""
    cines = [dataclasses.replace(c, frame_count=8) for c in open_labelled_folder(easy_studies).cines[:4]]
    cines[0] = dataclasses.replace(cines[0], frame_count=1)
    classes = [cine.annotation.view.value for cine in cines]
    assert set(classes) == {"A4C", "PSAX-AV"}
    known = np.array([["A4C", "PSAX-AV"].index(name) for name in classes])
    limited = FoldAnswers(np.eye(2)[known[:3]], known[:3], np.arange(3), 0.0, np.array([True, True, False]))
    unlimited = FoldAnswers(np.eye(2)[known[3:]], known[3:], np.array([3]), 0.0)

    metrics, count = _open_set_of_folds([limited, unlimited], cines, ("A4C", "PSAX-AV"), "folds", 0)

    assert count == 2
    assert metrics["standard views kept"].value == 0.5
    assert metrics["standard views kept"].split == "folds"


def test_what_a_fold_says_is_kept_whole():
    answers = FoldAnswers(np.array([[0.1, 2 / 3]]), np.array([1]), np.array([7]), 0.5, np.array([True]))

    again = FoldAnswers.from_json(json.loads(json.dumps(answers.to_json())))

    assert again.to_json() == answers.to_json()
    np.testing.assert_array_equal(again.logits, answers.logits)
    assert FoldAnswers.from_json(dataclasses.replace(answers, is_standard=None).to_json()).is_standard is None


@pytest.fixture(scope="module")
def reproduced(easy_studies, tmp_path_factory):
    out = tmp_path_factory.mktemp("reproduced")
    told: list[str] = []
    report = reproduce_views(
        easy_studies,
        out,
        seeds=1,
        folds=0,
        options=ViewOptions(**TINY),
        vocabulary=TWO,
        progress=lambda done, total, note: told.append(f"{done}/{total}"),
    )
    return out, report, told


def test_every_row_is_measured_on_the_same_cines(reproduced):
    out, report, told = reproduced

    assert [row["name"] for row in report["rows"]] == [row.name for row in ROWS]
    assert told[-1] == f"{len(ROWS)}/{len(ROWS)}"
    kept = [json.loads(path.read_text()) for path in sorted((out / "runs").glob("*.json"))]
    assert len(kept) == len(ROWS)
    assert all(outcome["cines"] == kept[0]["cines"] for outcome in kept)
    assert "child0" not in "".join(path.read_text() for path in out.rglob("*.json"))
    table = (out / "table.md").read_text()
    assert "93.88/93.65/93.88/93.73" in table and "weaving over plain GRU, consecutive" in table


def test_a_run_that_was_stopped_goes_on_and_other_numbers_begin_anew(reproduced, easy_studies, monkeypatch):
    out, report, _ = reproduced
    learned = []
    real = module.learn_clip_stage
    monkeypatch.setattr(module, "learn_clip_stage", lambda *a: learned.append(1) or real(*a))
    next((out / "runs").glob("*weave-spaced.json")).unlink()

    again = reproduce_views(easy_studies, out, seeds=1, folds=0, options=ViewOptions(**TINY), vocabulary=TWO)

    assert len(learned) == 1
    assert again == report


def test_a_file_that_was_written_anew_is_learned_anew(easy_studies, tmp_path):
    studies = tmp_path / "studies"
    shutil.copytree(easy_studies, studies)
    reproduce_views(studies, tmp_path / "out", seeds=1, folds=0, options=ViewOptions(**TINY), vocabulary=TWO)
    before = {path.name: json.loads(path.read_text())["key"] for path in (tmp_path / "out" / "runs").glob("*.json")}
    first = open_labelled_folder(studies).cines[0]
    os.utime(open_labelled_folder(studies).folder.entry(first.image_id).path, ns=(1, 1))

    reproduce_views(studies, tmp_path / "out", seeds=1, folds=0, options=ViewOptions(**TINY), vocabulary=TWO)

    after = {path.name: json.loads(path.read_text())["key"] for path in (tmp_path / "out" / "runs").glob("*.json")}
    assert before.keys() == after.keys()
    assert not set(before.values()) & set(after.values())


def test_patients_who_taught_or_chose_the_first_weights_take_no_part(easy_studies, tmp_path, monkeypatch):
    """An encoder that learned from half the children begins rows on the other half only."""
    half = tmp_path / "half"
    shutil.copytree(easy_studies, half)
    kept = [line for line in (half / PATIENTS_FILE).read_text().splitlines()[1:] if int(line[-2:]) < 6]
    for path in (half / "annotations").glob("*.json"):
        if json.loads(path.read_text())["image_id"] not in {line.split(",")[0] for line in kept}:
            path.unlink()
    taught = train_views(half, tmp_path / "models", ViewOptions(**TINY, temporal="image"), vocabulary=TWO)
    options, start = ViewOptions(**TINY), tmp_path / "models" / "view_classifier.safetensors"

    report = reproduce_views(
        easy_studies, tmp_path / "out", seeds=1, folds=0, options=options, vocabulary=TWO, start=start
    )

    assert taught.cohort.patients == 6
    split = taught.cohort.split
    assert split["validation"] > 0 < split["test"]
    assert report["patients"] == 6 + split["test"]
    assert report["begun_with"] == f"the encoder of view_classifier {taught.version}"
    monkeypatch.setattr(views, "seen_patients", lambda card, patients: frozenset(patients))
    with pytest.raises(TrainingDataError, match="learned from all 6 patients or were chosen by them"):
        reproduce_views(half, tmp_path / "none", seeds=1, folds=0, options=options, vocabulary=TWO, start=start)


def test_the_rows_are_of_the_backbone_and_size_of_the_encoder_that_they_begin_with(easy_studies, tmp_path):
    start = publish_image_classifier(tmp_path)

    taken = views._as_begun(ViewOptions(), load_published(tmp_path, "view_classifier"))

    assert (taken.backbone, taken.image_size) == ("resnet18", 32)
    for asked, words in (
        (ViewOptions(backbone="resnet50"), "--backbone resnet18, not resnet50"),
        (ViewOptions(image_size=160), "--image-size 32, not 160"),
    ):
        with pytest.raises(ModelMismatchError, match=f"view_classifier 1, to begin with, is of {words}; leave it out"):
            reproduce_views(
                easy_studies, tmp_path / "out", seeds=1, folds=0, options=asked, start=start, is_frozen=True
            )


@pytest.mark.parametrize("backbone", ["resnet18", "vit_micro_patch8"])
def test_rows_begin_with_the_whole_encoder_and_see_what_it_was_taught_to_see(tmp_path, stages, backbone):
    start = publish_image_classifier(tmp_path, backbone=backbone, is_standardised=False, border=0.05)
    begun = load_published(start.parent, "view_classifier")
    options = views._as_begun(ViewOptions(**TINY | {"image_size": None}), begun)
    material = module.Material(SimpleNamespace(), (), TWO, options, tmp_path, begun, is_frozen=False)
    config = material.config(ROWS[-1])

    state, _ = folds.learn_frame_stage(None, config, options, start=begun)

    assert (config.backbone, config.is_standardised, config.border) == (backbone, False, 0.05)
    encoder = {key: value for key, value in begun[1].items() if key.startswith("backbone.")}
    assert any("fc" in key or "norm" in key for key in encoder)
    for key, value in encoder.items():
        torch.testing.assert_close(state[key], value)


def test_an_encoder_of_another_backbone_begins_no_row(tmp_path):
    begun = load_published(publish_image_classifier(tmp_path).parent, "view_classifier")
    other = ViewConfig(classes=2, input_size_px=32, backbone="resnet50")

    with pytest.raises(ModelMismatchError, match=r"view_classifier .*'backbone\.\S+'.*; use its backbone\."):
        folds.learn_frame_stage(None, other, ViewOptions(**TINY), start=begun)


def test_a_start_that_does_not_list_its_patients_is_refused(easy_studies, tmp_path):
    start, options = publish_image_classifier(tmp_path), ViewOptions(**TINY)

    with pytest.raises(TrainingDataError, match="view_classifier 1, to begin with, does not list the patients"):
        reproduce_views(easy_studies, tmp_path, seeds=1, folds=0, options=options, vocabulary=TWO, start=start)
    assert not (tmp_path / "runs").exists()


def test_an_encoder_held_still_embeds_once_and_joins_as_well(easy_studies, tmp_path, monkeypatch):
    taught = ViewOptions(**TINY | {"epochs": 12}, temporal="image", start="scratch")
    train_views(easy_studies, tmp_path / "models", taught, vocabulary=TWO)
    monkeypatch.setattr(views, "seen_patients", lambda card, patients: frozenset())  # they would all be left out
    start, embedded = tmp_path / "models" / "view_classifier.safetensors", []
    real = frozen_encoder._embed
    monkeypatch.setattr(frozen_encoder, "_embed", lambda *a: embedded.append(1) or real(*a))
    options = ViewOptions(**TINY | {"epochs": 8})

    reports = [
        reproduce_views(
            easy_studies, tmp_path / str(seeds), seeds=seeds, folds=0, options=options, vocabulary=TWO, start=start,
            is_frozen=True,
        )
        for seeds in (1, 2)
    ]  # fmt: skip

    assert len(embedded) == 2  # once for all rows, however many seeds
    assert reports[0]["begun_with"].endswith(", frozen")
    accuracy = {row["name"]: row["metrics"]["accuracy"]["value"] for row in reports[1]["rows"]}
    assert accuracy["image classifier"] > 0.8
    assert len(reports[1]["rows"][0]["accuracy_of_units"]) == 2


def test_paired_differences_are_of_the_same_cines(reproduced):
    _, report, _ = reproduced
    rows = {row["name"]: row["metrics"]["accuracy"]["value"] for row in report["rows"]}

    difference = report["differences"][0]

    gain = rows["GRU + weaving, 4 consecutive"] - rows["GRU, 4 consecutive"]
    assert difference["value"] == pytest.approx(gain)
    assert describe(report).count("|") > 50


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(0.1, 0.2, "helps"), (-0.2, -0.1, "hurts"), (-0.1, 0.1, "not shown"), (None, None, "not shown")],
)
def test_a_difference_helps_only_if_its_interval_excludes_zero(low, high, word):
    assert verdict(low, high) == word


def test_confusion_of_the_hard_pair_is_named():
    cohort = Cohort(("a", "b", "c", "d"), "test")
    classes = ["PSAX-MV", "PSAX-PM", "A4C"]
    answers = np.eye(3)[[1, 1, 2, 2]]  # truth MV, PM, MV, A4C

    metrics = view_metrics(cohort, np.array([0, 1, 0, 2]), answers, classes, None)

    assert metrics["confused PSAX-MV / PSAX-PM"].value == pytest.approx(1 / 3)
    assert metrics["accuracy"].value == 0.5
    assert metrics["balanced_accuracy"].value == pytest.approx(2 / 3)


def test_open_set_figures_count_standard_and_strange_cines_apart():
    cohort = Cohort(("a", "a", "b", "c"), "test")

    strange, standard = np.array([False, False, True, True]), np.array([True, False, False, True])
    metrics = open_set_metrics(cohort, strange, standard, np.array([True, True, False, False]))

    assert metrics["standard views kept"].value == 0.5
    assert metrics["no standard view, and said so"].value == 0.5
    assert metrics["no standard view, and said so"].patients == 2
    assert metrics["accuracy, no standard view among the answers"].value == 0.5


def test_reliability_of_a_calibrated_answer_lies_on_the_diagonal():
    rng = np.random.default_rng(0)
    p = rng.uniform(0.5, 1, 20000)
    truth = (rng.uniform(size=len(p)) > p).astype(int)

    said, right = reliability(np.stack([p, 1 - p], axis=1), truth)

    np.testing.assert_allclose(said, right, atol=0.03)
