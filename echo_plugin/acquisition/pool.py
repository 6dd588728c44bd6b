# SPDX-License-Identifier: Apache-2.0
"""The cines of a study folder as arrays, one place for each: what a choice of the next cine reads and nothing else."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from echo_plugin.acquisition.diversity import Cover
from echo_plugin.acquisition.evidence import OVERLAPS_SHAPE, PROBES, SCORES_SHAPE, Array, CineEvidence
from echo_plugin.acquisition.score_store import Judgement
from echo_plugin.acquisition.uncertainty import (
    FRAMES_TO_DRAW,
    Calibration,
    cine_uncertainties,
    frame_uncertainties,
    frames_to_draw,
)
from echo_plugin.anatomy import View
from echo_plugin.io.label_summaries import LabelSummary
from echo_plugin.io.study_folder import CineEntry

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
