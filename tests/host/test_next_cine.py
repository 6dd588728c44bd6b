# SPDX-License-Identifier: Apache-2.0
"""The next cine as a viewer is told of it: with a reason and frames, for one annotator at a time, decoding nothing."""

import asyncio
import dataclasses
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from echo_plugin.acquisition.score_store import Judgement
from echo_plugin.acquisition.uncertainty import FRAMES_SCORED, OVERLAPS_SHAPE, SCORES_SHAPE, CineScorer, CineScores
from echo_plugin.anatomy import View
from echo_plugin.annotations import Annotation
from echo_plugin.host.datastore import EchoDatastore
from echo_plugin.host.keepers import JUDGE_EVERY_S, ScoreKeeper
from echo_plugin.host.next_cine import LEARNED, WaitingCines, strategies
from echo_plugin.host.routes import panel
from echo_plugin.io import cine_file
from echo_plugin.model_card import ModelCard, TrainingCohort, card_to_json
from echo_plugin.network_config import DetectorConfig
from echo_plugin.training.splits import patient_fingerprints

SCORED = ("uncertainty", "diversity", "hybrid", "failing_view")


@pytest.fixture
def store(tmp_path) -> EchoDatastore:
    root = tmp_path / "studies"
    root.mkdir()
    rows = ["image_id,patient_id"]
    for number in range(8):
        Image.new("L", (24, 24), 60 + number).save(root / f"c{number}.png")
        rows.append(f"c{number}.png,p{number // 4}")
    (root / "patients.csv").write_text("\n".join(rows) + "\n")
    return EchoDatastore(root, tmp_path / "cache")


@pytest.fixture
def waiting(store, tmp_path) -> WaitingCines:
    """Cines whose scores say: the higher the number, the less certain."""
    waiting = WaitingCines(store, tmp_path / "models")
    for number, image_id in enumerate(store.list_images()):
        looks = np.full(SCORES_SHAPE, 0.95 - 0.05 * number)
        vector = np.array([np.cos(number), np.sin(number)], dtype=np.float32)
        scores = CineScores(
            np.arange(FRAMES_SCORED) * 4, looks, np.ones(OVERLAPS_SHAPE), vector, list(View)[number % 3], 0.8
        )
        waiting.store.put("m", image_id, "0:0", scores)
    return waiting


def test_the_answer_says_why_and_which_frames(store, waiting):
    answer = strategies(waiting)["uncertainty"]({"client_id": "r1"}, store)

    assert answer == {"id": "c7.png", "reason": "most uncertain of 8", "frames": [0, 4, 8]}


def test_the_strategy_that_viewers_preselect_is_the_one_measured_best_also_for_who_names_none(
    store, waiting, monkeypatch
):
    app = App(store, waiting)
    app.strategies = strategies(waiting)
    monkeypatch.setattr(panel, "echo_app", lambda: app)
    monkeypatch.setattr(panel, "_facts", lambda entry: {"image_id": entry.image_id})

    answer = asyncio.run(panel.next_cine(client_id="r1"))

    assert next(iter(app.strategies)) == "uncertainty"
    assert (answer["strategy"], answer["image_id"]) == ("uncertainty", "c7.png")


def test_two_annotators_are_never_shown_the_same_cine_nor_more_than_two_of_a_patient(store, waiting):
    choose = strategies(waiting)["uncertainty"]

    shown = [choose({"client_id": f"r{n % 2}"}, store)["id"] for n in range(4)]

    assert shown == ["c7.png", "c6.png", "c3.png", "c2.png"]  # c5 and c4 are a third and fourth of one patient


@pytest.mark.parametrize("name", [*SCORED, "first", "random", "fewest_labels"])
def test_no_strategy_shows_a_third_cine_of_a_patient_while_another_patient_waits(store, waiting, name):
    choose = strategies(waiting)[name]

    shown = [choose({"client_id": "r1"}, store)["id"] for _ in range(4)]

    assert sorted(image_id < "c4" for image_id in shown) == [False, False, True, True]


