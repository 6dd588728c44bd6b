# SPDX-License-Identifier: Apache-2.0
"""The cines of a study folder as arrays, one row for each: what a choice of the next cine reads and nothing else.

`LivePool` keeps them up to date in memory, reading only what is new, so that a choice never waits. Files are looked for
by whoever refreshes the `StudyFolder`; scores are made by `score_folder`, mostly elsewhere.

How far cines are from those that are labelled is for the greedy k-centre choice of core-set learning (Sener and
Savarese, ICLR 2018, arXiv 1708.00489, algorithm 1): the next is the one farthest from every centre
(``strategies.most_unlike``).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from echo_plugin.acquisition.score_store import DETECTOR, Judgement, ScoreStore, detector_of, matches_of
from echo_plugin.acquisition.uncertainty import (
    FRAMES_SCORED,
    FRAMES_TO_DRAW,
    OVERLAPS_SHAPE,
    SCORES_SHAPE,
    Array,
    Calibration,
    CineScores,
    calibrate,
    cine_uncertainties,
    frame_uncertainties,
    frames_to_draw,
)
from echo_plugin.anatomy import View
from echo_plugin.answer.boxes import operating_score
from echo_plugin.errors import EchoError
from echo_plugin.io.label_summaries import LabelSummaries, LabelSummary
from echo_plugin.io.study_folder import CineEntry, StudyFolder
from echo_plugin.model_card import load_card

logger = logging.getLogger(__name__)

VIEWS = tuple(View)


@dataclass(frozen=True)
class Cines:
    """Who is there: (N,) ``image_ids`` ascending, ``patients`` by number (unknown: one's own), ``frame_counts``."""

    image_ids: tuple[str, ...]
    patients: Array
    frame_counts: Array
    index_of: Mapping[str, int] = field(repr=False)


def list_cines(entries: Sequence[CineEntry]) -> Cines:
    """Return the readable cines of a folder, each once."""
    readable = {entry.image_id: entry for entry in entries if entry.error is None}
    image_ids = tuple(sorted(readable))
    names = [readable[i].patient_id or f"\0{i}" for i in image_ids]
    patients = np.unique(np.array(names, dtype=object), return_inverse=True)[1] if names else np.zeros(0, dtype=int)
    frames = np.array([readable[i].frames or 1 for i in image_ids], dtype=np.int64)
    return Cines(image_ids, patients.reshape(-1), frames, {i: row for row, i in enumerate(image_ids)})


_BLOCK = 512  # centres at a time: (N, _BLOCK) products


def distances_to_nearest(embeddings: Array, centres: Array) -> Array:
    """Return (N,) float32 distances of (N, D) unit embeddings to the nearest of (M, D); infinite where M is 0.

    Euclidean, as sqrt(2 - 2 cos): in float32 the cosine is right to about 1e-7, so a distance near 0 is to 1e-3 only.
    """
    nearest = np.full(len(embeddings), -np.inf, dtype=np.float32)
    for start in range(0, len(centres), _BLOCK):
        nearest = np.maximum(nearest, (embeddings @ centres[start : start + _BLOCK].T).max(axis=1))
    return np.sqrt(np.maximum(2.0 - 2.0 * nearest, 0.0))


class CoreSetDistances:
    """How far every cine is from the nearest centre, kept up to date: one centre more costs a product with a vector.

    ``embeddings`` : (N, D) float32, unit length.
    """

    def __init__(self, embeddings: Array) -> None:
        self._embeddings = embeddings
        self._forget()

    def _forget(self) -> None:
        self._centres: set[int] = set()
        self._distances = np.full(len(self._embeddings), np.inf, dtype=np.float32)

    def embeddings_changed(self, rows: Array) -> None:
        """Take note that the embeddings of these rows are others now."""
        if self._centres & set(rows.tolist()):
            self._forget()
        else:
            self._distances[rows] = distances_to_nearest(
                self._embeddings[rows], self._embeddings[sorted(self._centres)]
            )

    def to_nearest(self, centres: Array) -> Array:
        """Return (N,) distances to the nearest of the rows ``centres``; infinite where there is none."""
        wanted = set(centres.tolist())
        if not self._centres <= wanted:  # a label was withdrawn
            self._forget()
        new = sorted(wanted - self._centres)
        nearer = distances_to_nearest(self._embeddings, self._embeddings[new])
        self._distances = np.minimum(self._distances, nearer)
        self._centres = wanted
        return self._distances


@dataclass(frozen=True)
class Scores:
    """What models found, by row; the arrays are filled in place as cines are scored.

    ``scores``, ``overlaps`` : (N, ...) as of `CineScores`. ``is_scored`` : (N,). ``uncertainty`` : (N,), NaN: not
    scored. ``frame_indices``, ``frames`` : (N, FRAMES_SCORED), the latter their uncertainties. ``view`` : (N,) index
    into VIEWS, -1: not known. ``view_probability`` : (N,). ``embeddings`` : (N, D), of unit length or 0.
    """

    scores: Array
    overlaps: Array
    is_scored: Array
    uncertainty: Array
    frame_indices: Array
    frames: Array
    view: Array
    view_probability: Array
    embeddings: Array
    core_set: CoreSetDistances = field(repr=False)


def no_scores(count: int, width: int = 1) -> Scores:
    """Return the scores of ``count`` cines of which none is scored; ``width`` : D."""
    embeddings = np.zeros((count, width), dtype=np.float32)
    return Scores(
        scores=np.full((count, *SCORES_SHAPE), np.nan, dtype=np.float32),
        overlaps=np.full((count, *OVERLAPS_SHAPE), np.nan, dtype=np.float32),
        is_scored=np.zeros(count, dtype=bool),
        uncertainty=np.full(count, np.nan),
        frame_indices=np.full((count, FRAMES_SCORED), -1),
        frames=np.full((count, FRAMES_SCORED), np.nan),
        view=np.full(count, -1),
        view_probability=np.full(count, np.nan),
        embeddings=embeddings,
        core_set=CoreSetDistances(embeddings),
    )


def fill_in(scores: Scores, found: Mapping[int, CineScores], calibration: Calibration) -> None:
    """Put the scores of cines into their rows; embeddings of another width are another detector's and left out."""
    width = scores.embeddings.shape[1]
    fitting = {row: one for row, one in found.items() if len(one.embedding) == width}
    if foreign := len(found) - len(fitting):
        logger.warning("%d scores are passed over: their embeddings are not %d wide", foreign, width)
    if not fitting:
        return
    rows, known = np.array(list(fitting), dtype=np.int64), list(fitting.values())
    scores.scores[rows] = np.stack([one.scores for one in known])
    scores.overlaps[rows] = np.stack([one.overlaps for one in known])
    scores.frame_indices[rows] = np.stack([one.frame_indices for one in known])
    scores.embeddings[rows] = np.stack([one.embedding for one in known])
    scores.view[rows] = [-1 if one.view is None else VIEWS.index(one.view) for one in known]
    scores.view_probability[rows] = [np.nan if one.view_probability is None else one.view_probability for one in known]
    scores.is_scored[rows] = True
    scores.core_set.embeddings_changed(rows)
    recalibrate(scores, calibration, rows)


def recalibrate(scores: Scores, calibration: Calibration, rows: Array | slice = slice(None)) -> None:
    """Tell anew how uncertain cines are, from the same scores."""
    scores.frames[rows] = frame_uncertainties(scores.scores[rows], scores.overlaps[rows], calibration)
    scores.uncertainty[rows] = cine_uncertainties(scores.frames[rows])


@dataclass(frozen=True)
class Labels:
    """What people labelled, by row.

    (N,) ``is_labelled``, unusable ones among them; ``is_unusable``; ``view``, an index into VIEWS, -1: not known;
    ``revision``, 0: no label; ``saved_at``, s since the epoch, 0: no label, or one without a time.
    """

    is_labelled: Array
    is_unusable: Array
    view: Array
    revision: Array
    saved_at: Array


def gather_labels(cines: Cines, summaries: Mapping[str, LabelSummary]) -> Labels:
    """Return the labels of the cines."""
    N = len(cines.image_ids)
    is_labelled, is_unusable, revision = np.zeros(N, dtype=bool), np.zeros(N, dtype=bool), np.zeros(N, dtype=np.int64)
    labels = Labels(is_labelled, is_unusable, np.full(N, -1), revision, np.zeros(N))
    for image_id, summary in summaries.items():
        row = cines.index_of.get(image_id)
        if row is not None:
            labels.is_labelled[row] = True
            labels.is_unusable[row] = summary.is_unusable
            labels.view[row] = -1 if summary.view is None else VIEWS.index(summary.view)
            labels.revision[row] = summary.revision
            labels.saved_at[row] = 0.0 if summary.saved_at is None else summary.saved_at.timestamp()
    return labels


@dataclass(frozen=True)
class Pool:
    """Everything that a choice reads. ``judgements`` : by image id; of older revisions too."""

    cines: Cines
    scores: Scores
    labels: Labels
    judgements: Mapping[str, Judgement] = field(default_factory=dict)

    def frames_to_draw(self, row: int) -> tuple[int, ...]:
        """Return the 0-based frames of a cine that are worth drawing: the most uncertain, else evenly spread."""
        if self.scores.is_scored[row]:
            return frames_to_draw(self.scores.frame_indices[row], self.scores.frames[row])
        count = int(self.cines.frame_counts[row])
        parts = min(count, FRAMES_TO_DRAW)
        return tuple(int((part + 0.5) * count / parts) for part in range(parts))


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
            revisions = {i: int(self._labels.revision[row]) for i, row in self._cines.index_of.items()}
            known = list(self._judgements.values())
        calibration = _calibrate(self._models, key, matches_of(detector_of(key), known, revisions))
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
        kept = self._store.newer_than(key, 0 if begin_anew else self._number)
        index_of = self._cines.index_of
        found = {
            index_of[one.image_id]: one.scores for one in kept if one.scores is not None and one.image_id in index_of
        }
        width = next((len(one.embedding) for one in found.values()), 1)
        if begin_anew or not self._scores.is_scored.any():  # how wide embeddings are is known from the first
            self._scores = no_scores(len(self._cines.image_ids), width)
        if key != self._key:
            self._key = key
            self._calibration = _calibrate(self._models, key, [])
        fill_in(self._scores, found, self._calibration)
        self._number = max([number, *(one.number for one in kept[-1:])])


def models_in_use(store: ScoreStore) -> str:
    """Return the key of the models whose scores are used, new ones once they have seen as many cines; "": none."""
    counts = store.counts()
    return max(reversed(counts), key=counts.__getitem__, default="")


def _calibrate(models: Path, key: str, matches: Sequence[Array]) -> Calibration:
    """Return the calibration of the detector of ``key``; its operating score is not known once another is published."""
    detector, score = detector_of(key), None
    with suppress(EchoError):
        card = load_card(models, DETECTOR)
        score = operating_score(card) if card.sha256[:16] == detector else None
    return calibrate(score, matches)
