# SPDX-License-Identifier: Apache-2.0
"""The pool of a study folder kept up to date in memory: only what is new is read, so that a choice never waits.

Files are looked for by whoever refreshes the `StudyFolder`; scores are made by `score_folder`, mostly elsewhere.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from echo_plugin.acquisition.pool import (
    Cines,
    Labels,
    Pool,
    Scores,
    fill_in,
    gather_labels,
    list_cines,
    no_scores,
    recalibrate,
)
from echo_plugin.acquisition.score_store import DETECTOR, Judgement, ScoreStore, detector_of, rows_judged_by
from echo_plugin.acquisition.uncertainty import Calibration, calibrate, operating_score
from echo_plugin.errors import EchoError
from echo_plugin.io.label_summaries import LabelSummaries
from echo_plugin.io.study_folder import StudyFolder
from echo_plugin.models.card_file import load_card

RECALIBRATE_AFTER_S = 60.0


class LivePool:
    """The pool of ``studies``; several threads take turns.

    Parameters
    ----------
    studies, labels, store
        Where cines, labels and scores are.
    models
        Published models; the detector's card says at which score a box is as likely right as wrong.
    """

    def __init__(self, studies: StudyFolder, labels: LabelSummaries, store: ScoreStore, models: Path) -> None:
        self._studies, self._summaries, self._store, self._models = studies, labels, store, models
        self._lock = threading.Lock()
        self._cines: Cines = list_cines(())
        self._generation = -1
        self._labels: Labels = gather_labels(self._cines, {})
        self._labels_generation = -1
        self._scores: Scores = no_scores(0)
        self._key = ""
        self._number = 0
        self._judgements: dict[str, Judgement] = {}
        self._judgements_number = -1
        self._calibration = Calibration()
        self._calibrated_at = -RECALIBRATE_AFTER_S

    @property
    def models(self) -> str:
        """The key of the models whose scores are used; empty: none yet."""
        return self._key

    @contextmanager
    def reading(self) -> Iterator[Pool]:
        """Hold the pool as it is now."""
        with self._lock:
            self._catch_up()
            yield Pool(self._cines, self._scores, self._labels, self._judgements)

    def _catch_up(self) -> None:
        generation = self._studies.generation
        is_another = generation != self._generation
        if is_another:
            self._cines, self._generation = list_cines(self._studies.entries()), generation
        labels_generation, summaries = self._summaries.with_generation()
        if is_another or labels_generation != self._labels_generation:
            self._labels, self._labels_generation = gather_labels(self._cines, summaries), labels_generation
        scores_number, judgements_number = self._store.version()
        if judgements_number != self._judgements_number:
            self._judgements, self._judgements_number = self._store.judgements(), judgements_number
            self._calibrate_if_due()
        if is_another or scores_number != self._number:
            self._catch_up_with_scores(is_another, scores_number)

    def _catch_up_with_scores(self, is_another: bool, number: int) -> None:
        counts = self._store.counts()
        most = max(counts.values(), default=0)  # those of new models are used once they have seen as many cines
        key = next((models for models in reversed(list(counts)) if counts[models] == most), "")
        begin_anew = is_another or key != self._key
        rows = self._store.newer_than(key, 0 if begin_anew else self._number)
        evidence = {
            self._cines.place_of[row.image_id]: row.evidence
            for row in rows
            if row.evidence is not None and row.image_id in self._cines.place_of
        }
        width = next((len(e.embedding) for e in evidence.values()), 1)
        if begin_anew or not self._scores.is_scored.any():  # how wide embeddings are is known from the first
            self._scores, self._key = no_scores(len(self._cines.image_ids), width), key
            self._calibrated_at = -RECALIBRATE_AFTER_S
            self._calibrate_if_due()
        fill_in(self._scores, evidence, self._calibration)
        self._number = max([number, *(row.number for row in rows[-1:])])

    def _calibrate_if_due(self) -> None:
        if time.monotonic() - self._calibrated_at < RECALIBRATE_AFTER_S:
            return
        self._calibrated_at = time.monotonic()
        revisions = {i: int(self._labels.revision[place]) for i, place in self._cines.place_of.items()}
        detector = detector_of(self._key)
        judged = rows_judged_by(detector, self._judgements.values(), revisions)
        self._calibration = calibrate(_operating_score(self._models, detector), judged)
        recalibrate(self._scores, self._calibration)


def _operating_score(models: Path, detector: str) -> float | None:
    """Return that of the detector whose scores are used; None: another one is published by now, or none."""
    try:
        card = load_card(models, DETECTOR)
    except EchoError:
        return None
    return operating_score(card) if card.sha256[:16] == detector else None