def test_cines_labelled_since_the_models_were_published_count_for_their_patient(store, waiting):
    for image_id in ("c0.png", "c1.png"):  # opened by hand, not by a strategy
        store.studies.save_annotation(Annotation(image_id, view=View.A4C), author="r0")

    assert strategies(waiting)["first"]({"client_id": "r1"}, store)["id"] == "c4.png"


def test_cines_labelled_before_the_models_were_published_do_not(store, waiting, tmp_path):
    for image_id in ("c0.png", "c1.png"):
        store.studies.save_annotation(Annotation(image_id, view=View.A4C), author="r0")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "septal_detector.json").touch()

    assert strategies(waiting)["first"]({"client_id": "r1"}, store)["id"] == "c2.png"


def test_two_without_a_name_are_never_shown_the_same_cine(store, waiting):
    choose = strategies(waiting)["first"]

    shown = [choose({}, store)["id"] for _ in range(8)]

    assert sorted(shown) == store.list_images()
    assert choose({"client_id": "r1"}, store)["reason"].startswith("All 8 cines that wait are with other annotators")
    assert choose({}, store)["reason"].endswith("With a name you would be shown yours again.")


class App:
    """The app that routes find."""

    def __init__(self, store, waiting) -> None:
        self.datastore, self.waiting = lambda: store, waiting


def test_a_cine_that_was_chosen_from_a_list_is_with_its_annotator_until_it_is_submitted(store, waiting, monkeypatch):
    monkeypatch.setattr(panel, "echo_app", lambda: App(store, waiting))
    store.studies.save_annotation(Annotation("c0.png", view=View.A4C), author="r0")

    mine, again, theirs = (panel.take("c0.png", client_id=name) for name in ("r1", "r1", "r2"))

    assert mine == again == {"image": "c0.png", "is_yours": True}
    assert theirs["is_yours"] is False
    assert theirs["reason"] == "Cine c0.png is with another annotator; ask again in 30 minutes."
    waiting.submitted("c0.png")
    assert panel.take("c0.png", client_id="r2")["is_yours"]


def test_a_cine_whose_label_says_nothing_stays_with_its_annotator(store, waiting):
    choose = strategies(waiting)["first"]
    shown = choose({"client_id": "r1"}, store)["id"]

    store.studies.save_annotation(Annotation(shown), author="r1")
    waiting.submitted(shown)

    assert choose({"client_id": "r1"}, store)["id"] != shown


def test_when_all_are_being_looked_at_ones_own_comes_again_and_others_are_told_to_wait(store, waiting):
    choose = strategies(waiting)["first"]
    for _ in range(8):
        choose({"client_id": "r1"}, store)

    mine, theirs = choose({"client_id": "r1"}, store), choose({"client_id": "r2"}, store)

    assert (mine["id"], mine["reason"]) == ("c0.png", "shown to you before; all 8 that wait are in work")
    assert theirs == {"reason": "All 8 cines that wait are with other annotators; ask again in 30 minutes."}


def test_cines_marked_unusable_or_unreadable_are_passed_over(store, waiting, monkeypatch):
    monkeypatch.setattr(panel, "echo_app", lambda: App(store, waiting))
    store.images.set_aside("c6.png", "damaged")

    said = panel.mark_unusable("c7.png", client_id="r1")

    assert said == {"image": "c7.png", "unusable": True, "revision": 1, "author": "r1"}
    assert strategies(waiting)["uncertainty"]({"client_id": "r1"}, store)["id"] == "c5.png"
    panel.mark_unusable("c7.png", unusable=False, client_id="r2")
    assert strategies(waiting)["uncertainty"]({}, store)["id"] == "c7.png"
    assert [a.is_unusable for a in store.studies.history("c7.png")] == [True, False]


