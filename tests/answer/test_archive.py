# SPDX-License-Identifier: Apache-2.0
"""An archive is predicted once, whatever dies on the way."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from echo_plugin.answer.batch import ENGINES, predict_archive
from echo_plugin.errors import EchoError

FILES = 12


class Counting:
    """Stands for the networks; notes each look at a file in a file of its own."""

    def __init__(self, models, *, tasks, frame_indices, device) -> None:
        self.tasks = tasks

    def predict(self, path):
        with path.with_suffix(".looks").open("a") as looks:
            looks.write(f"{os.getpid()}\n")
        if path.read_text() == "stop" and looks_at(path) == 1:
            raise KeyboardInterrupt
        return {"path": str(path), "content": path.read_text(), "tasks": list(self.tasks)}


def looks_at(path: Path) -> int:
    notes = path.with_suffix(".looks")
    return len(notes.read_text().splitlines()) if notes.exists() else 0


@pytest.fixture
def files(tmp_path) -> list[Path]:
    paths = [tmp_path / f"{number:02d}.dcm" for number in range(FILES)]
    for path in paths:
        path.write_text(path.stem)
    return paths


def test_a_file_named_twice_has_one_result_and_the_order_is_kept(files, tmp_path):
    results = predict_archive([files[3], files[0], files[3]], tmp_path, predictor=Counting)

    assert [result["content"] for result in results] == ["03", "00"]
    assert looks_at(files[3]) == 1


def test_an_interrupted_run_goes_on_with_the_rest(files, tmp_path, caplog):
    journal = tmp_path / "journal"
    files[5].write_text("stop")
    with pytest.raises(KeyboardInterrupt):
        predict_archive(files, tmp_path, journal=journal, predictor=Counting)
    with journal.open("a") as torn:
        torn.write('{"file": "half a li')

    results = predict_archive(files, tmp_path, journal=journal, predictor=Counting)

    assert [Path(result["path"]) for result in results] == files
    assert [looks_at(path) for path in files] == [1] * 5 + [2] + [1] * 6
    assert "5 of 12 cines were predicted before" in caplog.text
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert Counter(line["file"] for line in lines[1:]) == Counter(str(path) for path in files)
    assert journal.stat().st_mode & 0o077 == 0


def test_a_file_that_failed_is_tried_again_when_the_run_goes_on(files, tmp_path):
    class OutOfMemoryAtFirst(Counting):
        def predict(self, path):
            result = super().predict(path)
            return {"path": str(path), "error": "no memory"} if (path.stem, looks_at(path)) == ("04", 1) else result

    journal = tmp_path / "journal"
    first = predict_archive(files, tmp_path, journal=journal, predictor=OutOfMemoryAtFirst)
    again = predict_archive(files, tmp_path, journal=journal, predictor=OutOfMemoryAtFirst)

    assert first[4] == {"path": str(files[4]), "error": "no memory"}
    assert again[4]["content"] == "04"
    assert [looks_at(path) for path in files] == [1] * 4 + [2] + [1] * 7


def test_a_file_that_changed_is_predicted_again(files, tmp_path):
    journal = tmp_path / "journal"
    predict_archive(files, tmp_path, journal=journal, predictor=Counting)
    files[2].write_text("another cine")

    results = predict_archive(files, tmp_path, journal=journal, predictor=Counting)

    assert results[2]["content"] == "another cine"
    assert [looks_at(path) for path in files] == [1, 1, 2] + [1] * 9


def test_a_file_replaced_while_it_was_predicted_is_predicted_again(files, tmp_path):
    class Slow(Counting):
        def predict(self, path):
            result = super().predict(path)
            if (path.stem, looks_at(path)) == ("02", 1):
                path.write_text("another cine")
            return result

    journal = tmp_path / "journal"
    predict_archive(files, tmp_path, journal=journal, predictor=Slow)

    results = predict_archive(files, tmp_path, journal=journal, predictor=Slow)

    assert results[2]["content"] == "another cine"
    assert [looks_at(path) for path in files] == [1, 1, 2] + [1] * 9


def test_results_of_other_models_or_questions_are_not_taken_for_these(files, tmp_path):
    journal = tmp_path / "journal"
    predict_archive(files, tmp_path, journal=journal, predictor=Counting)

    boxes = predict_archive(files, tmp_path, journal=journal, tasks=["boxes"], predictor=Counting)
    (tmp_path / "septal_detector.json").write_text("{}")
    again = predict_archive(files, tmp_path, journal=journal, tasks=["boxes"], predictor=Counting)

    assert {tuple(result["tasks"]) for result in boxes} == {("boxes",)}
    assert again == boxes
    assert [looks_at(path) for path in files] == [3] * FILES


def test_nothing_to_predict_is_no_failure(tmp_path):
    assert [predict_archive([], tmp_path, engine=engine, predictor=Counting) for engine in ENGINES] == [[], []]


def test_an_absent_ray_is_said_in_one_sentence(files, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)

    with pytest.raises(EchoError, match=r"^Engine ray is not installed; .* --engine local needs nothing\.$"):
        predict_archive(files, tmp_path, engine="ray", predictor=Counting)


def test_a_ray_that_does_not_start_is_said_in_one_sentence(files, tmp_path, monkeypatch):
    class Broken:
        is_initialized = staticmethod(lambda: False)

        @staticmethod
        def init(**_):
            msg = "Timed out while waiting for GCS.\nMore lines."
            raise RuntimeError(msg)

    monkeypatch.setitem(__import__("sys").modules, "ray", Broken)

    with pytest.raises(EchoError, match=r"^Engine ray did not start \(Timed out while waiting for GCS\.\); --engine"):
        predict_archive(files, tmp_path, engine="ray", predictor=Counting)


class OneProcessRay:
    """Ray's calls, answered here: each at once, in order; ``free`` of four processors are not others'."""

    def __init__(self, free: float) -> None:
        self.exceptions = pytest.importorskip("ray", reason="the tests install Ray on Linux only").exceptions
        self.free, self.workers = free, 0

    def is_initialized(self):
        return True

    def cluster_resources(self):
        return {"CPU": 4.0}

    def available_resources(self):
        return {"CPU": self.free} if self.free else {}

    def remote(self, **_):
        return lambda kind: SimpleNamespace(remote=lambda *asked: self._worker(kind, *asked))

    def _worker(self, kind, *asked):
        self.workers += 1
        worker = kind(*asked)
        return SimpleNamespace(refusal=_Remote(worker.refusal), predict=_Remote(worker.predict))

    def get(self, calls):
        return [call() for call in calls] if isinstance(calls, list) else calls()

    def wait(self, calls, num_returns):
        return calls[:num_returns], calls[num_returns:]


class _Remote:
    def __init__(self, method) -> None:
        self.remote = lambda *asked: lambda: method(*asked)


@pytest.mark.parametrize(("free", "workers"), [(3.0, 3), (0.5, 1), (0, 1)])
def test_ray_begins_with_the_processors_that_are_free(files, tmp_path, monkeypatch, free, workers):
    ray = OneProcessRay(free)
    monkeypatch.setitem(sys.modules, "ray", ray)

    results = predict_archive(files, tmp_path, engine="ray", predictor=Counting)

    assert ray.workers == workers
    assert [result["content"] for result in results] == [path.stem for path in files]


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        ("OutOfMemoryError", "05.dcm could not be predicted: Ray reports OutOfMemoryError."),
        ("NodeDiedError", "05.dcm could not be predicted: Ray reports NodeDiedError."),
        ("ActorDiedError", "05.dcm ended the worker that predicted it 3 times."),
    ],
)
def test_what_ray_reports_of_one_cine_is_said_of_it_and_the_others_are_predicted(
    files, tmp_path, monkeypatch, error, sentence
):
    ray = OneProcessRay(2.0)
    monkeypatch.setitem(sys.modules, "ray", ray)

    class Failing(Counting):
        def predict(self, path):
            if path.stem == "05":
                kind = getattr(ray.exceptions, error)
                raise kind() if error == "ActorDiedError" else kind("the kernel's words")
            return super().predict(path)

    results = predict_archive(files, tmp_path, engine="ray", predictor=Failing)

    assert results.pop(5) == {"path": str(files[5]), "error": sentence}
    assert [result["content"] for result in results] == [path.stem for path in files if path.stem != "05"]


def test_models_that_a_worker_fails_to_load_are_said_in_one_sentence(files, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", OneProcessRay(2.0))

    class Unloadable(Counting):
        def __init__(self, models, **asked) -> None:
            msg = "CUDA out of memory.\nMore lines."
            raise RuntimeError(msg)

    with pytest.raises(
        EchoError, match=r"^A worker of engine ray could not load the models \(RuntimeError: CUDA out of memory\.\)\.$"
    ):
        predict_archive(files, tmp_path, engine="ray", predictor=Unloadable)


def test_workers_that_ray_cannot_start_are_said_in_one_sentence(files, tmp_path, monkeypatch):
    ray = OneProcessRay(2.0)
    monkeypatch.setitem(sys.modules, "ray", ray)

    def no_node(_):
        raise ray.exceptions.NodeDiedError("its node")

    monkeypatch.setattr(ray, "get", no_node)

    with pytest.raises(EchoError, match=r"^The workers of engine ray did not start \(NodeDiedError\); --engine local"):
        predict_archive(files, tmp_path, engine="ray", predictor=Counting)


@pytest.fixture
def two_cpus(monkeypatch):
    """A Ray of two workers on loopback, which ends with the test."""
    ray = pytest.importorskip("ray", reason="the tests install Ray on Linux only")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for is_last in (False, False, True):
        try:
            ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
            break
        except Exception:  # it gives its own agent 15 s to start, which a machine at work may not have
            ray.shutdown()
            if is_last:
                raise
    yield ray
    ray.shutdown()


@pytest.mark.heavy
def test_ray_gives_one_result_per_cine_though_workers_are_killed(two_cpus, files, tmp_path):
    class Deadly:  # a local class travels to the workers whole
        def __init__(self, models, *, tasks, frame_indices, device):
            self.pid = os.getpid()

        def predict(self, path):
            with path.with_suffix(".looks").open("a") as notes:
                notes.write(f"{self.pid}\n")
            looks = len(path.with_suffix(".looks").read_text().splitlines())
            if path.stem == "07" or (path.stem in ("02", "05") and looks == 1):
                os.kill(self.pid, signal.SIGKILL)
            return {"path": str(path), "content": path.read_text(), "pid": self.pid}

    journal = tmp_path / "journal"
    results = predict_archive(files, tmp_path, engine="ray", journal=journal, device="cpu", predictor=Deadly)

    assert [Path(result["path"]) for result in results] == files
    assert results.pop(7)["error"] == "07.dcm ended the worker that predicted it 3 times."
    assert [result["content"] for result in results] == [path.stem for path in files if path.stem != "07"]
    assert [looks_at(files[number]) for number in (2, 5, 7)] == [2, 2, 3]
    assert [looks_at(path) for path in files if path.stem not in ("02", "05", "07")] == [1] * 9
    assert len({result["pid"] for result in results}) >= 2
    written = [json.loads(line)["file"] for line in journal.read_text().splitlines()[1:]]
    assert Counter(written) == Counter(str(path) for path in files)


@pytest.mark.heavy
def test_models_that_no_worker_can_load_are_said_once(two_cpus, files, tmp_path):
    class Unloadable(Counting):
        def __init__(self, models, **asked) -> None:
            msg = "Model septal_detector is not published."
            raise EchoError(msg)

    journal = tmp_path / "journal"
    with pytest.raises(EchoError, match=r"^Model septal_detector is not published\.$"):
        predict_archive(files, tmp_path, engine="ray", journal=journal, device="cpu", predictor=Unloadable)
    assert len(journal.read_text().splitlines()) == 1


KILLED = """
import os, signal, sys
from pathlib import Path
from echo_plugin.answer.batch import predict_archive

class Reading:
    def __init__(self, models, **asked):
        pass

    def predict(self, path):
        return {"path": str(path), "content": path.read_text(), "by": "killed"}

def end_after_five(done, total, note):
    if done == 5:
        os.kill(os.getpid(), signal.SIGKILL)

folder = Path(sys.argv[1])
predict_archive(sorted(folder.glob("*.dcm")), folder, engine="ray", journal=folder / "journal", device="cpu",
                progress=end_after_five, predictor=Reading)
"""


@pytest.mark.heavy
def test_a_killed_run_of_ray_goes_on_where_it_stopped(two_cpus, files, tmp_path):
    for _ in range(3):  # as above
        killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
        if killed.returncode == -signal.SIGKILL:
            break
    assert killed.returncode == -signal.SIGKILL

    results = predict_archive(
        files, tmp_path, engine="ray", journal=tmp_path / "journal", device="cpu", predictor=Counting
    )

    assert [(Path(result["path"]), result["content"]) for result in results] == [(path, path.stem) for path in files]
    assert sum(result.get("by") == "killed" for result in results) == 5
    assert sorted(looks_at(path) for path in files) == [0] * 5 + [1] * 7
