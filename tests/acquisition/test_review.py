# SPDX-License-Identifier: Apache-2.0
"""A review judges nobody by what learned from them, keeps old labels, and says how people agree."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from echo_plugin.acquisition import label_quality
from echo_plugin.acquisition import review as review_module
from echo_plugin.acquisition.review import (
    agreement,
    cohens_kappa,
    describe_review,
    fold_judges,
    keep_judgements,
    link_cines,
    published_judge,
    review,
    split_folds,
    to_json,
    train_folds,
    write_review,
)
from echo_plugin.acquisition.score_store import SCORES_FILE, ScoreStore
from echo_plugin.anatomy import Defect, Septum, View
from echo_plugin.annotations import Annotation, SeptalBox
from echo_plugin.errors import TrainingDataError
from echo_plugin.io.study_folder import StudyFolder
from echo_plugin.model_card import STARTERS
from echo_plugin.training import detector
from echo_plugin.training.datasets import open_labelled_folder
from echo_plugin.training.options import DetectorOptions, EpochStatus

torch.set_num_threads(1)


def test_every_patient_is_in_one_fold_and_the_seed_decides():
    patients = [f"p{n}" for n in range(10)]

    folds = split_folds(patients * 2, 3, seed=1)

    assert sorted(p for fold in folds for p in fold) == sorted(patients)
    assert sorted(map(len, folds)) == [3, 3, 4]
    assert folds == split_folds(patients, 3, seed=1)
    with pytest.raises(TrainingDataError, match="2 patients cannot be reviewed in 3 folds"):
        split_folds(["a", "b"], 3, seed=0)


def test_a_fold_detector_never_meets_the_patients_it_judges(strange_studies, published_detector):
    met, told = [], []

    def train(patients, models, progress):
        met.append(set(patients))
        progress(1, 20, "epochs")
        for path in published_detector.glob("septal_detector.*"):
            shutil.copy(path, models / path.name)

    judged = []
    judges = fold_judges(train, 3, seed=0, device="cpu", progress=lambda *said: told.append(said))
    for _, cines in judges(open_labelled_folder(strange_studies)):
        judged.append({cine.patient_id for cine in cines})

    assert all(not (seen & theirs) for seen, theirs in zip(met, judged, strict=True))
    assert told == [(1, 20, f"fold {number} of 3, epochs") for number in (1, 2, 3)]
    assert set.union(*judged) == {c.patient_id for c in open_labelled_folder(strange_studies).cines}


def test_a_fold_tells_of_its_frames_and_of_every_epoch(strange_studies, published_detector, tmp_path, monkeypatch):
    told = []

    def train_detector(studies, models, options, on_epoch, progress):
        progress(5, 6, "frames")
        on_epoch(EpochStatus(2, 3, 0.0, 0.1, None, None))

    monkeypatch.setattr(detector, "train_detector", train_detector)
    train = train_folds(strange_studies, published_detector, DetectorOptions())

    train(["stranger03"], tmp_path, lambda *said: told.append(said))

    assert told == [(5, 6, "frames"), (2, 3, "epochs")]


def test_a_fold_folder_holds_its_patients_and_nobody_else(strange_studies, tmp_path):
    labelled = open_labelled_folder(strange_studies)
    (tmp_path / "fold").mkdir()

    link_cines(labelled, ["stranger03"], tmp_path / "fold")

    linked = StudyFolder(tmp_path / "fold")
    assert {linked.entry(i).patient_id for i in linked.image_ids()} == {"stranger03"}
    assert all(linked.annotation(i) == labelled.folder.annotation(i) for i in linked.image_ids())


@pytest.mark.heavy
def test_a_review_by_folds_trains_and_judges_every_label(strange_studies, published_detector):
    options = DetectorOptions(epochs=1, batch_size=8, image_size=64, device="cpu")
    train = train_folds(strange_studies, published_detector, options)

    result = review(strange_studies, fold_judges(train, 2, seed=0, device="cpu"), judges="two detectors")

    assert (len(result.doubts), result.left_out) == (36, 0)


def test_the_published_detector_judges_strangers_only(easy_studies, strange_studies, published_detector):
    def patients_judged(studies):
        ((_, cines),) = published_judge(published_detector, "cpu")(open_labelled_folder(studies))
        return {cine.patient_id for cine in cines}

    assert len(patients_judged(strange_studies)) == 12
    assert len(patients_judged(easy_studies)) == 2  # the test part of its split


@pytest.mark.heavy
def test_a_review_is_written_kept_and_found_by_the_server(strange_studies, published_detector, tmp_path):
    result = review(strange_studies, published_judge(published_detector, "cpu"), judges="the published detector")
    write_review(tmp_path / "out", result)
    keep_judgements(strange_studies, result)

    facts = json.loads((tmp_path / "out" / "review.json").read_text())
    page = (tmp_path / "out" / "review.html").read_text()
    qualities = [cine["quality"] for cine in facts["cines"]]
    kept = ScoreStore(strange_studies / SCORES_FILE).judgements()
    assert facts == json.loads(json.dumps(to_json(result)))
    assert qualities == sorted(qualities)
    assert "data:image/png" in page
    assert "stranger" not in page + json.dumps(facts)
    assert (tmp_path / "out" / "review.html").stat().st_mode & 0o077 == 0
    assert kept.keys() == {cine["image_id"] for cine in facts["cines"]}
    assert describe_review(result).splitlines()[1].split()[1] == facts["cines"][0]["image_id"]


@pytest.mark.heavy
def test_a_confirmed_label_is_counted_and_not_listed(small, published_detector, tmp_path):
    folder = StudyFolder(small)
    kept, other, _ = folder.annotated_ids()
    folder.save_annotation(folder.annotation(kept), author="second reader")
    folder.save_annotation(dataclasses.replace(folder.annotation(other), view=View.OTHER), author="second reader")

    result = review(small, published_judge(published_detector, "cpu"), judges="the published detector")
    write_review(tmp_path / "out", result)
    keep_judgements(small, result)

    page = (tmp_path / "out" / "review.html").read_text()
    facts = json.loads((tmp_path / "out" / "review.json").read_text())
    assert [one.judgement.image_id for one in result.confirmed] == [kept]
    assert (facts["confirmed"], len(facts["cines"])) == (1, 2)
    said = "Confirmed labels, looked at again by a person, are not listed: 1"
    assert said in page
    assert said in describe_review(result)
    assert kept not in page + json.dumps(facts) + describe_review(result)
    assert ScoreStore(small / SCORES_FILE).judgements()[kept].revision == 2  # the server counts it as confirmed


@pytest.mark.heavy
def test_a_review_holds_no_pictures_and_reads_again_those_it_draws(
    strange_studies, published_detector, tmp_path, monkeypatch
):
    seen, drawn = {}, []
    look, draw = label_quality.to_model_input, review_module.draw_pictures
    monkeypatch.setattr(
        label_quality, "to_model_input", lambda cine, *a, **k: seen.setdefault(cine.image_id, look(cine, *a, **k))
    )
    monkeypatch.setattr(review_module, "draw_pictures", lambda pictures: drawn.extend(pictures) or draw(pictures))

    result = review(strange_studies, published_judge(published_detector, "cpu"), judges="the published detector")
    held = [value for doubt in result.doubts for value in vars(doubt.judged).values() if isinstance(value, np.ndarray)]
    write_review(tmp_path, result)

    assert held == []
    assert len(drawn) == review_module.PICTURES < len(result.doubts)
    for doubt, picture in zip(result.doubts, drawn, strict=False):  # stills: a frame each
        np.testing.assert_array_equal(picture.pixels, seen[doubt.judgement.image_id][0][0].numpy())


@pytest.mark.heavy
def test_a_review_leaves_out_and_counts_what_it_cannot_use(strange_studies, published_detector, caplog):
    nobodys, damaged, old, *_ = StudyFolder(strange_studies).annotated_ids()
    csv = strange_studies / "patients.csv"
    csv.write_text("".join(row for row in csv.read_text().splitlines(True) if not row.startswith(f"{nobodys},")))
    (strange_studies / "annotations" / f"{damaged}.json").write_text("{")
    history = strange_studies / "annotations" / "history" / old
    history.mkdir(parents=True, exist_ok=True)
    (history / "1.json").write_text("{")

    result = review(strange_studies, published_judge(published_detector, "cpu"), judges="the published detector")

    assert (len(result.doubts), result.left_out) == (34, 2)
    assert f"Annotators of {old} are not compared" in caplog.text


def test_a_new_submission_is_a_new_revision_with_its_author_and_keeps_the_old(strange_studies):
    studies = StudyFolder(strange_studies)
    image_id = studies.annotated_ids()[0]
    old = studies.annotation(image_id)

    saved = studies.save_annotation(dataclasses.replace(old, view=View.OTHER), author="second reader")

    history = studies.history(image_id)
    assert [a.revision for a in history] == [1, 2]
    assert history[0] == old
    assert (history[1], history[1].author) == (saved, "second reader")
    assert history[1].saved_at > history[0].saved_at


def annotation(author: str, x: float, defect: Defect, frames=(0, 1)) -> Annotation:
    box = SeptalBox(0, x, 10, x + 20, 50, Septum.INTERATRIAL)
    return Annotation("a", (box,), frames, View.A4C, defect, author=author, revision=1)


def test_agreement_compares_the_last_word_of_each_annotator():
    history = [annotation("r1", 90, Defect.VSD), annotation("r1", 10, Defect.ASD), annotation("r2", 15, Defect.VSD)]

    result = agreement([history, [annotation("r1", 0, Defect.ASD)], []])

    assert (result.cines, result.pairs, result.frames) == (1, 1, 2)
    assert result.mean_iou == pytest.approx(15 / 25)
    assert result.kappa["defect"] == pytest.approx(0)
    assert result.kappa["interatrial"] == pytest.approx(1)
    assert result.kappa["view"] is None  # one and the same answer: not defined


def test_annotators_are_not_compared_in_a_septum_that_one_of_them_did_not_look_for():
    weak = SeptalBox(0, 60, 10, 80, 50, Septum.INTERVENTRICULAR, 0.5)
    drawn = [dataclasses.replace(weak, score=None), SeptalBox(0, 10, 10, 30, 50, Septum.INTERATRIAL)]
    empty = Annotation("b", (), (0,), author="r1")

    def said(boxes, author, image_id="a"):
        return Annotation(image_id, tuple(boxes), (0,), author=author)

    result = agreement(
        [
            [said([weak], "import"), said(drawn, "r1")],
            [said(drawn, "r1", "b"), said(drawn, "r2", "b")],
            [empty, dataclasses.replace(empty, author="r2")],
        ]
    )

    assert result.kappa["interatrial"] == pytest.approx(1)
    assert result.kappa["interventricular"] == pytest.approx(1)
    assert result.frames == 3


def test_kappa_is_agreement_beyond_chance_where_there_is_something_to_agree_on():
    pairs = [("ASD", "ASD")] * 4 + [("VSD", "VSD")] * 3 + [("ASD", "VSD")] * 2 + [("VSD", "ASD")]

    by_chance = 0.6 * 0.5 + 0.4 * 0.5
    assert cohens_kappa(pairs) == pytest.approx((0.7 - by_chance) / (1 - by_chance))
    assert cohens_kappa([]) is None
    assert cohens_kappa([("ASD", "ASD")] * 3) is None


@pytest.fixture
def beginning(monkeypatch, tmp_path):
    """Return what a fold's training is told to begin with, instead of training."""
    told = []
    monkeypatch.setattr(detector, "train_detector", lambda studies, models, options, **rest: told.append(options))

    def ask(studies, models, patient):
        train_folds(studies, models, DetectorOptions())([patient], tmp_path, lambda *said: None)
        return told[-1].start, told[-1].starter

    return ask


def test_the_published_detector_begins_where_it_knows_nobody(strange_studies, published_detector, beginning):
    assert beginning(strange_studies, published_detector, "stranger03") == ("starter", published_detector)


def test_the_starter_weights_begin_where_the_published_detector_knows_a_patient(
    easy_studies, published_detector, beginning
):
    assert beginning(easy_studies, published_detector, "child03") == ("starter", STARTERS)


def test_nothing_begins_where_both_know_a_patient_or_do_not_say(
    easy_studies, published_detector, beginning, monkeypatch, tmp_path
):
    unsaid = tmp_path / "unsaid"
    shutil.copytree(published_detector, unsaid)
    monkeypatch.setattr(review_module, "STARTERS", unsaid)

    assert beginning(easy_studies, published_detector, "child03") == ("scratch", None)
