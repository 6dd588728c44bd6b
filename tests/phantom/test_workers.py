# SPDX-License-Identifier: Apache-2.0
import os
import subprocess
import sys

import psutil
import pytest

pytestmark = pytest.mark.heavy


def workers_of(command):
    """Return the pool's processes that are past their imports."""
    found = []
    for process in psutil.Process(command.pid).children(recursive=True):
        try:
            if "spawn_main" in " ".join(process.cmdline()) and process.num_threads() > 1:
                found.append(process)
        except psutil.NoSuchProcess:  # a helper of an import that is over already
            continue
    return found


def test_workers_end_with_a_killed_command(tmp_path):
    arguments = ["phantom", str(tmp_path / "out"), "--patients", "30", "--frames", "40", "--jobs", "2"]
    with subprocess.Popen(
        [sys.executable, "-m", "echo_plugin", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as command:
        try:
            while len(workers := workers_of(command)) < 2:
                assert command.poll() is None, "the command ended before its workers were at work"
        finally:
            command.kill()

    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive
