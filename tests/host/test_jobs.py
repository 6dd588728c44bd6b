# SPDX-License-Identifier: Apache-2.0
"""One training at a time, its outcome known to the next server, and one that starts by itself."""

import dataclasses
import json
import logging
import os
import shutil
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from echo_plugin.errors import TrainingDataError
from echo_plugin.host import jobs
from echo_plugin.host.datastore import EchoDatastore
from echo_plugin.host.jobs import TrainingProgress, read_progress
from echo_plugin.host.routes import slicer
from echo_plugin.host.train import TRAINABLES, AutoFinetune, CineTrainer, submissions_wanted, trainers
from echo_plugin.training.options import EpochStatus


class Tasks:
    """MONAI Label's jobs without their processes."""

    def __init__(self):
        self.jobs = []

    def status(self, method, all=False, check_if_running=False):
        here = [job for job in self.jobs if job["method"] == method]
        if check_if_running:
            here = [job for job in here if job["status"] == "RUNNING"]
        return (here if all else here[-1], None) if here else (None, "none")

    def run(self, method, request=None, enqueue=False):
        self.jobs.append({"method": method, "request": request, "status": "RUNNING"})
        return self.jobs[-1], None

    def stop(self, method):
        return None


@pytest.fixture
def tasks(monkeypatch) -> Tasks:
    tasks = Tasks()
    monkeypatch.setattr(jobs, "AsyncTask", tasks)
    monkeypatch.setattr(slicer, "AsyncTask", tasks)
    return tasks


@pytest.fixture
def app(easy_studies, tmp_path, monkeypatch, tasks):
    """What the routes see of the app, over labelled studies."""
    root = shutil.copytree(easy_studies, tmp_path / "studies")
    (tmp_path / "models").mkdir()
    store = EchoDatastore(root, tmp_path / "cache")
    here = SimpleNamespace(
        datastore=lambda: store, trainers=trainers(tmp_path / "models", store.cache, "cpu"), models=tmp_path / "models"
    )
    monkeypatch.setattr(slicer, "echo_app", lambda: here)
    return here


@pytest.fixture
def web(app):
    from fastapi.testclient import TestClient

    from echo_plugin.host.server import app as server

    return TestClient(server, base_url="http://127.0.0.1", raise_server_exceptions=False)


def submit(store: EchoDatastore, image_id: str) -> None:
    annotation = store.studies.annotation(image_id)
    store.studies.save_annotation(
        annotation, author="reader", based_on_revision=annotation.revision, now=datetime.now(UTC) + timedelta(seconds=1)
    )


def test_a_second_training_is_refused_in_one_sentence_while_one_runs(web, tasks):
    first = web.post("/train/septal_boxes", json={"epochs": 1})
    second = web.post("/train/views", json={})

    assert first.status_code == 200
    assert (second.status_code, second.json()) == (
        409,
        {"detail": "A train job is running already; wait for it or stop it."},
    )
    assert [job["request"] for job in tasks.jobs] == [{"model": "septal_boxes", "epochs": 1}]


def test_of_many_who_start_a_training_at_once_one_does(web, tasks):
    barrier, statuses = threading.Barrier(6), []

    def start():
        barrier.wait(30)
        statuses.append(web.post("/train/septal_boxes", json={}).status_code)

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert sorted(statuses) == [200] + 5 * [409]
    assert len(tasks.jobs) == 1


def test_too_few_labels_are_said_and_no_process_starts(web, app, tasks):
    for label in (app.datastore().root / "annotations").glob("*.json"):
        if not label.name.startswith("child03"):
            label.unlink()

    answer = web.post("/train/septal_boxes", json={})

    assert answer.status_code == 409
    assert answer.json()["detail"] == (
        "Training septal_boxes needs cines that say septal boxes named IAS or IVS of at least 2 patients;"
        " the study folder has 1."
    )
    assert tasks.jobs == []


def test_a_restarted_server_knows_how_the_last_training_went(web, app):
    assert web.get("/train/").status_code == 404
    views = TrainingProgress(app.models / ".runs" / "views.json")
    views.failed("Training views failed (OSError: disk full).")
    boxes = TrainingProgress(app.models / ".runs" / "septal_boxes.json")
    boxes._started_at = "2999-01-01T00:00:00.000+00:00"
    boxes.emit(logging.LogRecord("echo_plugin", logging.INFO, __file__, 1, "Epoch 2 of %d", (2,), None))
    boxes.epoch_done(EpochStatus(2, 2, 0.0, 0.4, 0.71, 0.8))
    boxes.done("Published septal_detector 4.")

    last, every = web.get("/train/").json(), web.get("/train/?all=true").json()

    assert (last["status"], last["request"]) == ("DONE", {"model": "septal_boxes"})
    assert last["start_ts"] == "2999-01-01T00:00:00.000+00:00"
    assert datetime.fromisoformat(last["end_ts"]).tzinfo is not None
    assert last["details"] == ["Epoch 2 of 2", "Published septal_detector 4."]
    progress = last["progress"]
    assert (progress["epoch"], progress["total_epochs"], progress["best_metric"]) == (2, 2, 0.8)
    assert every == [last]
    assert web.get("/train/?check_if_running=true").status_code == 404
    assert app.trainers["views"].stats()["message"] == "Training views failed (OSError: disk full)."


