# SPDX-License-Identifier: Apache-2.0
"""The start script hands on what it was told; how it installs is what the README's commands show."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.script import load_script


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    module = load_script("apps/echo/start.py")
    monkeypatch.setattr(module, "install", lambda lock: None)
    monkeypatch.setattr(module, "PYTHON", Path(sys.executable))
    before = signal.getsignal(signal.SIGINT)
    yield module
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("words", [["--studies", "absent"], ["--studies=absent"]])
def test_the_callers_study_folder_is_served_not_the_sample(
    start: ModuleType, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], words: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["start.py", *words])

    code = start.main()

    assert code == 1
    assert "absent" in capfd.readouterr().err


def test_ctrl_c_is_left_to_the_server(start: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], *, check: bool) -> subprocess.CompletedProcess[str]:
        signal.raise_signal(signal.SIGINT)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(start.subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["start.py"])

    assert start.main() == 0
