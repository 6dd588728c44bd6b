# SPDX-License-Identifier: Apache-2.0
"""Work in processes of its own, one of a kind at a time: its start, its progress on disk, its end with the server's.

MONAI Label starts, remembers and kills them, but leaves them running when the server ends, and knows neither
percentage nor time left. Publishing is atomic, so a kill at any moment is safe.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from monailabel.utils.async_tasks.task import AsyncTask

from echo_plugin.errors import EchoError
from echo_plugin.host.folders import read_json, write_kept
from echo_plugin.training.options import EpochStatus

logger = logging.getLogger(__name__)

LINES_KEPT, LONGEST_LINE = 20, 500
"""As many lines of its log tell how a training went; MONAI Label keeps as many, but in memory."""
STARTING = threading.Lock()
"""Held while a job is started: of two requests at once, one starts it and the other is told so."""


class JobRunningError(EchoError):
    """Work of this kind is being done already; wait for it or stop it."""


def is_at_work(method: str) -> bool:
    """Whether a job of the kind ``train`` or ``batch_infer`` runs or is about to."""
    latest, _ = AsyncTask.status(method)
    return latest is not None and latest["status"] in ("SUBMITTED", "RUNNING")


def start_job(
    method: str, request: dict[str, Any], *, enqueue: bool = False, before: Callable[[], None] | None = None
) -> dict[str, Any]:
    """Start a job, after calling ``before``, and return it as MONAI Label describes it.

    Raises
    ------
    JobRunningError
        If one of its kind is at work, unless it may ``enqueue``.
    """
    with STARTING:
        if is_at_work(method) and not enqueue:
            msg = f"A {method} job is running already; wait for it or stop it."
            raise JobRunningError(msg)
        if before is not None:
            before()
        job, sentence = AsyncTask.run(method, request=request, enqueue=enqueue)
        if job is None:  # one that was stopped is about to end
            raise JobRunningError(sentence)
        return job


def read_progress(path: Path) -> dict[str, Any]:
    """Return what ``TrainingProgress`` wrote, empty if nothing; a training that was killed is told as STOPPED."""
    facts = read_json(path)
    process = (facts.pop("pid", None), facts.pop("pid_began", None))
    if facts.get("status") in ("SUBMITTED", "RUNNING") and process != _identity(process[0]):
        ended = datetime.fromtimestamp(path.stat().st_mtime, UTC) if path.is_file() else None
        facts |= {"status": "STOPPED", "eta_s": 0.0, "ended_at": ended and _text(ended)}
        facts["message"] = "It ended before it published; the model is unchanged."
    return facts


def _identity(pid: object) -> tuple[int, float] | None:
    """Return a running process's id with when it began: after a restart of the machine another may have its id."""
    if not isinstance(pid, int):
        return None
    try:
        return pid, psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None


def _text(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds")


def last_job(name: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the latest training of a model, which an earlier server may have run, as MONAI Label describes a job."""
    ends = {"end_ts": facts["ended_at"]} if facts.get("ended_at") else {}
    return {
        "id": f"{name} {facts['started_at']}",
        "status": facts["status"],
        "request": {"model": name},
        "start_ts": facts["started_at"],
        **ends,
        "details": [*facts.get("lines", []), *([facts["message"]] if facts.get("message") else [])],
        "progress": dict(facts),
    }


class TrainingProgress(logging.Handler):
    """How far a training is, in a file that the server reads while another process writes it.

    ``best_metric`` (0..1), ``epoch``, ``total_epochs`` and ``total_time`` are what 3D Slicer's bars show; ``metric`` is
    None where nobody is measured; ``curve`` has the (epoch, metric) of every epoch so far; ``lines`` are the last of
    the log, which this handler is given. It stays when the training is over, so that a later server knows its outcome.

    Parameters
    ----------
    path
        The JSON file; replaced as a whole at each epoch.
    clock
        Seconds, ascending.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(logging.INFO)
        self.path = path
        self._clock = clock
        self._started = clock()
        self._started_at = _text(datetime.now(UTC))
        self._reached: dict[str, Any] = {"epoch": 0, "total_epochs": 1, "best_metric": 0.0, "metric": None}
        self._lines: deque[str] = deque(maxlen=LINES_KEPT)

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(record.getMessage()[:LONGEST_LINE])

    def submitted(self) -> None:
        """Say, in the server, that a process for the training is being started."""
        self._write(status="SUBMITTED")

    def stopped(self) -> None:
        """Say that it was ended on request."""
        self._end("STOPPED", "Stopped on request; the model is unchanged.")

    def start(self) -> None:
        """Say that training begins."""
        self._write(status="RUNNING")

    def epoch_done(self, epoch: EpochStatus) -> None:
        """Say that an epoch is over."""
        self._reached = {
            "epoch": epoch.epoch,
            "total_epochs": epoch.total_epochs,
            "best_metric": epoch.best_metric or 0.0,
            "metric": epoch.metric,
            "train_loss": epoch.train_loss,
            "curve": [*self._reached.get("curve", []), [epoch.epoch, epoch.metric]],
        }
        metric = "" if epoch.metric is None else f", metric {epoch.metric:.3f} (best {epoch.best_metric or 0:.3f})"
        logger.info("Epoch %d of %d, about %.0f s left%s", epoch.epoch, epoch.total_epochs, epoch.eta_s, metric)
        self._write(status="RUNNING", eta_s=round(epoch.eta_s, 1), message=epoch.note)

    def done(self, message: str) -> None:
        """Say that the model is published."""
        logger.info(message)
        self._end("DONE", message, total_time=round(self._clock() - self._started, 1))

    def failed(self, message: str) -> None:
        """Say in one sentence why there is no model."""
        logger.error(message)
        self._end("ERROR", message)

    def _end(self, status: str, message: str, **facts: Any) -> None:
        self._write(status=status, eta_s=0.0, message=message, ended_at=_text(datetime.now(UTC)), **facts)

    def _write(self, **facts: Any) -> None:
        elapsed = round(self._clock() - self._started, 1)
        pid, began = _identity(os.getpid()) or (os.getpid(), 0.0)
        content = {**self._reached, "started_at": self._started_at, "elapsed_s": elapsed, "lines": list(self._lines)}
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_kept(self.path, json.dumps({**content, "pid": pid, "pid_began": began, **facts}).encode())
