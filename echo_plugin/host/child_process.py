# SPDX-License-Identifier: Apache-2.0
"""A process that ends with the server that started it; as a program, the one that scores a study folder.

``python -m echo_plugin.host.child_process STUDIES SCORES.sqlite MODELS DEVICE``; ``keepers`` starts it. It looks after
the server before it loads anything, since networks take seconds to load and the server may be killed meanwhile.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from pathlib import Path

import psutil

SERVER_PID_VARIABLE = "MONAILABEL_ECHO_SERVER_PID"
"""Set by the server for its children."""


def end_with_server(environment: dict[str, str] | os._Environ[str] = os.environ, poll_s: float = 1.0) -> None:
    """End this process, and what it started, as soon as the server that started it is gone.

    Does nothing in the server itself or where no server is named. A thread looks at the server's process: that works on
    every system and also when the server was killed without a chance to clean up.
    """
    pid = environment.get(SERVER_PID_VARIABLE, "")
    if not pid.isdigit() or int(pid) == os.getpid():
        return
    try:
        server = psutil.Process(int(pid))
    except psutil.NoSuchProcess:
        _end_now()
    threading.Thread(target=_watch, args=(server, poll_s), name="end-with-server", daemon=True).start()


def _watch(server: psutil.Process, poll_s: float) -> None:
    while _is_alive(server):
        time.sleep(poll_s)
    _end_now()


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _end_now() -> None:
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(1)


def score(studies: Path, scores: Path, models: Path, device: str) -> int:
    """Score the study folder; return 0, or 1 after one sentence on stderr: it is to be started again."""
    end_with_server()
    from echo_plugin.acquisition.score_folder import score_folder
    from echo_plugin.acquisition.score_store import ScoreStore
    from echo_plugin.errors import EchoError
    from echo_plugin.io.study_folder import StudyFolder

    try:
        scored = score_folder(StudyFolder(studies), models, ScoreStore(scores), device=device)
    except EchoError as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    if scored.put_off:
        sys.stderr.write(
            f"{scored.put_off} of {scored.cines} cines could not be looked at and are tried again later.\n"
        )
        return 1
    words = f"{scored.cines} cines scored, {scored.unreadable} unreadable"
    if scored.labels is not None:
        words += f", {scored.labels.judged} labels judged, {scored.labels.left_out} left out"
    sys.stderr.write(f"{words}\n")
    return 0


if __name__ == "__main__":
    logging.basicConfig(level="INFO", format="%(levelname)s %(name)s: %(message)s")
    sys.exit(score(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]))
