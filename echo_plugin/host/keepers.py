# SPDX-License-Identifier: Apache-2.0
"""What is kept level with files, labels and models while the server runs: the scores of cines, the gallery.

For each a thread looks every few seconds whether anything has changed, whoever changed it. Scores are made by a process
of low priority (this module as a program): MONAI Label's own scoring starts one at every next sample. The gallery is
embedded in the server, where predictions go first.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from echo_plugin.acquisition.pool import models_in_use
from echo_plugin.acquisition.score_store import DETECTOR, detector_of, models_key
from echo_plugin.answer.predict import EchoPipeline
from echo_plugin.errors import EchoError, ModelNotFoundError
from echo_plugin.evidence.gallery_update import update_gallery
from echo_plugin.host.datastore import EchoDatastore
from echo_plugin.host.next_cine import WaitingCines
from echo_plugin.io.patients_file import PATIENTS_FILE
from echo_plugin.io.study_folder import CineEntry, StudyFolder
from echo_plugin.io.study_index import ANNOTATIONS_DIRECTORY
from echo_plugin.model_card import load_card
from echo_plugin.models.checkpoint import DEFECT_EMBEDDER, SEPTAL_DETECTOR

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 4.0
"""Less than a request waits before it looks itself (``datastore.RESCAN_AFTER_S``), so that no request has to."""
TRY_AGAIN_AFTER_S = 300.0
"""A scoring that failed is tried again after this long, or as soon as something changes."""

JUDGE_EVERY_S = 600.0
"""New labels alone are judged at most so often: a submission must not start a process."""

NICENESS = 10
"""No request waits for the scoring."""

State = tuple[str, int, int]
"""What scores depend on: the models' key, the generations of the files and of the labels."""


