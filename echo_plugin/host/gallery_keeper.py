# SPDX-License-Identifier: Apache-2.0
"""Keeps the gallery of past cases level with labels and models while the server runs.

A thread looks every few seconds whether an annotation, a patient or a published model has changed, whoever changed it,
and embeds what is new. Predictions go first: between two cines it waits for those that somebody asked for.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from echo_plugin.defects.gallery_update import update_gallery
from echo_plugin.errors import EchoError, ModelNotFoundError
from echo_plugin.io.patients_file import PATIENTS_FILE
from echo_plugin.io.study_folder import StudyFolder
from echo_plugin.io.study_scan import ANNOTATIONS_DIRECTORY
from echo_plugin.models.checkpoint import DEFECT_EMBEDDER, SEPTAL_DETECTOR
from echo_plugin.predict import EchoPipeline

logger = logging.getLogger(__name__)

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
