# SPDX-License-Identifier: Apache-2.0
"""A pool in memory follows scores, labels, judgements and files, and keeps nobody waiting."""

import sqlite3
from dataclasses import replace

import numpy as np
import pytest
import torch

from echo_plugin.acquisition import pool as pool_module
from echo_plugin.acquisition.pool import LivePool
from echo_plugin.acquisition.score_folder import score_folder
from echo_plugin.acquisition.score_store import REVIEW, Judgement, ScoreStore, models_key
from echo_plugin.acquisition.uncertainty import OVERLAPS_SHAPE, SCORES_SHAPE, CineScorer, CineScores, frames_to_score
from echo_plugin.io.label_summaries import LabelSummaries
from echo_plugin.io.study_folder import StudyFolder

torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("models", "revision", "is_used"), [("own", 1, True), ("older", 1, False), (REVIEW, 1, False), ("own", 2, False)]
)
def test_scores_are_calibrated_by_their_own_detector_on_todays_labels(
    strange_studies, tmp_path, models, revision, is_used
):
    """Judgements that say: a score of 0.5 is nearly always right."""
    folder, store = StudyFolder(strange_studies), ScoreStore(tmp_path / "scores.sqlite")
    first = folder.annotated_ids()[0]
    looks = CineScores(frames_to_score(1), np.full(SCORES_SHAPE, 0.5), np.ones(OVERLAPS_SHAPE), np.ones(1))
    store.put("own+views", first, "1:2", looks)
    scores = np.linspace(0.05, 0.95, 60)
    judged = np.column_stack([np.zeros(60), scores, np.where(scores > 0.2, 0.9, 0.1)])
    store.judge(Judgement(first, revision, models, 0.5, (0,), "words", judged))

    live = LivePool(folder, LabelSummaries(folder), store, tmp_path)
    live.calibrate_if_due()
    with live.reading() as pool:
        uncertainty = pool.scores.uncertainty[pool.cines.index_of[first]]

    assert uncertainty == pytest.approx(0.5, abs=1e-3) if not is_used else uncertainty < 0.4


@pytest.mark.heavy
def test_a_row_of_another_width_does_not_keep_the_others_from_being_read(small, published_detector, tmp_path):
    folder, store = StudyFolder(small), ScoreStore(tmp_path / "scores.sqlite")
    live = LivePool(folder, LabelSummaries(folder), store, published_detector)
    first, second, third = folder.image_ids()[:3]
    found = CineScorer(published_detector, device="cpu").score(folder.read_cine(first))
    other = replace(found, embedding=found.embedding[:7])

    for image_id, scores in ((first, found), (second, other), (third, found)):
        store.put("m", image_id, "1:2", scores)

    with live.reading() as pool:
        assert np.flatnonzero(pool.scores.is_scored).tolist() == [pool.cines.index_of[i] for i in (first, third)]


@pytest.mark.heavy
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


@pytest.mark.heavy
def test_scores_of_older_models_are_used_until_the_new_have_seen_as_many(small, published_detector, tmp_path):
    folder, store = StudyFolder(small), ScoreStore(tmp_path / "scores.sqlite")
    score_folder(folder, published_detector, store, device="cpu")
    key = models_key(published_detector)
    rows = store.newer_than(key, 0)
    live = LivePool(folder, LabelSummaries(folder), store, published_detector)

    used = []
    for row in rows:
        store.put("newer", row.image_id, row.stamp, row.scores)
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
    scores = CineScorer(published_detector, device="cpu").score(folder.read_cine(good))
    store.put("m", good, "1:2", scores)

    with live.reading() as pool:
        scored, embeddings = pool.scores.is_scored, pool.scores.embeddings

    assert before == 0
    assert np.flatnonzero(scored).tolist() == [pool.cines.index_of[good]]
    np.testing.assert_allclose(embeddings[pool.cines.index_of[good]], scores.embedding, atol=1e-3)


def test_a_reader_waits_for_new_judgements_alone_and_never_for_a_calibration(strange_studies, tmp_path, monkeypatch):
    folder, store, read = StudyFolder(strange_studies), ScoreStore(tmp_path / "scores.sqlite"), []
    live, judgements = LivePool(folder, LabelSummaries(folder), store, tmp_path), store.judgements
    first, second, third = folder.annotated_ids()[:3]
    for image_id in (first, second):
        store.judge(Judgement(image_id, 1, "m", 0.5, (0,), "words", np.zeros((60, 3))))
    live.calibrate_if_due()
    monkeypatch.setattr(pool_module, "calibrate", lambda *a: pytest.fail("a reader waited for a calibration"))
    monkeypatch.setattr(store, "judgements", lambda **k: read.append(judgements(**k)) or read[-1])

    for image_id, quality in ((third, 0.1), (first, 0.2)):
        store.judge(Judgement(image_id, 1, "m", quality, (0,), "words", np.zeros((60, 3))))
        with live.reading() as pool:
            known = {i: j.quality for i, j in pool.judgements.items()}

    assert [list(rows) for rows in read] == [[third], [first]]
    assert known == {first: 0.2, second: 0.5, third: 0.1}


def test_judgements_of_a_store_begun_anew_take_the_place_of_those_before(strange_studies, tmp_path):
    folder, path = StudyFolder(strange_studies), tmp_path / "scores.sqlite"
    first, second, *_ = folder.annotated_ids()
    judgement = Judgement(first, 1, "m", 0.5, (0,), "words", np.zeros((0, 3)))
    live = LivePool(folder, LabelSummaries(folder), ScoreStore(path), tmp_path)
    for _ in range(3):
        ScoreStore(path).judge(judgement)
    with live.reading() as pool:
        before = set(pool.judgements)

    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM judgements")
        connection.execute("DELETE FROM sqlite_sequence")
    ScoreStore(path).judge(replace(judgement, image_id=second))

    with live.reading() as pool:
        assert (before, set(pool.judgements)) == ({first}, {second})
