# SPDX-License-Identifier: Apache-2.0
"""Folds by patient, and the table of the paper made again, on stills so easy that seconds suffice."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from echo_plugin.anatomy import View
from echo_plugin.errors import ModelMismatchError, TrainingDataError
from echo_plugin.io.patients_file import PATIENTS_FILE
from echo_plugin.metrics import Cohort
from echo_plugin.model_card import ModelCard, TrainingData
from echo_plugin.models.checkpoint import load_published, publish
from echo_plugin.models.view_classifier import ViewClassifier, ViewConfig
from echo_plugin.training.datasets import open_labelled_folder
from echo_plugin.training.options import TrainOptions
from echo_plugin.training.views import train_views
from echo_plugin.views import reproduce, still_encoder
from echo_plugin.views import reproduced_unit as module
from echo_plugin.views.evaluate import cross_validate_views
from echo_plugin.views.folds import TRAIN_CLIPS, clip_table, patient_folds, prepare_clips
from echo_plugin.views.report import open_set_metrics, reliability, view_metrics
from echo_plugin.views.reproduce import reproduce_views
from echo_plugin.views.reproduced_table import ROWS, describe, verdict

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

    frames = prepare_clips(labelled, labelled.cines, config, TrainOptions(**TINY))
    table = clip_table(frames, config, TWO, split)

    assert len(table.parts["train"]) == TRAIN_CLIPS * 3 * len(split.train)
    assert len(table.parts["test"]) == 3 * len(split.test)
    assert (table.parts["test"] % (TRAIN_CLIPS + 1) == TRAIN_CLIPS).all()


def publish_image_classifier(folder, **config):
    """Publish an image classifier of 32 px that has learned nothing."""
    network = ViewConfig(classes=2, input_size_px=32, temporal="mean", frames_per_clip=1)
    data = TrainingData("", 0, 0, "")
    numbers = dataclasses.asdict(network) | config
    card = ModelCard("view_classifier", "1", "view", "mean", ("A4C", "PSAX-AV"), 32, numbers, data)
    publish(folder, ViewClassifier(network).state_dict(), card)
    return folder / "view_classifier.safetensors"


def test_the_published_architecture_is_measured_by_folds(easy_studies, tmp_path):
    config = ViewConfig(classes=2, input_size_px=32, temporal="mean", frames_per_clip=1)
    data = TrainingData("", 0, 0, "")
    card = ModelCard("view_classifier", "1", "view", "mean", ("A4C", "PSAX-AV"), 32, dataclasses.asdict(config), data)
    publish(tmp_path, ViewClassifier(config).state_dict(), card)

    report = cross_validate_views(easy_studies, tmp_path, tmp_path / "out", folds=2, options=TrainOptions(**TINY))

    assert (report["patients"], report["cines"]) == (12, 36)
    assert sum(map(sum, report["confusion"])) == 36
    assert len(report["folds"]) == 2
    assert "child0" not in (tmp_path / "out" / "report.json").read_text()
    assert {"Confusion", "Reliability"} <= {plot["title"] for plot in report["plots"]}


@pytest.fixture(scope="module")
def reproduced(easy_studies, tmp_path_factory):
    out = tmp_path_factory.mktemp("reproduced")
    told: list[str] = []
    report = reproduce_views(
        easy_studies,
        out,
        seeds=1,
        folds=0,
        options=TrainOptions(**TINY),
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

    again = reproduce_views(easy_studies, out, seeds=1, folds=0, options=TrainOptions(**TINY), vocabulary=TWO)

    assert len(learned) == 1
    assert again == report


def test_a_file_that_was_written_anew_is_learned_anew(easy_studies, tmp_path):
    studies = tmp_path / "studies"
    shutil.copytree(easy_studies, studies)
    reproduce_views(studies, tmp_path / "out", seeds=1, folds=0, options=TrainOptions(**TINY), vocabulary=TWO)
    before = {path.name: json.loads(path.read_text())["key"] for path in (tmp_path / "out" / "runs").glob("*.json")}
    first = open_labelled_folder(studies).cines[0]
    os.utime(open_labelled_folder(studies).folder.entry(first.image_id).path, ns=(1, 1))

    reproduce_views(studies, tmp_path / "out", seeds=1, folds=0, options=TrainOptions(**TINY), vocabulary=TWO)

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
    taught = train_views(half, tmp_path / "models", TrainOptions(**TINY, temporal="image"), vocabulary=TWO)
    options, start = TrainOptions(**TINY), tmp_path / "models" / "view_classifier.safetensors"

    report = reproduce_views(
        easy_studies, tmp_path / "out", seeds=1, folds=0, options=options, vocabulary=TWO, start=start
    )

    assert taught.training_data.patients == 6
    split = taught.training_data.split
    assert split["validation"] > 0 < split["test"]
    assert report["patients"] == 6 + split["test"]
    assert report["begun_with"] == f"the encoder of view_classifier {taught.version}"
    monkeypatch.setattr(reproduce, "known_patients", lambda card, patients: dict.fromkeys(patients, "train"))
    with pytest.raises(TrainingDataError, match="learned from all 6 patients or were chosen by them"):
        reproduce_views(half, tmp_path / "none", seeds=1, folds=0, options=options, vocabulary=TWO, start=start)


def test_the_rows_are_of_the_backbone_and_size_of_the_encoder_that_they_begin_with(easy_studies, tmp_path):
    start = publish_image_classifier(tmp_path)

    taken = reproduce._as_begun(TrainOptions(), load_published(tmp_path, "view_classifier"))

    assert (taken.backbone, taken.image_size) == ("resnet18", 32)
    for asked, words in (
        (TrainOptions(backbone="resnet50"), "--backbone resnet18, not resnet50"),
        (TrainOptions(image_size=160), "--image-size 32, not 160"),
    ):
        with pytest.raises(ModelMismatchError, match=f"view_classifier 1, to begin with, is of {words}; leave it out"):
            reproduce_views(easy_studies, tmp_path / "out", seeds=1, folds=0, options=asked, start=start, is_still=True)


def test_an_encoder_held_still_embeds_once_and_joins_as_well(easy_studies, tmp_path, monkeypatch):
    taught = TrainOptions(**TINY | {"epochs": 12}, temporal="image", start="scratch")
    train_views(easy_studies, tmp_path / "models", taught, vocabulary=TWO)
    monkeypatch.setattr(reproduce, "known_patients", lambda card, patients: {})  # they would all be left out
    start, embedded = tmp_path / "models" / "view_classifier.safetensors", []
    real = still_encoder._embed
    monkeypatch.setattr(still_encoder, "_embed", lambda *a: embedded.append(1) or real(*a))
    options = TrainOptions(**TINY | {"epochs": 8})

    reports = [
        reproduce_views(
            easy_studies, tmp_path / str(seeds), seeds=seeds, folds=0, options=options, vocabulary=TWO, start=start,
            is_still=True,
        )
        for seeds in (1, 2)
    ]  # fmt: skip

    assert len(embedded) == 2  # once for all rows, however many seeds
    assert reports[0]["begun_with"].endswith(", held still")
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