def test_a_training_whose_process_never_reported_is_told_as_stopped_by_the_next_server(web, app):
    web.post("/train/septal_boxes", json={})
    path = app.models / ".runs" / "septal_boxes.json"
    assert read_progress(path)["status"] == "SUBMITTED"

    facts = json.loads(path.read_text())
    path.write_text(json.dumps(facts | {"pid": facts["pid"], "pid_began": facts["pid_began"] - 1000}))  # a reused id

    assert read_progress(path)["status"] == "STOPPED"
    assert "pid_began" not in read_progress(path)


def test_one_that_is_running_is_told_as_running_by_another_process(tmp_path):
    path = tmp_path / "run.json"
    TrainingProgress(path).start()

    facts = json.loads(path.read_text())

    assert (facts["pid"], facts["pid_began"]) == (os.getpid(), psutil.Process().create_time())
    assert read_progress(path)["status"] == "RUNNING"


def test_the_last_lines_of_the_log_are_kept_with_the_outcome(app, monkeypatch):
    trainer = app.trainers["septal_boxes"]

    def learn(studies, models, options, on_epoch):
        for line in range(30):
            logging.getLogger("echo_plugin.training").warning("line %d", line)
        msg = "No cine of the test patients has boxes."
        raise TrainingDataError(msg)

    monkeypatch.setattr(trainer, "about", dataclasses.replace(TRAINABLES["septal_boxes"], load=lambda: learn))
    with pytest.raises(TrainingDataError, match="No cine of the test patients"):
        trainer({}, app.datastore())

    stats = trainer.stats()
    assert (stats["status"], stats["message"]) == ("ERROR", "No cine of the test patients has boxes.")
    assert len(stats["lines"]) == 20
    assert stats["lines"][-2:] == ["line 29", "No cine of the test patients has boxes."]
    assert not [h for h in logging.getLogger("echo_plugin").handlers if isinstance(h, TrainingProgress)]


def test_a_model_that_nobody_measured_is_said_to_lack_its_metric(app, monkeypatch):
    trainer = app.trainers["septal_boxes"]
    card = SimpleNamespace(name="septal_detector", version="2", metrics={})
    learned = dataclasses.replace(TRAINABLES["septal_boxes"], load=lambda: lambda *a, **k: card)
    monkeypatch.setattr(trainer, "about", learned)

    trainer({}, app.datastore())

    assert trainer.stats()["message"] == (
        "Published septal_detector 2. Its metric is missing: no annotated patient was left to measure with."
    )


def test_training_starts_by_itself_after_so_many_cines_and_never_beside_another(app, tasks):
    store, trainer = app.datastore(), app.trainers["septal_boxes"]
    auto = AutoFinetune(3, store, trainer)
    cines = store.list_images()

    started = []
    for image_id in [cines[0], cines[0], cines[1], cines[2], cines[3]]:
        submit(store, image_id)
        started.append(auto.submitted())

    assert started == [False, False, False, True, False]  # the same cine again counts once; then one is at work
    assert [job["request"] for job in tasks.jobs] == [{"model": "septal_boxes"}]


def test_labels_that_came_while_it_trained_count_for_the_next(app, tasks):
    store, trainer = app.datastore(), app.trainers["septal_boxes"]
    auto = AutoFinetune(2, store, trainer)
    trainer.submitted()
    for image_id in store.list_images()[:2]:
        submit(store, image_id)
    tasks.jobs.append({"method": "train", "status": "RUNNING", "request": {}})

    beside = auto.submitted()
    tasks.jobs[-1]["status"] = "DONE"

    assert (beside, auto.new_labels(), auto.submitted()) == (False, 2, True)


def test_labels_older_than_the_server_start_no_training(app, tasks):
    auto = AutoFinetune(1, app.datastore(), app.trainers["septal_boxes"])

    assert (auto.new_labels(), auto.submitted(), tasks.jobs) == (0, False, [])


def test_nothing_trains_by_itself_unless_asked(app, tasks):
    auto = AutoFinetune(submissions_wanted(None), app.datastore(), app.trainers["septal_boxes"])
    for image_id in app.datastore().list_images():
        submit(app.datastore(), image_id)

    assert not auto.submitted()
    assert tasks.jobs == []


def test_labels_that_cannot_train_yet_are_waited_for(app, tasks, caplog):
    store = app.datastore()
    for label in (store.root / "annotations").glob("*.json"):
        if not label.name.startswith("child03"):
            label.unlink()
    auto = AutoFinetune(1, store, app.trainers["septal_boxes"])
    submit(store, "child03_0.png")

    with caplog.at_level("INFO"):
        assert not auto.submitted()
    assert "at least 2 patients; the study folder has 1" in caplog.text


@pytest.mark.parametrize("text", ["-1", "often", "²", "1e3"])
def test_a_number_of_submissions_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="the number of submissions after which to train is accepted"):
        submissions_wanted(text)


def test_the_outcome_is_beside_the_models(tmp_path):
    trainer = CineTrainer("views", tmp_path / "models", Path(tmp_path / "cache"), "cpu")

    trainer.submitted()
    trainer.stopped()

    assert trainer.progress == tmp_path / "models" / ".runs" / "views.json"
    assert trainer.stats()["status"] == "STOPPED"
    assert trainer.progress.parent.stat().st_mode & 0o077 == 0