class ScoreKeeper:
    """The scorer of one server; started once, stopped with it.

    Parameters
    ----------
    datastore, waiting
        What is scored, and where scores are kept.
    models
        Published models.
    device
        auto, cpu or cuda.
    """

    def __init__(self, datastore: EchoDatastore, waiting: WaitingCines, models: Path, device: str = "auto") -> None:
        self._datastore, self._waiting, self._models, self._device = datastore, waiting, models, device
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._job: subprocess.Popen[bytes] | None = None
        self._scored: State = ("", -1, -1)
        self._ended_at = time.monotonic()
        self._message = ""
        self._started = (0.0, 0)
        self._lock = threading.Lock()

    def start(self) -> None:
        """Begin to look; once."""
        self._thread = threading.Thread(target=self._keep, name="score-keeper", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread and the process it started."""
        self._stopped.set()
        with self._lock:
            if self._job is not None and self._job.poll() is None:
                self._job.terminate()
                try:
                    self._job.wait(5)
                except subprocess.TimeoutExpired:
                    self._job.kill()
                    self._job.wait(5)
        if self._thread is not None:
            self._thread.join(5)

    def progress(self) -> dict[str, Any]:
        """Return ``state`` (scoring, idle, failed, no model), ``done`` of ``total`` cines, ``eta_s``, ``message``.

        ``choices_by`` : the detector whose scores choices go by, the published one once it has seen as many cines.
        """
        entries = self._entries()
        facts: dict[str, Any] = {"total": len(entries), "done": 0, "eta_s": None, "message": self._message}
        try:
            key = models_key(self._models)
        except EchoError as exc:
            return {"state": "no model", **facts, "message": str(exc), "choices_by": ""}
        waiting = len(self._waiting.store.unscored(key, entries))
        facts["done"] = len(entries) - waiting
        is_running = self._job is not None and self._job.poll() is None
        if is_running:
            began, done_before = self._started
            rate = (facts["done"] - done_before) / max(time.monotonic() - began, 1e-3)
            facts["eta_s"] = round(waiting / rate, 1) if rate > 0 else None
        state = "scoring" if is_running else "failed" if self._message and waiting else "idle"
        return {"state": state, **facts, "choices_by": self._choices_by()}

    def _choices_by(self) -> str:
        card, used = load_card(self._models, DETECTOR), detector_of(models_in_use(self._waiting.store))
        is_published = used == card.sha256[:16]
        return used and f"{'' if is_published else 'one before '}{card.name} {card.version}"

    def _keep(self) -> None:
        while not self._stopped.is_set():
            try:
                self.look()
            except Exception as exc:  # the next look may find it readable again; its values may be a patient's
                logger.error("Scores could not be looked after (%s)", type(exc).__name__)
            self._stopped.wait(LOOK_EVERY_S)

    def look(self) -> None:
        """Start scoring if it is due; take note of one that has ended."""
        self._datastore.images.refresh()
        self._waiting.pool.calibrate_if_due()  # caught up with what was scored, so that a request has little left to do
        if self._job is not None and self._job.poll() is None:
            return
        self._note_end()
        state = self._state()
        if state is not None and self._is_due(state):
            with self._lock:
                if not self._stopped.is_set():
                    self._begin(state)

    def _is_due(self, state: State) -> bool:
        key, _, labels = state
        if self._message:
            return state[:2] != self._scored[:2] or time.monotonic() - self._ended_at > TRY_AGAIN_AFTER_S
        if state[:2] != self._scored[:2]:
            entries = self._entries()
            if self._waiting.store.unscored(key, entries):
                return True
            self._scored = (*state[:2], self._scored[2])
        return labels != self._scored[2] and time.monotonic() - self._ended_at > JUDGE_EVERY_S

    def _entries(self) -> list[CineEntry]:
        """Return the cines that can be scored: those whose file is here, not only in an archive."""
        return [e for e in self._datastore.studies.entries() if e.error is None and e.path.is_file()]

    def _note_end(self) -> None:
        if self._job is None:
            return
        self._ended_at = time.monotonic()
        last = self._log.read_text(errors="replace").strip().splitlines()[-1:]
        if self._job.returncode:
            self._message = f"Scoring ended early: {' '.join(last) or f'code {self._job.returncode}'}"
            logger.warning(self._message)
        else:
            self._message = ""
            logger.info("Scoring is done: %s", " ".join(last))
        self._job = None

    def _begin(self, state: State) -> None:
        studies = self._datastore.studies
        known = len(self._waiting.store.stamps(state[0]))
        self._started, self._scored = (time.monotonic(), known), state
        scores = self._waiting.store.path
        command = [sys.executable, "-m", "echo_plugin.host.child_process"]
        with self._log.open("wb") as log:
            self._job = subprocess.Popen(
                [*command, str(studies.root), str(scores), str(self._models), self._device],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ},  # read when torch is loaded
            )
        if os.name == "posix":
            os.setpriority(os.PRIO_PROCESS, self._job.pid, NICENESS)

    @property
    def _log(self) -> Path:
        return self._datastore.cache / "scoring.log"

    def _state(self) -> State | None:
        """Return the present state; None: no detector is published."""
        try:
            key = models_key(self._models)
        except EchoError:
            return None
        return key, self._datastore.studies.generation, self._datastore.labels.with_generation()[0]


POLL_S = 3.0
"""A label saved is a past case at the latest after this long and the time to embed it."""


class GalleryKeeper:
    """The gallery of one study folder and one pipeline.

    Parameters
    ----------
    studies, pipeline
        Whose labels, and which models.
    poll_s
        Seconds between two looks.
    """

    def __init__(self, studies: StudyFolder, pipeline: EchoPipeline, poll_s: float = POLL_S) -> None:
        self.studies = studies
        self.pipeline = pipeline
        self._poll_s = poll_s
        self._asked = 0
        self._nobody_asks = threading.Condition()
        self._stop = threading.Event()
        self._done: tuple[int | None, ...] = ()

    def start(self) -> None:
        """Begin to look, in a thread that ends with the program."""
        threading.Thread(target=self._watch, name="gallery-keeper", daemon=True).start()

    def stop(self) -> None:
        """End after the cine at hand; what is embedded stays."""
        self._stop.set()
        with self._nobody_asks:
            self._nobody_asks.notify_all()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Let no further cine be embedded during the block: somebody waits for a prediction."""
        with self._nobody_asks:
            self._asked += 1
        try:
            yield
        finally:
            with self._nobody_asks:
                self._asked -= 1
                self._nobody_asks.notify_all()

    def look(self) -> bool:
        """Update the gallery if anything has changed since the last look; return whether it had."""
        seen = self._seen()
        if seen == self._done or seen[0] is None:
            return False
        try:
            self.studies.refresh()
        except EchoError as exc:
            logger.warning("The study folder could not be looked through: %s", exc)
        self._done = self._seen()  # what fails is tried again when something changes, not for ever
        try:
            update_gallery(self.studies, self.pipeline, progress=self._wait_for_others, should_stop=self._stop.is_set)
        except ModelNotFoundError as exc:
            logger.info("No gallery is kept: %s", exc)
        except (EchoError, OSError, ValueError) as exc:
            logger.warning("The gallery could not be updated: %s", exc)
        return True

    def _watch(self) -> None:
        while not self._stop.is_set():
            try:
                self.look()
            except Exception as exc:  # without the values it failed on: they may be a patient's
                logger.error("The gallery of %s could not be updated (%s)", self.studies.root.name, type(exc).__name__)
            self._stop.wait(self._poll_s)

    def _wait_for_others(self, _number: int, _total: int, _name: str) -> None:
        with self._nobody_asks:
            self._nobody_asks.wait_for(lambda: self._asked == 0 or self._stop.is_set())

    def _seen(self) -> tuple[int | None, ...]:
        """Return what changes with the models and labels: cards and annotations are replaced, never rewritten."""
        models, root = self.pipeline.models_dir, self.studies.root
        paths = [models / f"{DEFECT_EMBEDDER}.json", models / f"{SEPTAL_DETECTOR}.json", root / ANNOTATIONS_DIRECTORY]
        stamps: list[int | None] = []
        for path in [*paths, root / PATIENTS_FILE]:
            try:
                stamps.append(path.stat().st_mtime_ns)
            except OSError:
                stamps.append(None)
        return *stamps, self.studies.generation