@pytest.mark.parametrize("name", [*SCORED, "first", "random", "fewest_labels", "suspicious"])
def test_a_choice_decodes_no_cine_and_runs_no_model(store, waiting, name, monkeypatch):
    store.studies.save_annotation(Annotation("c0.png", view=View.A4C), author="r0")
    waiting.store.judge(Judgement("c0.png", 1, "m", 0.2, (0,), "a box seems to lie badly", np.zeros((0, 3))))
    for owner, method in ((cine_file, "read_cine"), (CineScorer, "score"), (store.studies, "read_cine")):
        monkeypatch.setattr(owner, method, lambda *a, **k: pytest.fail("a cine was read"))

    answer = strategies(waiting)[name]({"client_id": "r1"}, store)

    assert answer["id"] == "c0.png" if name == "suspicious" else answer["id"] in store.get_unlabeled_images()
    assert answer["reason"]
    assert answer["frames"]


def test_a_choice_in_a_large_folder_does_not_wait_until_new_files_are_found(store, waiting, monkeypatch):
    asked, found, look = threading.Event(), threading.Event(), store.studies.refresh

    def slow_look():
        assert asked.wait(10)
        try:
            return look()
        finally:
            found.set()

    Image.new("L", (24, 24), 9).save(store.root / "c8.png")
    monkeypatch.setattr(store.studies, "refresh", slow_look)
    store.images._scan_took_s, store.images._scanned_at = 1.0, -1e9

    answer = strategies(waiting)["first"]({}, store)
    asked.set()

    assert answer["reason"] == "first of 8"
    assert found.wait(10)
    waiting.leases.end("c0.png")
    assert strategies(waiting)["first"]({}, store)["reason"] == "first of 9"


SWAPPED = "the septa seem to be swapped"


def doubt(waiting, image_id: str, quality: float, revision: int = 1) -> None:
    waiting.store.judge(Judgement(image_id, revision, "m", quality, (5, 3), SWAPPED, np.zeros((0, 3))))


def test_a_suspicious_label_is_shown_until_it_is_changed(store, waiting):
    saved = store.studies.save_annotation(Annotation("c1.png", view=View.A4C), author="r0")
    doubt(waiting, "c1.png", 0.2)
    choose = strategies(waiting)["suspicious"]

    shown = choose({}, store)
    store.studies.save_annotation(dataclasses.replace(saved, view=View.A5C), author="r1")
    waiting.submitted("c1.png")

    assert shown["frames"] == [3, 5]
    assert shown["reason"] == "label quality 0.20, lowest of 1 doubtful: the septa seem to be swapped"
    assert "id" not in choose({}, store)


def test_a_label_that_was_confirmed_is_not_doubted_again_though_it_is_judged_the_same(store, waiting, monkeypatch):
    saved = [store.studies.save_annotation(Annotation(f"c{n}.png", view=View.A4C), author="r0") for n in (1, 2)]
    doubt(waiting, "c1.png", 0.1)
    doubt(waiting, "c2.png", 0.2)
    choose = strategies(waiting)["suspicious"]

    first = choose({"client_id": "r1"}, store)["id"]
    store.studies.save_annotation(saved[0], author="r1")
    waiting.submitted("c1.png")
    doubt(waiting, "c1.png", 0.1, revision=2)
    second = choose({"client_id": "r1"}, store)["id"]

    assert (first, second) == ("c1.png", "c2.png")
    monkeypatch.setattr(panel, "echo_app", lambda: App(store, waiting))
    monkeypatch.setattr(panel, "_facts", lambda entry: {"image_id": entry.image_id})
    assert [one["image_id"] for one in panel.suspicious()] == ["c2.png"]


def publish(models: Path, **listed: Any) -> None:
    data = TrainingCohort("phantoms", 1, 1, "0", **listed)
    models.mkdir(exist_ok=True)
    card = ModelCard("septal_detector", "1.0.0", "detection", "x", ("a", "b"), DetectorConfig(), data)
    (models / "septal_detector.json").write_text(card_to_json(card))


