# SPDX-License-Identifier: Apache-2.0
"""The cines of a study folder as arrays, one place for each: what a choice of the next cine reads and nothing else.

How far cines are from those that are labelled, for the greedy k-centre choice of core-set learning.

Sener and Savarese, ICLR 2018, arXiv 1708.00489, algorithm 1: the next is the one farthest from everything covered
(``strategies.most_unlike``).

The pool of a study folder kept up to date in memory: only what is new is read, so that a choice never waits.

Files are looked for by whoever refreshes the `StudyFolder`; scores are made by `score_folder`, mostly elsewhere.
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

from echo_plugin.acquisition.score_store import DETECTOR, Judgement, ScoreStore, detector_of, rows_judged_by
from echo_plugin.acquisition.uncertainty import (
    FRAMES_TO_DRAW,
    OVERLAPS_SHAPE,
    PROBES,
    SCORES_SHAPE,
    Array,
    Calibration,
    CineEvidence,
    calibrate,
    cine_uncertainties,
    frame_uncertainties,
    frames_to_draw,
    pooled,
)
from echo_plugin.anatomy import View
from echo_plugin.answer.boxes import operating_score
from echo_plugin.errors import EchoError
from echo_plugin.io.label_summaries import LabelSummaries, LabelSummary
from echo_plugin.io.study_folder import CineEntry, StudyFolder
from echo_plugin.model_card import load_card

_BLOCK = 512  # covered cines at a time: (N, _BLOCK) products


def distances_to_nearest(embeddings: Array, covered: Array) -> Array:
    """Return (N,) Euclidean distances of (N, D) unit embeddings to the nearest of (M, D); infinite where M is 0."""
    nearest = np.full(len(embeddings), -np.inf, dtype=np.float32)
    for start in range(0, len(covered), _BLOCK):
        nearest = np.maximum(nearest, (embeddings @ covered[start : start + _BLOCK].T).max(axis=1))
    return np.sqrt(np.maximum(2.0 - 2.0 * nearest, 0.0))


class Cover:
    """How far every cine is from what is covered, kept up to date: covering one more costs one product with a vector.

    ``embeddings`` : (N, D) float32, unit length.
    """

    def __init__(self, embeddings: Array) -> None:
        self._embeddings = embeddings
        self._covered: set[int] = set()
        self._distances = np.full(len(embeddings), np.inf, dtype=np.float32)

    def embeddings_changed(self, places: Array) -> None:
        """Take note that the embeddings at these places are others now."""
        if self._covered & set(places.tolist()):
            self._forget()
        elif self._covered:
            covered = self._embeddings[sorted(self._covered)]
            self._distances[places] = distances_to_nearest(self._embeddings[places], covered)

    def _forget(self) -> None:
        self._covered = set()
        self._distances = np.full(len(self._embeddings), np.inf, dtype=np.float32)

    def distances(self, covered: Array) -> Array:
        """Return (N,) distances to the nearest of the places ``covered``; infinite where there is none."""
        wanted = set(covered.tolist())
        if not self._covered <= wanted:  # a label was withdrawn
            self._forget()
        new = sorted(wanted - self._covered)
        if new:
            nearer = distances_to_nearest(self._embeddings, self._embeddings[new])
            self._distances = np.minimum(self._distances, nearer)
            self._covered = wanted
        return self._distances


logger = logging.getLogger(__name__)

VIEWS = tuple(View)


@dataclass(frozen=True)
class Cines:
    """Who is there: (N,) ``image_ids`` ascending, ``patients`` by number (unknown: one's own), ``frame_counts``."""

    image_ids: tuple[str, ...]
    patients: Array
    frame_counts: Array
    place_of: Mapping[str, int] = field(repr=False)


def list_cines(entries: Sequence[CineEntry]) -> Cines:
    """Return the readable cines of a folder, each once."""
    readable = {entry.image_id: entry for entry in entries if entry.error is None}
    image_ids = tuple(sorted(readable))
    names = [readable[i].patient_id or f"\0{i}" for i in image_ids]
    patients = np.unique(np.array(names, dtype=object), return_inverse=True)[1] if names else np.zeros(0, dtype=int)
    frames = np.array([readable[i].frames or 1 for i in image_ids], dtype=np.int64)
    return Cines(image_ids, patients.reshape(-1), frames, {i: place for place, i in enumerate(image_ids)})


@dataclass(frozen=True)
class Scores:
    """What models saw, by place; the arrays are filled in place as cines are scored.

    ``looks``, ``overlaps`` : (N, ...) of the evidence. ``is_scored`` : (N,). ``uncertainty`` : (N,), NaN: not scored.
    ``frame_indices``, ``frames`` : (N, PROBES), the latter their uncertainties. ``view`` : (N,) index into VIEWS, -1:
    not known. ``view_probability`` : (N,). ``embeddings`` : (N, D), of unit length or 0.
    """

    looks: Array
    overlaps: Array
    is_scored: Array
    uncertainty: Array
    frame_indices: Array
    frames: Array
    view: Array
    view_probability: Array
    embeddings: Array
    cover: Cover = field(repr=False)


def no_scores(count: int, width: int = 1) -> Scores:
    """Return the scores of ``count`` cines of which none is scored; ``width`` : D."""
    embeddings = np.zeros((count, width), dtype=np.float32)
    return Scores(
        looks=np.full((count, *SCORES_SHAPE), np.nan, dtype=np.float32),
        overlaps=np.full((count, *OVERLAPS_SHAPE), np.nan, dtype=np.float32),
        is_scored=np.zeros(count, dtype=bool),
        uncertainty=np.full(count, np.nan),
        frame_indices=np.full((count, PROBES), -1),
        frames=np.full((count, PROBES), np.nan),
        view=np.full(count, -1),
        view_probability=np.full(count, np.nan),
        embeddings=embeddings,
        cover=Cover(embeddings),
    )


def fill_in(scores: Scores, evidence: Mapping[int, CineEvidence], calibration: Calibration) -> None:
    """Put the evidence of cines at their places; embeddings of another width are another detector's and left out."""
    width = scores.embeddings.shape[1]
    fitting = {place: found for place, found in evidence.items() if len(found.embedding) == width}
    if foreign := len(evidence) - len(fitting):
        logger.warning("%d scores are passed over: their embeddings are not %d wide", foreign, width)
    evidence = fitting
    if not evidence:
        return
    places, known = np.array(list(evidence), dtype=np.int64), list(evidence.values())
    scores.looks[places] = np.stack([e.scores for e in known])
    scores.overlaps[places] = np.stack([e.overlaps for e in known])
    scores.frame_indices[places] = np.stack([e.frame_indices for e in known])
    scores.embeddings[places] = np.stack([e.embedding for e in known])
    scores.view[places] = [-1 if e.view is None else VIEWS.index(e.view) for e in known]
    scores.view_probability[places] = [np.nan if e.view_probability is None else e.view_probability for e in known]
    scores.is_scored[places] = True
    scores.cover.embeddings_changed(places)
    recalibrate(scores, calibration, places)


def recalibrate(scores: Scores, calibration: Calibration, places: Array | slice = slice(None)) -> None:
    """Say anew how uncertain cines are, from the same evidence."""
    scores.frames[places] = frame_uncertainties(scores.looks[places], scores.overlaps[places], calibration)
    scores.uncertainty[places] = cine_uncertainties(scores.frames[places])


@dataclass(frozen=True)
class Labels:
    """What people said, by place.

    (N,) ``is_labelled``, unusable ones among them; ``is_unusable``; ``view``, an index into VIEWS, -1: not said;
    ``revision``, 0: no label; ``saved_at``, s since the epoch, 0: no label, or one that does not say.
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
        place = cines.place_of.get(image_id)
        if place is not None:
            labels.is_labelled[place] = True
            labels.is_unusable[place] = summary.is_unusable
            labels.view[place] = -1 if summary.view is None else VIEWS.index(summary.view)
            labels.revision[place] = summary.revision
            labels.saved_at[place] = 0.0 if summary.saved_at is None else summary.saved_at.timestamp()
    return labels


@dataclass(frozen=True)
class Pool:
    """Everything that a choice reads. ``judgements`` : by image id; of older revisions too."""

    cines: Cines
    scores: Scores
    labels: Labels
    judgements: Mapping[str, Judgement] = field(default_factory=dict)

    def frames_to_draw(self, place: int) -> tuple[int, ...]:
        """Return the 0-based frames of a cine that are worth drawing: the most uncertain, else evenly spread."""
        if self.scores.is_scored[place]:
            return frames_to_draw(self.scores.frame_indices[place], self.scores.frames[place])
        count = int(self.cines.frame_counts[place])
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
