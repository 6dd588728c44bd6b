# SPDX-License-Identifier: Apache-2.0
"""A real server under several hands at once, and while it trains."""

import json
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests

from echo_plugin.io.markups import boxes_to_markups
from echo_plugin.io.volume import rendition_geometry

pytestmark = pytest.mark.server

TRAIN_LIMIT_S = 400


def test_info_is_answered_while_predictions_are_still_at_work(server, new_image):
    finished = []

    def predict(number):
        answer = requests.post(f"{server.url}/infer/defects?image={new_image}&output=json", timeout=300)
        finished.append(f"prediction {number}")
        return answer.status_code

    with ThreadPoolExecutor(12) as pool:
        predictions = [pool.submit(predict, number) for number in range(12)]
        status, _ = server.ask("GET", "/info/")
        finished.append("info")
        statuses = [prediction.result() for prediction in predictions]

    assert status == 200
    assert statuses == [200] * 12
    assert finished.index("info") < 11


def test_parameters_that_are_monai_labels_own_reach_no_job(server):
    asked = {"epochs": 1, "gpus": 1, "bundle_path": str(server.root), "local_rank": 3}

    status, job = server.ask("POST", "/train/septal_boxes", json.dumps(asked).encode(), Content_Type="application/json")
    wait_for(server, {"RUNNING"})
    stopped, _ = server.ask("DELETE", "/train/")

    assert (status, stopped) == (200, 200)
    assert job["request"] | {"gpus": "all"} == {"model": "septal_boxes", "epochs": 1, "gpus": "all"}
    assert job["request"].get("gpus", "all") == "all"  # MONAI Label's own word


def test_annotators_who_submit_at_once_lose_nothing(server, new_image):
    cine = server.studies.read_cine(new_image)
    markups = boxes_to_markups((), rendition_geometry(cine))
    before = len(server.studies.history(new_image))
    barrier = threading.Barrier(8)

    def submit(reader):
        barrier.wait(60)
        return requests.put(
            f"{server.url}/datastore/label?image={new_image}",
            data={"params": json.dumps({"client_id": f"reader-{reader}"})},
            files={"label": ("tmp.json", markups, "application/json")},
            timeout=120,
        )

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(submit, range(8)))

    history = server.studies.history(new_image)
    assert [answer.status_code for answer in answers] == [200] * 8
    assert len(history) == before + 8
    assert {annotation.author for annotation in history[-8:]} == {f"reader-{reader}" for reader in range(8)}
    assert [annotation.revision for annotation in history] == list(range(1, before + 9))


def test_a_batch_without_a_gpu_keeps_a_prediction_of_each_cine(server, slicer_client, new_image):
    status, answer = server.ask(
        "POST",
        "/batch/infer/septal_boxes?images=all&run_sync=true",
        b'{"device": "cuda", "multi_gpu": true, "max_batch_size": 0}',
        Content_Type="application/json",
    )

    assert status == 200
    assert set(answer) == set(server.studies.image_ids())
    assert all(prediction["boxes"] > 0 for prediction in answer.values())
    kept = json.loads(Path(slicer_client.download_label(new_image, "original")).read_text())
    assert len(kept["markups"]) == answer[new_image]["boxes"]
    # listed, Slicer would draw it beside the prediction that it makes itself
    assert "original" not in slicer_client.datastore()["objects"][new_image]["labels"]
    assert server.ask("DELETE", f"/datastore/label?id={new_image}&tag=original")[0] == 200
    status, answer = server.ask("GET", f"/datastore/label?label={new_image}&tag=original")
    assert (status, "has no kept prediction" in answer["detail"]) == (404, True)


def wait_until(is_true, limit_s=TRAIN_LIMIT_S):
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if is_true():
            return
        time.sleep(0.5)
    pytest.fail(f"not so after {limit_s} s")


def wait_for(server, states, limit_s=TRAIN_LIMIT_S):
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        job = server.ask("GET", "/train/")[1]
        if job["status"] in states:
            return job
        time.sleep(0.5)
    pytest.fail(f"training is still {job['status']} after {limit_s} s: {job}")


