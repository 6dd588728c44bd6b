# SPDX-License-Identifier: Apache-2.0
"""What a choice of the next cine reads and writes: the pool with its scores, and who has which cine before them."""

from __future__ import annotations

from pathlib import Path

from echo_plugin.acquisition.leases import LEASES_FILE, Leases
from echo_plugin.acquisition.live_pool import LivePool
from echo_plugin.acquisition.score_store import DETECTOR, SCORES_FILE, ScoreStore, writable_place
from echo_plugin.host.datastore import EchoDatastore


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
        self._card = models / f"{DETECTOR}.json"

    def models_published_at(self) -> float:
        """Return when the detector was published, s since the epoch; 0 if none is. A batch begins then."""
        try:
            return self._card.stat().st_mtime
        except OSError:
            return 0.0
