# SPDX-License-Identifier: Apache-2.0
"""A training tells how far it is and ends with the server that started it."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from echo_plugin.host.child_process import SERVER_PID_VARIABLE, end_with_server
from echo_plugin.host.folders import read_json
from echo_plugin.host.jobs import TrainingProgress, read_progress
from echo_plugin.training.options import EpochStatus

pytestmark = pytest.mark.heavy

TRAINING = """
import os, subprocess, sys, time
from echo_plugin.host.child_process import end_with_server
end_with_server(poll_s=0.05)
helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
print(os.getpid(), helper.pid, flush=True)
time.sleep(120)
"""

SERVER = f"""
import os, subprocess, sys, time
os.environ["{SERVER_PID_VARIABLE}"] = str(os.getpid())
child = subprocess.Popen([sys.executable, "-c", {TRAINING!r}], stdout=sys.stdout)
child.wait()
"""


@pytest.mark.skipif(os.name != "posix", reason="sends a POSIX signal")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["terminated", "killed"])
def test_training_and_what_it_started_end_when_the_server_is(how):
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True) as server:
        training, helper = (psutil.Process(int(pid)) for pid in server.stdout.readline().split())

        os.kill(server.pid, how)
        server.wait(10)

        gone, alive = psutil.wait_procs([training, helper], timeout=10)
        for process in alive:
            process.kill()
        assert {process.pid for process in gone} == {training.pid, helper.pid}


def test_the_server_itself_and_a_lone_process_are_left_alone():
    before = threads_named("end-with-server")

    end_with_server({SERVER_PID_VARIABLE: str(os.getpid())})
    end_with_server({})

    assert threads_named("end-with-server") == before


def threads_named(name: str) -> int:
    import threading

    return sum(thread.name == name for thread in threading.enumerate())


def test_progress_holds_what_slicers_bars_show(tmp_path):
    times = iter(range(0, 1000, 10))
    progress = TrainingProgress(tmp_path / "septal_boxes.json", clock=lambda: float(next(times)))

    progress.start()
    assert read_json(progress.path)["status"] == "RUNNING"
    progress.epoch_done(EpochStatus(3, 10, eta_s=70.04, train_loss=0.5, metric=0.6, best_metric=0.7))
    running = read_progress(progress.path)
    progress.done("Published septal_detector 2.")
    done = read_progress(progress.path)

    assert (running["epoch"], running["total_epochs"], running["best_metric"], running["eta_s"]) == (3, 10, 0.7, 70.0)
    assert running["status"] == "RUNNING"
    assert "total_time" not in running  # Slicer takes its presence as the end
    assert done["total_time"] > 0
    assert (done["status"], done["epoch"], done["message"]) == ("DONE", 3, "Published septal_detector 2.")


def test_a_failed_training_says_why(tmp_path):
    progress = TrainingProgress(tmp_path / "views.json")

    progress.start()
    progress.failed("Training views needs 3 patients; the study folder has 1.")

    assert read_json(progress.path)["status"] == "ERROR"
    assert "needs 3 patients" in read_json(progress.path)["message"]


def test_a_training_that_was_killed_is_told_as_stopped(tmp_path):
    path = tmp_path / "views.json"
    killed = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os, signal, sys; from pathlib import Path\n"
            "from echo_plugin.host.jobs import TrainingProgress\n"
            "TrainingProgress(Path(sys.argv[1])).start(); os.kill(os.getpid(), signal.SIGTERM)",
            str(path),
        ],
        check=False,
    )

    facts = read_progress(path)

    assert killed.returncode != 0
    assert (facts["status"], facts["eta_s"]) == ("STOPPED", 0.0)
    assert "pid" not in facts


def test_progress_is_never_read_half_written(tmp_path):
    path = tmp_path / "progress.json"
    progress = TrainingProgress(path)
    progress.start()
    writer = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path\n"
            "from echo_plugin.host.jobs import TrainingProgress\n"
            "from echo_plugin.training.options import EpochStatus\n"
            "p = TrainingProgress(Path(sys.argv[1]))\n"
            "[p.epoch_done(EpochStatus(e, 100, 1.0, 0.1, None, None, note='x' * 4096)) for e in range(100)]\n",
            str(path),
        ]
    )
    reads = 0
    deadline = time.monotonic() + 300
    while writer.poll() is None and time.monotonic() < deadline:
        assert json.loads(path.read_text())["status"] == "RUNNING"
        reads += 1

    assert writer.wait(60) == 0
    assert reads > 0


def test_a_child_looks_after_its_server_before_it_loads_anything_that_takes_long():
    code = (
        "import sys, echo_plugin.host.child_process;"
        "print([name for name in ('torch', 'numpy', 'monailabel', 'pydicom') if name in sys.modules])"
    )

    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert loaded.strip() == "[]"