@pytest.fixture
def kept_models(server, tmp_path):
    """Put the session's models back when the test is over: others count on weights that find boxes."""
    kept = shutil.copytree(server.models, tmp_path / "kept")
    yield
    for path in sorted(
        (path for path in kept.iterdir() if path.is_file()), key=lambda path: path.suffix == ".json"
    ):  # the card is the commit point
        shutil.copy(path, server.models / f"{path.name}.new")
        (server.models / f"{path.name}.new").replace(server.models / path.name)


@pytest.mark.heavy
@pytest.mark.usefixtures("kept_models")
def test_training_reports_its_epochs_and_the_next_prediction_uses_its_model(server, slicer_client, new_image):
    before = slicer_client.infer("septal_boxes", new_image, {})[1]["models"]["detector"]["version"]

    started = slicer_client.train_start("septal_boxes", {"epochs": 1})
    status, sentence = server.ask("POST", "/train/views", b"{}", Content_Type="application/json")
    job = wait_for(server, {"DONE", "ERROR", "STOPPED"})

    assert started["status"] in ("SUBMITTED", "RUNNING")
    assert (status, sentence["detail"]) == (409, "A train job is running already; wait for it or stop it.")
    assert job["status"] == "DONE", job
    assert (job["progress"]["epoch"], job["progress"]["total_epochs"]) == (1, 1)
    assert job["progress"]["message"].startswith("Published septal_detector")
    assert slicer_client.info()["train_stats"]["septal_boxes"]["total_time"] > 0
    after = slicer_client.infer("septal_boxes", new_image, {})[1]["models"]["detector"]["version"]
    assert after != before


@pytest.mark.heavy
@pytest.mark.skipif(os.name != "posix", reason="sends a POSIX signal")
def test_a_training_ends_with_a_killed_server_and_the_next_one_knows(serve, phantom_studies, model_folder, tmp_path):
    models = shutil.copytree(model_folder, tmp_path / "models")
    killed = serve(shutil.copytree(phantom_studies, tmp_path / "studies"), models)
    published = {path.name: path.read_bytes() for path in models.glob("septal_detector.*")}

    killed.ask("POST", "/train/septal_boxes", b'{"epochs": 50}', Content_Type="application/json")
    wait_until(lambda: killed.ask("GET", "/train/")[1]["progress"].get("epoch", 0) >= 1)
    trainings = psutil.Process(killed.process.pid).children(recursive=True)
    policies = {training.environ().get("OMP_WAIT_POLICY") for training in trainings}
    killed.process.kill()

    _, alive = psutil.wait_procs(trainings, timeout=10)
    for training in alive:
        training.kill()
    assert trainings
    assert alive == []
    assert policies == {"PASSIVE"}
    assert {path.name: path.read_bytes() for path in models.glob("septal_detector.*")} == published

    restarted = serve(killed.root, models)
    status, last = restarted.ask("GET", "/train/")
    assert (status, last["status"], last["request"]) == (200, "STOPPED", {"model": "septal_boxes"})
    assert last["progress"]["epoch"] >= 1
    assert any(line.startswith("Epoch 1 of 50") for line in last["details"])
    assert last["details"][-1] == "It ended before it published; the model is unchanged."
    assert restarted.ask("GET", "/train/?check_if_running=true")[0] == 404


@pytest.mark.heavy
def test_a_training_is_stopped_on_request_and_leaves_the_model_as_it_was(server, slicer_client):
    published = {path.name: path.read_bytes() for path in server.models.glob("*.json")}

    slicer_client.train_start("septal_boxes", {"epochs": 50})
    wait_for(server, {"RUNNING"})
    trainings = psutil.Process(server.process.pid).children(recursive=True)
    stopped = slicer_client.train_stop()
    progress = server.ask("GET", "/train/")[1]["progress"]

    assert stopped["status"] == "STOPPED"
    assert progress["status"] == "STOPPED"
    assert stopped["details"][-1] == "Stopped on request."  # Slicer shows the last line
    assert not slicer_client.train_status(check_if_running=True)
    _, alive = psutil.wait_procs(trainings, timeout=10)
    assert [process for process in alive if "train" in " ".join(process.cmdline())] == []
    assert {path.name: path.read_bytes() for path in server.models.glob("*.json")} == published
    assert server.ask("DELETE", "/train/")[0] == 404
