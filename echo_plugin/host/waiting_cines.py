# SPDX-License-Identifier: Apache-2.0
"""What a choice of the next cine reads and writes: the pool with its scores, and who has which cine before them."""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path
from typing import Any

from echo_plugin.acquisition.confirmed import Confirmed
from echo_plugin.acquisition.leases import LEASES_FILE, Leases
from echo_plugin.acquisition.live_pool import LivePool
from echo_plugin.acquisition.score_store import DETECTOR, SCORES_FILE, ScoreStore, writable_place
from echo_plugin.host.datastore import EchoDatastore

logger = logging.getLogger(__name__)


class WaitingCines:
    """Scores and leases of a study folder, kept in it or, where it is read-only, in its cache.

    Parameters
    ----------
    datastore
        The study folder with its labels.
    models
        Where the detector is published.
    """

    def __init__(self, datastore: EchoDatastore, models: Path) -> None:
        place = writable_place(datastore.root, datastore.cache)
        self.store = ScoreStore(place / SCORES_FILE)
        self.leases = Leases(place / LEASES_FILE)
        self.pool = LivePool(datastore.studies, datastore.labels, self.store, models)
        self.is_confirmed = Confirmed(datastore.studies)
        self.models = models
        self._labels = datastore.labels
        self._card = models / f"{DETECTOR}.json"

    def models_published_at(self) -> float:
        """Return when the detector was published, s since the epoch; 0 if none is. A batch begins then."""
        try:
            return self._card.stat().st_mtime
        except OSError:
            return 0.0

    def submitted(self, image_id: str) -> None:
        """Let a cine go that has a label now; one whose label says nothing still waits, and stays with its annotator.

        The label is stored already: what fails here is logged only.
        """
        try:
            if image_id in self._labels.current():
                self.leases.end(image_id)
        except (sqlite3.Error, OSError) as exc:
            logger.warning("Cine %s is kept for its annotator (%s)", image_id, type(exc).__name__)

    def take(self, image_id: str, holder: str | None) -> dict[str, Any]:
        """Hand out a cine that somebody asks for by its id: ``is_yours``, and the ``reason`` where it is not."""
        if self.leases.take(image_id, holder) or (holder and self.leases.show_again(image_id, holder)):
            return {"image": image_id, "is_yours": True}
        minutes = self.leases.minutes_left(self.leases.shown()[image_id])
        reason = f"Cine {image_id} is with another annotator; ask again in {minutes} minutes."
        return {"image": image_id, "is_yours": False, "reason": reason}
