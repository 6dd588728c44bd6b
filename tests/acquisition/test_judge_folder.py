# SPDX-License-Identifier: Apache-2.0
"""Labels are judged by a detector that saw nothing of the patient, once for each revision while one measure holds."""

import numpy as np
import pytest
import torch

from echo_plugin.acquisition import score_folder
from echo_plugin.acquisition.label_quality import LabelJudge, label_quality
from echo_plugin.acquisition.score_folder import JudgedLabels, judge_labels
from echo_plugin.acquisition.score_store import Judgement, ScoreStore
from echo_plugin.acquisition.uncertainty import Calibration
from echo_plugin.anatomy import Septum
from echo_plugin.annotations import Annotation, SeptalBox
from echo_plugin.io.datasets.source_cine import WEAK_SCORE
from echo_plugin.io.study_folder import StudyFolder
from echo_plugin.training.datasets import open_labelled_folder

pytestmark = pytest.mark.heavy

torch.set_num_threads(1)


def test_a_detector_published_while_labels_are_judged_judges_none_of_them(
    small, publish_another, tmp_path, monkeypatch
):
    store, (models, publish_wider), look = ScoreStore(tmp_path / "s.sqlite"), publish_another, LabelJudge.detect

    def publish_and_look(self, folder, cine):
        publish_wider()
        return look(self, folder, cine)

    monkeypatch.setattr(LabelJudge, "detect", publish_and_look)

    assert judge_labels(StudyFolder(small), models, store, device="cpu").judged == 0
    assert store.judgements() == {}


def test_a_wall_that_an_import_did_not_look_for_is_not_judged_absent(small, published_detector):
    studies = StudyFolder(small)
    image_id = studies.annotated_ids()[0]
    weak = SeptalBox(0, 10, 10, 30, 40, Septum.INTERVENTRICULAR, WEAK_SCORE)
    studies.save_annotation(Annotation(image_id, (weak,), (0,)), author="import")
    labelled = open_labelled_folder(small)
    (cine,) = [one for one in labelled.cines if one.image_id == image_id]

    looked = LabelJudge(published_detector, device="cpu").detect(labelled, cine)

    assert [label.unsought for label in looked.labels] == [(0,)]
    assert looked.matches[:, 0].tolist() == [1.0]


def test_a_label_that_cannot_be_used_is_left_out_and_the_others_are_judged(
    strange_studies, published_detector, tmp_path, caplog
):
    folder, store = StudyFolder(strange_studies), ScoreStore(tmp_path / "scores.sqlite")
    nobodys, damaged, *others = folder.annotated_ids()
    csv = strange_studies / "patients.csv"
    csv.write_text("".join(row for row in csv.read_text().splitlines(True) if not row.startswith(f"{nobodys},")))
    (strange_studies / "annotations" / f"{damaged}.json").write_text("{")
    folder.refresh()

    labels = judge_labels(folder, published_detector, store, device="cpu")

    assert labels == JudgedLabels(judged=len(others), left_out=2)
    assert store.judgements().keys() == set(others)
    assert all(f"Label of {image_id} is left out" in caplog.text for image_id in (nobodys, damaged))


def test_labels_are_looked_at_first_then_judged_by_one_calibration(
    strange_studies, published_detector, tmp_path, monkeypatch
):
    folder, seen, asked = StudyFolder(strange_studies), [], []
    look, fit = LabelJudge.detect, score_folder.calibrate
    monkeypatch.setattr(LabelJudge, "detect", lambda self, *a: seen.append(look(self, *a)) or seen[-1])
    monkeypatch.setattr(score_folder, "calibrate", lambda *a: asked.append(sum(map(len, a[1]))) or fit(*a))
    store = ScoreStore(tmp_path / "scores.sqlite")

    labels = judge_labels(folder, published_detector, store, device="cpu")

    together = fit(seen[0].operating_score, [one.matches for one in seen])
    kept = store.judgements()
    assert labels.judged == len(kept) == 36
    assert set(asked) == {sum(len(one.matches) for one in seen)}
    for one in seen:
        expected = label_quality(one.labels, one.predictions, together).overall.min()
        assert kept[one.cine.image_id].quality == pytest.approx(expected)


def test_a_scoring_stopped_between_labels_keeps_those_it_looked_at(strange_studies, published_detector, tmp_path):
    folder, store, asked = StudyFolder(strange_studies), ScoreStore(tmp_path / "scores.sqlite"), []

    first = judge_labels(
        folder, published_detector, store, device="cpu", should_stop=lambda: asked.append(1) or len(asked) > 5
    )
    second = judge_labels(folder, published_detector, store, device="cpu")

    assert (first.judged, second.judged) == (5, 31)


FEWEST = 20


@pytest.fixture
def fits_to_few(monkeypatch):
    """Scores are calibrated from FEWEST boxes on, whatever they say."""

    def fit(middle, matches):
        count = sum(map(len, matches))
        return Calibration(middle) if count < FEWEST else Calibration(0.3, 2.0, fitted_to=count)

    monkeypatch.setattr(score_folder, "calibrate", fit)


def test_labels_judged_before_scores_could_be_calibrated_are_judged_again_once(
    strange_studies, published_detector, tmp_path, fits_to_few
):
    folder, asked = StudyFolder(strange_studies), []
    early, at_once = ScoreStore(tmp_path / "a.sqlite"), ScoreStore(tmp_path / "b.sqlite")

    def judge(store, stop=lambda: False):
        return judge_labels(folder, published_detector, store, device="cpu", should_stop=stop).judged

    first = judge(early, lambda: asked.append(1) or len(asked) > 5)
    alone = {j.fitted_to for j in early.judgements().values()}
    second, third = judge(early), judge(early)
    judge(at_once)

    assert (first, alone, second, third) == (5, {0}, 36, 0)
    both = early.judgements(), at_once.judgements()
    assert len({j.fitted_to for kept in both for j in kept.values()}) == 1
    assert {i: j.quality for i, j in both[0].items()} == pytest.approx({i: j.quality for i, j in both[1].items()})


def test_labels_judged_by_half_of_todays_boxes_or_fewer_are_judged_again(
    strange_studies, published_detector, tmp_path, fits_to_few, monkeypatch
):
    store = ScoreStore(tmp_path / "s.sqlite")
    monkeypatch.setattr(score_folder, "PORTION", 12)

    judged = judge_labels(StudyFolder(strange_studies), published_detector, store, device="cpu").judged

    fitted_to = [j.fitted_to for j in store.judgements().values()]
    assert judged == len(fitted_to) == 36
    assert 2 * min(fitted_to) > max(fitted_to) > min(fitted_to) > 0
    assert fitted_to.count(max(fitted_to)) == 24  # the last portion, and the first once more


def test_judging_is_calibrated_by_its_own_detector_on_todays_labels(strange_studies, published_detector, tmp_path):
    folder, clean, other = (
        StudyFolder(strange_studies),
        ScoreStore(tmp_path / "a.sqlite"),
        ScoreStore(tmp_path / "b.sqlite"),
    )
    scores = np.linspace(0.05, 0.95, 600)
    misleading = np.column_stack([np.zeros(600), scores, np.where(scores > 0.2, 0.9, 0.1)])
    for image_id in folder.annotated_ids()[:3]:
        other.judge(Judgement(image_id, 1, "older", 0.5, (0,), "words", misleading))

    for store in (clean, other):
        judge_labels(folder, published_detector, store, device="cpu")

    assert [j.quality for j in other.judgements().values()] == [j.quality for j in clean.judgements().values()]
