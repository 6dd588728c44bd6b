# SPDX-License-Identifier: Apache-2.0
"""The pool of a study folder kept up to date in memory: only what is new is read, so that a choice never waits.

Files are looked for by whoever refreshes the `StudyFolder`; scores are made by `score_folder`, mostly elsewhere.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from echo_plugin.acquisition.evidence import Array
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
from echo_plugin.acquisition.uncertainty import Calibration, calibrate, pooled
from echo_plugin.boxes.tracks import operating_score
from echo_plugin.errors import EchoError
from echo_plugin.io.label_summaries import LabelSummaries
from echo_plugin.io.study_folder import StudyFolder
from echo_plugin.models.card_file import load_card

RECALIBRATE_AFTER_S = 60.0

Basis = tuple[str, int, int]
"""What a calibration depends on: the models' key, the judgements' number, the generation of the labels."""


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
        self._judgements_number = 0
        self._calibration = Calibration()
        self._calibrated_by: Basis = ("", 0, -1)
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

    def calibrate_if_due(self) -> None:
        """Calibrate the scores by the judgements that there are by now.

        Takes a tenth of a second among thousands, and longer the first time: for a thread that nobody waits for.
        """
        with self.reading():
            key, basis = self._key, (self._key, self._judgements_number, self._labels_generation)
            is_early = time.monotonic() - self._calibrated_at < RECALIBRATE_AFTER_S
            if basis == self._calibrated_by or (key == self._calibrated_by[0] and is_early):
                return
            revisions = {i: int(self._labels.revision[place]) for i, place in self._cines.place_of.items()}
            known = list(self._judgements.values())
        calibration = _calibrate(self._models, key, rows_judged_by(detector_of(key), known, revisions))
        with self._lock:
            if key == self._key:
                self._calibration = calibration
                recalibrate(self._scores, calibration)
            self._calibrated_by, self._calibrated_at = basis, time.monotonic()

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
            if judgements_number < self._judgements_number:  # the file was begun anew
                self._judgements, self._judgements_number = {}, 0
            self._judgements.update(self._store.judgements(newer_than=self._judgements_number))
            self._judgements_number = judgements_number
        if is_another or scores_number != self._number:
            self._catch_up_with_scores(is_another, scores_number)

    def _catch_up_with_scores(self, is_another: bool, number: int) -> None:
        key = models_in_use(self._store)
        begin_anew = is_another or key != self._key
        rows = self._store.newer_than(key, 0 if begin_anew else self._number)
        evidence = {
            self._cines.place_of[row.image_id]: row.evidence
            for row in rows
            if row.evidence is not None and row.image_id in self._cines.place_of
        }
        width = next((len(e.embedding) for e in evidence.values()), 1)
        if begin_anew or not self._scores.is_scored.any():  # how wide embeddings are is known from the first
            self._scores = no_scores(len(self._cines.image_ids), width)
        if key != self._key:
            self._key = key
            self._calibration = _calibrate(self._models, key, pooled(()))
        fill_in(self._scores, evidence, self._calibration)
        self._number = max([number, *(row.number for row in rows[-1:])])


def models_in_use(store: ScoreStore) -> str:
    """Return the key of the models whose scores are used, new ones once they have seen as many cines; "": none."""
    counts = store.counts()
    return max(reversed(counts), key=counts.__getitem__, default="")


def _calibrate(models: Path, key: str, judged: Array) -> Calibration:
    """Return the calibration of the detector of ``key``; its operating score is not known once another is published."""
    detector, score = detector_of(key), None
    with suppress(EchoError):
        card = load_card(models, DETECTOR)
        score = operating_score(card) if card.sha256[:16] == detector else None
    return calibrate(score, judged)
