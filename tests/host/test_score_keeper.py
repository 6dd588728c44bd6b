# SPDX-License-Identifier: Apache-2.0
"""The thread that keeps scores does what a request would otherwise wait for."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from echo_plugin.acquisition.score_store import DETECTOR, Judgement, models_key
from echo_plugin.acquisition.uncertainty import OVERLAPS_SHAPE, SCORES_SHAPE, CineScores, frames_to_score
from echo_plugin.anatomy import View
from echo_plugin.annotations import Annotation
from echo_plugin.answer.gallery import STARTERS
from echo_plugin.host.datastore import EchoDatastore
from echo_plugin.host.keepers import ScoreKeeper
from echo_plugin.host.next_cine import WaitingCines
from echo_plugin.model_card import card_to_json, load_card


def test_progress_says_by_which_detector_cines_are_chosen(tmp_path):
    root, models = tmp_path / "studies", tmp_path / "models"
    root.mkdir()
    Image.new("L", (24, 24), 60).save(root / "a.png")
    store = EchoDatastore(root, tmp_path / "cache")
    waiting = WaitingCines(store, models)
    keeper = ScoreKeeper(store, waiting, models, "cpu")
    without = keeper.progress()["choices_by"]
    models.mkdir()
    card = replace(load_card(STARTERS, DETECTOR), version="7")
    (models / f"{DETECTOR}.json").write_text(card_to_json(card))
    unscored = keeper.progress()["choices_by"]
    looks = CineScores(frames_to_score(1), np.full(SCORES_SHAPE, 0.5), np.ones(OVERLAPS_SHAPE), np.ones(1))
    waiting.store.put(models_key(models), "a.png", "1:2", looks)
    scored = keeper.progress()["choices_by"]

    (models / f"{DETECTOR}.json").write_text(card_to_json(replace(card, version="8", sha256="0" * 64)))

    assert (without, unscored, scored) == ("", "", "septal_detector 7")
    assert keeper.progress()["choices_by"] == "one before septal_detector 8"


def test_a_look_calibrates_the_scores_so_that_no_request_has_to(tmp_path, monkeypatch):
    root = tmp_path / "studies"
    root.mkdir()
    Image.new("L", (24, 24), 60).save(root / "a.png")
    store, models = EchoDatastore(root, tmp_path / "cache"), tmp_path / "none"
    store.studies.save_annotation(Annotation("a.png", view=View.A4C), author="r0")
    waiting = WaitingCines(store, models)
    looks = CineScores(frames_to_score(1), np.full(SCORES_SHAPE, 0.5), np.ones(OVERLAPS_SHAPE), np.ones(1))
    waiting.store.put("own", "a.png", "1:2", looks)
    scores = np.linspace(0.05, 0.95, 60)
    judged = np.column_stack([np.zeros(60), scores, np.where(scores > 0.2, 0.9, 0.1)])  # 0.5 is nearly always right
    waiting.store.judge(Judgement("a.png", 1, "own", 0.5, (0,), "words", judged))
    with waiting.pool.reading() as pool:
        before = float(pool.scores.uncertainty[0])

    ScoreKeeper(store, waiting, models, "cpu").look()
    monkeypatch.setattr(
        "echo_plugin.acquisition.pool.calibrate", lambda *a: pytest.fail("a request waited for a calibration")
    )

    with waiting.pool.reading() as pool:
        assert pool.scores.uncertainty[0] < 0.4 < before
