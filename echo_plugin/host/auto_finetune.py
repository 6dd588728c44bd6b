# SPDX-License-Identifier: Apache-2.0
"""Training that starts by itself after every so many submissions; off unless the server is told otherwise."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from echo_plugin.errors import TrainingDataError
from echo_plugin.host.datastore import EchoDatastore
from echo_plugin.host.jobs import JobRunningError, is_at_work, start_job
from echo_plugin.host.tasks.train import CineTrainer

logger = logging.getLogger(__name__)


def submissions_wanted(text: str | None) -> int:
    """Return after how many submissions to train; 0: never.

    Raises
    ------
    ValueError
        If ``text`` is no whole number from 0.

    Examples
    --------
    >>> submissions_wanted("10"), submissions_wanted(None)
    (10, 0)
    """
    if not text:
        return 0
    if not (text.isdecimal() and len(text) < 7):
        msg = f"auto_finetune is {text[:40]!r}; the number of submissions after which to train is accepted, 0: never."
        raise ValueError(msg)
    return int(text)


class AutoFinetune:
    """Start ``trainer`` once ``every`` cines have a new label since its latest training (or since the server began).

    A cine that is submitted twice counts once. While a training runs, labels are counted on, and the first submission
    after its end starts the next.
    """

    def __init__(self, every: int, datastore: EchoDatastore, trainer: CineTrainer) -> None:
        self._every = every
        self._datastore = datastore
        self._trainer = trainer
        self._began_at = datetime.now(UTC)

    def new_labels(self) -> int:
        """Return how many cines got a label, or another, since the latest training began."""
        started_at = self._trainer.stats().get("started_at")
        since = datetime.fromisoformat(started_at) if started_at else self._began_at
        labels = self._datastore.labels.current().values()
        return sum(label.saved_at is not None and label.saved_at > since for label in labels)

    def submitted(self) -> bool:
        """Return whether a training was started, now that somebody has submitted a label."""
        if not self._every or is_at_work("train") or self.new_labels() < self._every:
            return False
        try:
            self._trainer.require_trainable(self._datastore, {})
            start_job("train", {"model": self._trainer.name}, before=self._trainer.submitted)
        except (JobRunningError, TrainingDataError) as exc:
            logger.info("Not trained after %d submissions: %s", self._every, exc)
            return False
        logger.info("Training %s starts: %d cines have a new label", self._trainer.name, self._every)
        return True