def test_without_a_doubtful_label_the_answer_says_what_was_not_judged_and_why(store, waiting):
    choose = strategies(waiting)["suspicious"]
    said = [choose({}, store)["reason"]]
    for number in (0, 1, 4):
        store.studies.save_annotation(Annotation(f"c{number}.png", annotated_frames=(0,)), author="r0")
    store.studies.save_annotation(Annotation("c5.png", view=View.A4C), author="r0")
    doubt(waiting, "c0.png", 0.99)
    said.append(choose({}, store)["reason"])
    publish(waiting.models)
    said.append(choose({}, store)["reason"])
    publish(waiting.models, salt="s", train=patient_fingerprints(["p0"], salt="s"))
    said.append(choose({}, store)["reason"])

    assert said[0] == "No cine has a label that could be doubted."
    agreed = "No label looks like a mistake. Of 4: 1 in agreement with the detector; "
    assert said[1] == f"{agreed}3 not judged (no detector is published)."
    assert said[2] == f"{agreed}3 not judged (the detector does not say whom it learned from)."
    assert said[3].startswith(agreed)
    assert f"1 not judged ({LEARNED})" in said[3]
    assert "1 not judged (the detector has not looked at them yet" in said[3]
    assert "1 not judged (no frame of theirs is annotated)" in said[3]


class Process:
    """A scoring process that a test ends."""

    pid = 0

    def __init__(self) -> None:
        self.returncode = None
        self.terminated = False

    def poll(self):
        return self.returncode

    def terminate(self):
        self.terminated, self.returncode = True, -15

    def wait(self, _timeout):
        return self.returncode


@pytest.fixture
def keeper(store, tmp_path, published_detector, monkeypatch):
    """A keeper that has not begun to look, and the processes it starts."""
    models = shutil.copytree(published_detector, tmp_path / "models")
    keeper, started = ScoreKeeper(store, WaitingCines(store, models), models, "cpu"), []

    def start(command, **_):
        started.append(Process())
        return started[-1]

    monkeypatch.setattr("echo_plugin.host.keepers.subprocess.Popen", start)
    monkeypatch.setattr("echo_plugin.host.keepers.os.setpriority", lambda kind, pid, niceness: None)
    return keeper, started


@pytest.mark.heavy
def test_scoring_starts_once_and_again_only_when_something_changed(keeper, store, tmp_path):
    keeper, started = keeper
    keeper.look()
    keeper.look()
    running = keeper.progress()
    started[0].returncode = 0
    keeper.look()
    keeper.look()
    first = len(started)
    Image.new("L", (24, 24), 9).save(store.root / "new.png")
    keeper.look()

    assert (first, len(started)) == (1, 2)
    assert (running["state"], running["done"], running["total"]) == ("scoring", 0, 8)


def test_a_submission_starts_no_process(keeper, store):
    keeper, started = keeper
    keeper.look()
    started[0].returncode = 0
    keeper.look()

    store.studies.save_annotation(Annotation("c1.png", view=View.A4C), author="r0")
    keeper.look()

    assert len(started) == 1
    keeper._ended_at -= JUDGE_EVERY_S + 1
    keeper.look()
    assert len(started) == 2


def test_a_scoring_that_failed_is_told_and_not_repeated_at_once(keeper):
    keeper, started = keeper
    keeper.look()
    keeper._log.write_text("INFO x\nModel septal_detector: weights are damaged.\n")
    started[0].returncode = 1
    keeper.look()
    keeper.look()

    assert len(started) == 1
    facts = keeper.progress()
    assert facts["state"] == "failed"
    assert facts["message"] == "Scoring ended early: Model septal_detector: weights are damaged."


def test_stopping_ends_the_process(keeper):
    keeper, started = keeper
    keeper.look()

    keeper.stop()
    keeper.look()

    assert started[0].terminated
    assert len(started) == 1


def test_without_a_detector_nothing_is_started_and_the_progress_says_why(store, tmp_path, monkeypatch):
    monkeypatch.setattr("echo_plugin.host.keepers.subprocess.Popen", lambda *a, **k: pytest.fail("started"))
    keeper = ScoreKeeper(store, WaitingCines(store, tmp_path / "none"), tmp_path / "none", "cpu")

    keeper.look()

    assert keeper.progress()["state"] == "no model"
    assert "septal_detector is not published" in keeper.progress()["message"]
