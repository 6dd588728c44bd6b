# SPDX-License-Identifier: Apache-2.0
"""Scoring looks at what is new and at nothing else."""

import shutil

import numpy as np
import pytest
import torch

from echo_plugin.acquisition.pool import LivePool
from echo_plugin.acquisition.score_folder import score_folder
from echo_plugin.acquisition.score_store import ScoreStore, models_key
from echo_plugin.acquisition.uncertainty import CineScorer
from echo_plugin.errors import ModelMismatchError, ModelNotFoundError, UnreadableCineError
from echo_plugin.host import child_process
from echo_plugin.io.label_summaries import LabelSummaries
from echo_plugin.io.study_folder import StudyFolder
from echo_plugin.models.checkpoint import SEPTAL_DETECTOR

pytestmark = pytest.mark.heavy

torch.set_num_threads(1)


@pytest.fixture
def scored_ids(monkeypatch):
    """The image ids that were looked at."""
    seen = []
    score = CineScorer.score
    monkeypatch.setattr(CineScorer, "score", lambda self, cine: seen.append(cine.image_id) or score(self, cine))
    return seen


def test_only_new_cines_and_new_models_are_scored_and_one_bad_cine_stops_nobody(
    small, published_detector, tmp_path, scored_ids
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
    assert scored_ids[6:] == ["new.png"]
    assert store.stamps(models_key(models)).keys() == set(folder.image_ids())


def test_models_published_while_cines_are_scored_are_those_of_the_next_run(
    small, publish_another, tmp_path, monkeypatch
):
    folder, store, (models, publish_wider) = StudyFolder(small), ScoreStore(tmp_path / "s.sqlite"), publish_another
    live = LivePool(folder, LabelSummaries(folder), store, models)
    seen, score, before = [], CineScorer.score, models_key(models)

    def publish_before_the_third(self, cine):
        seen.append(cine.image_id)
        if len(seen) == 3:
            publish_wider()
        return score(self, cine)

    monkeypatch.setattr(CineScorer, "score", publish_before_the_third)

    first = score_folder(folder, models, store, device="cpu")
    widths = {len(row.scores.embedding) for row in store.newer_than(before, 0)}
    with live.reading() as pool:
        known = pool.scores.is_scored.sum(), live.models
    second = score_folder(folder, models, store, device="cpu")
    with live.reading() as pool:
        last = pool.scores.is_scored.sum(), live.models

    assert (first.cines, first.labels, len(widths)) == (2, None, 1)
    assert known == (2, before)
    assert second.cines == 6
    assert last == (6, models_key(models)) != (6, before)
    assert {len(row.scores.embedding) for row in store.newer_than(models_key(models), 0)}.isdisjoint(widths)


def test_of_models_that_follow_each_other_fast_only_the_last_whole_and_the_published_keep_scores(
    small, publish_another, tmp_path, scored_ids
):
    folder, store, (models, publish_wider) = StudyFolder(small), ScoreStore(tmp_path / "s.sqlite"), publish_another
    live = LivePool(folder, LabelSummaries(folder), store, models)
    score_folder(folder, models, store, device="cpu")
    whole = models_key(models)
    for image_id in folder.image_ids()[:3]:
        store.put("replaced before it was through", image_id, "1:2", "It cannot be read.")

    publish_wider()
    score_folder(folder, models, store, device="cpu", should_stop=lambda: len(scored_ids) >= 6 + 2)
    left = store.counts()
    with live.reading() as pool:
        used = live.models, pool.scores.is_scored.sum()
    score_folder(folder, models, store, device="cpu")

    assert left == {whole: 6, models_key(models): 2}
    assert used == (whole, 6)
    assert store.counts() == {models_key(models): 6}


def test_a_cine_that_cannot_be_read_is_noted_and_not_tried_again(small, published_detector, tmp_path, monkeypatch):
    folder, store = StudyFolder(small), ScoreStore(tmp_path / "scores.sqlite")

    def refuse(self, cine):
        raise UnreadableCineError("x.png: damaged.")

    monkeypatch.setattr(CineScorer, "score", refuse)
    scored = score_folder(folder, published_detector, store, device="cpu")

    assert (scored.cines, scored.unreadable, scored.put_off) == (6, 6, 0)
    assert score_folder(folder, published_detector, store, device="cpu").cines == 0
    assert [row.scores for row in store.newer_than(models_key(published_detector), 0)] == [None] * 6


def test_a_machine_without_memory_puts_cines_off_to_the_next_run(
    small, published_detector, tmp_path, monkeypatch, capsys
):
    store, score, tried = ScoreStore(tmp_path / "scores.sqlite"), CineScorer.score, []

    def break_down_once(self, cine):
        tried.append(cine.image_id)
        if len(tried) == 1:
            raise RuntimeError("no memory")
        return score(self, cine)

    monkeypatch.setattr(child_process, "end_with_server", lambda: None)
    monkeypatch.setattr(CineScorer, "score", break_down_once)

    codes = [child_process.score(small, store.path, published_detector, "cpu") for _ in range(2)]

    assert codes == [1, 0]
    assert capsys.readouterr().err.startswith("1 of 6 cines could not be looked at and are tried again later.\n")
    assert tried[6:] == tried[:1]
    assert all(row.scores is not None for row in store.newer_than(models_key(published_detector), 0))


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


def test_a_stopped_scoring_goes_on_where_it_was(small, published_detector, tmp_path, scored_ids, monkeypatch):
    folder, store = StudyFolder(small), ScoreStore(tmp_path / "scores.sqlite")
    score_folder(folder, published_detector, store, device="cpu", should_stop=lambda: len(scored_ids) >= 2)
    score_folder(folder, published_detector, store, device="cpu")

    assert len(scored_ids) == len(set(scored_ids)) == 6


def test_scores_come_back_from_the_store_as_they_were(small, published_detector, tmp_path):
    folder, store = StudyFolder(small), ScoreStore(tmp_path / "scores.sqlite")
    image_id = folder.image_ids()[0]
    scores = CineScorer(published_detector, device="cpu").score(folder.read_cine(image_id))

    store.put("m", image_id, "1:2", scores)
    (kept,) = store.newer_than("m", 0)

    np.testing.assert_allclose(kept.scores.scores, scores.scores, atol=1e-3)
    np.testing.assert_allclose(kept.scores.embedding, scores.embedding, atol=1e-3)
    assert np.linalg.norm(scores.embedding) == pytest.approx(1, abs=1e-5)
    assert scores.frame_indices.tolist() == [0, -1, -1, -1, -1, -1]
    assert np.isnan(scores.scores[0, 1]).all()  # a still has no frame beside it
    assert np.isfinite(scores.scores[0, [0, 2]]).all()
    assert store.newer_than("m", kept.number) == []


def test_without_a_detector_scoring_says_what_to_do(small, tmp_path):
    with pytest.raises(ModelNotFoundError, match="septal_detector is not published"):
        score_folder(StudyFolder(small), tmp_path / "none", ScoreStore(tmp_path / "s.sqlite"))
