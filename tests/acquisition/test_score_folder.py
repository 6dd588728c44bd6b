# SPDX-License-Identifier: Apache-2.0
"""Scoring looks at what is new and at nothing else; a pool in memory follows it."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from echo_plugin.acquisition import judge_folder
from echo_plugin.acquisition.evidence import OVERLAPS_SHAPE, SCORES_SHAPE, CineEvidence, probe_frames
from echo_plugin.acquisition.judge import LabelJudge, pooled
from echo_plugin.acquisition.judge_folder import JudgedLabels, judge_labels
from echo_plugin.acquisition.label_quality import label_quality
from echo_plugin.acquisition.live_pool import LivePool
from echo_plugin.acquisition.probe import CineProber
from echo_plugin.acquisition.score_folder import score_folder
from echo_plugin.acquisition.score_store import REVIEW, Judgement, ScoreStore, models_key
from echo_plugin.errors import ModelMismatchError, ModelNotFoundError, UnreadableCineError
from echo_plugin.host import score_job
from echo_plugin.io.label_summaries import LabelSummaries
from echo_plugin.io.study_folder import StudyFolder
from echo_plugin.models.card_file import load_card
from echo_plugin.models.checkpoint import SEPTAL_DETECTOR, publish
from echo_plugin.models.from_card import build_detector

torch.set_num_threads(1)


@pytest.fixture
def small(strange_studies):
    """Six of the stills, three with labels."""
    for path in sorted(strange_studies.glob("*.png"))[6:]:
        path.unlink()
    for path in sorted((strange_studies / "annotations").glob("*.json"))[3:]:
        path.unlink()
    return strange_studies


@pytest.fixture
def probed(monkeypatch):
    """The image ids that were looked at."""
    seen = []
    probe = CineProber.probe
    monkeypatch.setattr(CineProber, "probe", lambda self, cine: seen.append(cine.image_id) or probe(self, cine))
    return seen


def test_only_new_cines_and_new_models_are_scored_and_one_bad_cine_stops_nobody(
    small, published_detector, tmp_path, probed
):
    models = shutil.copytree(published_detector, tmp_path / "models")
    folder, store = StudyFolder(small), ScoreStore(tmp_path / "scores.sqlite")
    told = []

    first = score_folder(folder, models, store, device="cpu", progress=lambda *p: told.append(p[:2]))
    again = score_folder(folder, models, store, device="cpu")
    names = sorted(small.glob("*.png"))
    shutil.copy(names[0], small / "new.png")
    names[1].unlink()
    third = score_folder(folder, models, store, device="cpu")

    assert (first.cines, first.unreadable, first.put_off, told[-1]) == (6, 0, 0, (6, 6))
    assert (again.cines, again.labels.judged) == (0, 0)
    assert first.labels.judged >= 1
    assert third.cines == 1
    assert probed[6:] == ["new.png"]
    assert store.stamps(models_key(models)).keys() == set(folder.image_ids())


@pytest.fixture
def publish_another(tmp_path, published_detector):
    """What publishes an untrained detector, wider than the one of ``models``, over it."""
    models = shutil.copytree(published_detector, tmp_path / "models")

    def publish_wider():
        card = load_card(models, SEPTAL_DETECTOR)
        wider = replace(card, version="9", config={**card.config, "backbone": "mobilenet_v3_large"})
        publish(models, build_detector(wider).state_dict(), wider)

    return models, publish_wider


def test_models_published_while_cines_are_scored_are_those_of_the_next_run(
    small, publish_another, tmp_path, monkeypatch
):
    folder, store, (models, publish_wider) = StudyFolder(small), ScoreStore(tmp_path / "s.sqlite"), publish_another
    live = LivePool(folder, LabelSummaries(folder), store, models)
    seen, probe, before = [], CineProber.probe, models_key(models)

    def publish_before_the_third(self, cine):
        seen.append(cine.image_id)
        if len(seen) == 3:
            publish_wider()
        return probe(self, cine)

    monkeypatch.setattr(CineProber, "probe", publish_before_the_third)

    first = score_folder(folder, models, store, device="cpu")
    widths = {len(row.evidence.embedding) for row in store.newer_than(before, 0)}
    with live.reading() as pool:
        known = pool.scores.is_scored.sum(), live.models
    second = score_folder(folder, models, store, device="cpu")
    with live.reading() as pool:
        last = pool.scores.is_scored.sum(), live.models

    assert (first.cines, first.labels, len(widths)) == (2, None, 1)
    assert known == (2, before)
    assert second.cines == 6
    assert last == (6, models_key(models)) != (6, before)
    assert {len(row.evidence.embedding) for row in store.newer_than(models_key(models), 0)}.isdisjoint(widths)


def test_a_detector_published_while_labels_are_judged_judges_none_of_them(
    small, publish_another, tmp_path, monkeypatch
):
    store, (models, publish_wider), look = ScoreStore(tmp_path / "s.sqlite"), publish_another, LabelJudge.look

    def publish_and_look(self, folder, cine):
        publish_wider()
        return look(self, folder, cine)

    monkeypatch.setattr(LabelJudge, "look", publish_and_look)

    assert judge_labels(StudyFolder(small), models, store, device="cpu").judged == 0
    assert store.judgements() == {}


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
    look, fit = LabelJudge.look, judge_folder.calibrate
    monkeypatch.setattr(LabelJudge, "look", lambda self, *a: seen.append(look(self, *a)) or seen[-1])
    monkeypatch.setattr(judge_folder, "calibrate", lambda *a: asked.append(a) or fit(*a))
    store = ScoreStore(tmp_path / "scores.sqlite")

    labels = judge_labels(folder, published_detector, store, device="cpu")

    together = fit(seen[0].operating_score, pooled([one.judged for one in seen]))
    kept = store.judgements()
    assert labels.judged == len(kept) == 36
    assert len(asked) == 1
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


@pytest.mark.parametrize(
    ("models", "revision", "is_used"), [("own", 1, True), ("older", 1, False), (REVIEW, 1, False), ("own", 2, False)]
)
def test_scores_are_calibrated_by_their_own_detector_on_todays_labels(
    strange_studies, tmp_path, models, revision, is_used
):
    """Judgements that say: a score of 0.5 is nearly always right."""
    folder, store = StudyFolder(strange_studies), ScoreStore(tmp_path / "scores.sqlite")
    first = folder.annotated_ids()[0]
    looks = CineEvidence(probe_frames(1), np.full(SCORES_SHAPE, 0.5), np.ones(OVERLAPS_SHAPE), np.ones(1))
    store.put("own+views", first, "1:2", looks)
    scores = np.linspace(0.05, 0.95, 60)
    judged = np.column_stack([np.zeros(60), scores, np.where(scores > 0.2, 0.9, 0.1)])
    store.judge(Judgement(first, revision, models, 0.5, (0,), "words", judged))

    live = LivePool(folder, LabelSummaries(folder), store, tmp_path)
    with live.reading() as pool:
        uncertainty = pool.scores.uncertainty[pool.cines.place_of[first]]

    assert uncertainty == pytest.approx(0.5, abs=1e-3) if not is_used else uncertainty < 0.4


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


def test_a_row_of_another_width_does_not_keep_the_others_from_being_read(small, published_detector, tmp_path):
    folder, store = StudyFolder(small), ScoreStore(tmp_path / "scores.sqlite")
    live = LivePool(folder, LabelSummaries(folder), store, published_detector)
    first, second, third = folder.image_ids()[:3]
    found = CineProber(published_detector, device="cpu").probe(folder.read_cine(first))
    other = replace(found, embedding=found.embedding[:7])

    for image_id, evidence in ((first, found), (second, other), (third, found)):
        store.put("m", image_id, "1:2", evidence)

    with live.reading() as pool:
        assert np.flatnonzero(pool.scores.is_scored).tolist() == [pool.cines.place_of[i] for i in (first, third)]


def test_a_cine_that_cannot_be_read_is_noted_and_not_tried_again(small, published_detector, tmp_path, monkeypatch):
    folder, store = StudyFolder(small), ScoreStore(tmp_path / "scores.sqlite")

    def refuse(self, cine):
        raise UnreadableCineError("x.png: damaged.")

    monkeypatch.setattr(CineProber, "probe", refuse)
    scored = score_folder(folder, published_detector, store, device="cpu")

    assert (scored.cines, scored.unreadable, scored.put_off) == (6, 6, 0)
    assert score_folder(folder, published_detector, store, device="cpu").cines == 0
    assert [row.evidence for row in store.newer_than(models_key(published_detector), 0)] == [None] * 6


def test_a_machine_without_memory_puts_cines_off_to_the_next_run(
    small, published_detector, tmp_path, monkeypatch, capsys
):
    store, probe, tried = ScoreStore(tmp_path / "scores.sqlite"), CineProber.probe, []

    def break_down_once(self, cine):
        tried.append(cine.image_id)
        if len(tried) == 1:
            raise RuntimeError("no memory")
        return probe(self, cine)

    monkeypatch.setattr(CineProber, "probe", break_down_once)
    monkeypatch.setattr(score_job, "end_with_server", lambda: None)
    monkeypatch.setattr(score_job, "NICENESS", 0)

    codes = [score_job.main(small, store.path, published_detector, "cpu") for _ in range(2)]

    assert codes == [1, 0]
    assert capsys.readouterr().err.startswith("1 of 6 cines could not be looked at and are tried again later.\n")
    assert tried[6:] == tried[:1]
    assert all(row.evidence is not None for row in store.newer_than(models_key(published_detector), 0))


def test_damaged_weights_end_the_run_and_are_noted_of_no_cine(small, published_detector, tmp_path):
    models = shutil.copytree(published_detector, tmp_path / "models")
    folder, store = StudyFolder(small), ScoreStore(tmp_path / "scores.sqlite")
    weights = models / f"{SEPTAL_DETECTOR}.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])

    with pytest.raises(ModelMismatchError):
        score_folder(folder, models, store, device="cpu")
    unscored = len(store.unscored(models_key(models), folder.entries()))
    shutil.copy(published_detector / weights.name, weights)
    repaired = score_folder(folder, models, store, device="cpu")

    assert unscored == 6
    assert (repaired.cines, repaired.unreadable, repaired.put_off) == (6, 0, 0)


def test_a_stopped_scoring_goes_on_where_it_was(small, published_detector, tmp_path, probed, monkeypatch):
    folder, store = StudyFolder(small), ScoreStore(tmp_path / "scores.sqlite")
    score_folder(folder, published_detector, store, device="cpu", should_stop=lambda: len(probed) >= 2)
    score_folder(folder, published_detector, store, device="cpu")

    assert len(probed) == len(set(probed)) == 6


def test_evidence_comes_back_from_the_store_and_a_mirrored_look_agrees(small, published_detector, tmp_path):
    folder, store = StudyFolder(small), ScoreStore(tmp_path / "scores.sqlite")
    image_id = folder.image_ids()[0]
    evidence = CineProber(published_detector, device="cpu").probe(folder.read_cine(image_id))

    store.put("m", image_id, "1:2", evidence)
    (kept,) = store.newer_than("m", 0)

    np.testing.assert_allclose(kept.evidence.scores, evidence.scores, atol=1e-3)
    np.testing.assert_allclose(kept.evidence.embedding, evidence.embedding, atol=1e-3)
    assert np.linalg.norm(evidence.embedding) == pytest.approx(1, abs=1e-5)
    assert evidence.frame_indices.tolist() == [0, -1, -1, -1, -1, -1]
    assert np.isnan(evidence.scores[0, 1]).all()  # a still has no frame beside it
    assert np.isfinite(evidence.scores[0, [0, 2]]).all()
    assert store.newer_than("m", kept.number) == []


def test_the_pool_follows_scores_labels_and_files_and_reads_no_cine(small, published_detector, tmp_path, monkeypatch):
    folder, store = StudyFolder(small), ScoreStore(tmp_path / "scores.sqlite")
    live = LivePool(folder, LabelSummaries(folder), store, published_detector)
    with live.reading() as pool:
        before = pool.scores.is_scored.sum(), pool.labels.is_labelled.sum()
    score_folder(folder, published_detector, store, device="cpu")
    monkeypatch.setattr(folder, "read_cine", lambda image_id: pytest.fail("a cine was read"))

    with live.reading() as pool:
        after = pool.scores.is_scored.sum(), pool.labels.is_labelled.sum()
        uncertain = pool.scores.uncertainty
        norms = np.linalg.norm(pool.scores.embeddings, axis=1)
    folder.remove_annotation(folder.annotated_ids()[0])
    sorted(small.glob("*.png"))[5].unlink()
    folder.refresh()
    with live.reading() as pool:
        last = len(pool.cines.image_ids), pool.scores.is_scored.sum(), pool.labels.is_labelled.sum()

    assert (before, after, last) == ((0, 3), (6, 3), (5, 5, 2))
    assert ((uncertain >= 0) & (uncertain <= 1)).all()
    assert norms == pytest.approx(1, abs=1e-2)


def test_scores_of_older_models_are_used_until_the_new_have_seen_as_many(small, published_detector, tmp_path):
    folder, store = StudyFolder(small), ScoreStore(tmp_path / "scores.sqlite")
    score_folder(folder, published_detector, store, device="cpu")
    key = models_key(published_detector)
    rows = store.newer_than(key, 0)
    live = LivePool(folder, LabelSummaries(folder), store, published_detector)

    used = []
    for row in rows:
        store.put("newer", row.image_id, row.stamp, row.evidence)
        with live.reading():
            used.append(live.models)

    assert used == [key] * 5 + ["newer"]


def test_a_pool_first_read_after_failures_alone_takes_what_is_scored_later(small, published_detector, tmp_path):
    folder, store = StudyFolder(small), ScoreStore(tmp_path / "scores.sqlite")
    bad, good = folder.image_ids()[:2]
    live = LivePool(folder, LabelSummaries(folder), store, published_detector)
    store.put("m", bad, "1:2", "It cannot be read.")
    with live.reading() as pool:
        before = pool.scores.is_scored.sum()
    evidence = CineProber(published_detector, device="cpu").probe(folder.read_cine(good))
    store.put("m", good, "1:2", evidence)

    with live.reading() as pool:
        scored, embeddings = pool.scores.is_scored, pool.scores.embeddings

    assert before == 0
    assert np.flatnonzero(scored).tolist() == [pool.cines.place_of[good]]
    np.testing.assert_allclose(embeddings[pool.cines.place_of[good]], evidence.embedding, atol=1e-3)


def test_without_a_detector_scoring_says_what_to_do(small, tmp_path):
    with pytest.raises(ModelNotFoundError, match="septal_detector is not published"):
        score_folder(StudyFolder(small), tmp_path / "none", ScoreStore(tmp_path / "s.sqlite"))
