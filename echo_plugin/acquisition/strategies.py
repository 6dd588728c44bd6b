# SPDX-License-Identifier: Apache-2.0
"""Strategies: which of the cines that may be shown is shown next, and why. Arithmetic on a `Pool`, nothing is read.

Each takes the pool, the rows that may be shown and those handed out, and returns a row with the reason in words for the
annotator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from echo_plugin.acquisition.pool import VIEWS, Pool, distances_to_nearest
from echo_plugin.acquisition.score_store import Judgement
from echo_plugin.acquisition.uncertainty import Array

BATCH = 10
BUDGET_RATIO = 4
"""Hybrid: the most uncertain BATCH x BUDGET_RATIO cines are candidates (delta = 4 in PPAL), of them the most unlike.

But no more than one in BUDGET_RATIO of those that wait: in a small pool all would be, and uncertainty would not count.
"""

PER_PATIENT = 2
"""So many cines of one patient are shown in a batch, that is between two published models."""

DOUBTFUL = 0.5
"""Labels of this quality or more are not shown as doubtful: they are as likely right as wrong, or likelier."""


@dataclass(frozen=True)
class Choice:
    """``index`` : row of the pool; and why, for a person."""

    index: int
    reason: str


@dataclass(frozen=True)
class Situation:
    """``open`` : (M,) rows that may be shown, ascending, M >= 1. ``handed_out`` : (K,) rows leased, not labelled."""

    open: Array
    handed_out: Array


Strategy = Callable[[Pool, Situation], Choice]


def most_uncertain(pool: Pool, situation: Situation) -> Choice:
    """Return the cine that the detector is least certain of."""
    scored = _scored(pool, situation)
    if not len(scored):
        return _without_scores(pool, situation)
    row = int(scored[pool.scores.uncertainty[scored].argmax()])
    return Choice(row, f"most uncertain of {_of(scored, situation)}")


def most_unlike(pool: Pool, situation: Situation) -> Choice:
    """Return the cine farthest from all that are labelled or handed out (k-centre greedy)."""
    scored = _scored(pool, situation)
    if not len(scored):
        return _without_scores(pool, situation)
    return _farthest(pool, scored, situation, f"of {_of(scored, situation)}")


def uncertain_and_unlike(pool: Pool, situation: Situation) -> Choice:
    """Return, of the most uncertain cines, the one farthest from what is labelled or handed out, as PPAL does."""
    scored = _scored(pool, situation)
    if not len(scored):
        return _without_scores(pool, situation)
    order = np.argsort(-pool.scores.uncertainty[scored], kind="stable")
    count = min(BATCH * BUDGET_RATIO, math.ceil(len(scored) / BUDGET_RATIO))
    best = np.sort(scored[order[:count]])
    return _farthest(pool, best, situation, f"among the {len(best)} most uncertain of {_of(scored, situation)}")


def of_a_failing_view(pool: Pool, situation: Situation) -> Choice:
    """Return the most uncertain cine of the view that needs labels most: badly answered, seldom labelled."""
    scored = _scored(pool, situation)
    views = pool.scores.view[scored]
    if not (views >= 0).any():
        return most_uncertain(pool, situation)
    labelled = pool.labels.is_labelled & ~pool.labels.is_unusable
    known = np.where(pool.labels.view >= 0, pool.labels.view, pool.scores.view)[labelled]
    counts = np.bincount(known[known >= 0], minlength=len(VIEWS))
    needs = np.full(len(VIEWS), -np.inf)
    for view in np.unique(views[views >= 0]):
        of_view = scored[views == view]
        badness = pool.scores.uncertainty[of_view].mean() + (1 - pool.scores.view_probability[of_view]).mean()
        needs[view] = badness / np.sqrt(1.0 + counts[view])
    neediest = int(needs.argmax())
    of_view = scored[views == neediest]
    row = int(of_view[pool.scores.uncertainty[of_view].argmax()])
    name = VIEWS[neediest].value
    return Choice(
        row, f"view {name} needs labels most ({counts[neediest]} so far): its most uncertain of {len(of_view)}"
    )


def current_judgements(pool: Pool) -> list[Judgement]:
    """Return the judgements of labels as they are now, the worst first; one of an earlier revision says nothing."""
    usable = pool.labels.is_labelled & ~pool.labels.is_unusable
    current = [
        judgement
        for image_id, judgement in pool.judgements.items()
        if (row := pool.cines.index_of.get(image_id)) is not None
        and usable[row]
        and judgement.revision == pool.labels.revision[row]
    ]
    return sorted(current, key=lambda judgement: (judgement.quality, judgement.image_id))


def doubtful(judgements: Sequence[Judgement], is_confirmed: Callable[[str, int], bool]) -> list[Judgement]:
    """Return those labels that look like mistakes, in the same order, without the ones that a person confirmed.

    ``is_confirmed`` : takes image id and revision.
    """
    return [j for j in judgements if j.quality < DOUBTFUL and not is_confirmed(j.image_id, j.revision)]


def most_suspicious(pool: Pool, situation: Situation) -> Choice:
    """Return the cine whose label and detector disagree most. ``open`` are rows of ``doubtful`` labels here."""
    row = min(situation.open.tolist(), key=lambda row: pool.judgements[pool.cines.image_ids[row]].quality)
    judgement = pool.judgements[pool.cines.image_ids[row]]
    return Choice(
        row, f"label quality {judgement.quality:.2f}, lowest of {len(situation.open)} doubtful: {judgement.words}"
    )


def fewest_of_patient(pool: Pool, situation: Situation) -> Choice:
    """Return a cine of the patient with the fewest labelled cines; many patients teach more than many cines of one."""
    counts = _per_patient(pool, np.flatnonzero(pool.labels.is_labelled))
    of_open = counts[pool.cines.patients[situation.open]]
    row = int(situation.open[of_open.argmin()])
    return Choice(row, f"its patient has {of_open.min()} labelled cines, the fewest of {len(situation.open)} cines")


def first(pool: Pool, situation: Situation) -> Choice:
    """Return the first in the order of image ids."""
    return Choice(int(situation.open[0]), f"first of {len(situation.open)}")


def keep_to_patient_limit(pool: Pool, situation: Situation, in_batch: Array) -> Situation:
    """Return the situation without patients of whom PER_PATIENT cines are in the batch.

    When there is no other patient, PER_PATIENT more of each may be shown, and so on.
    ``in_batch`` : (B,) rows shown or labelled since the current models were published.
    """
    rounds = (_per_patient(pool, in_batch) // PER_PATIENT)[pool.cines.patients[situation.open]]
    return Situation(situation.open[rounds == rounds.min()], situation.handed_out)


def _per_patient(pool: Pool, rows: Array) -> Array:
    """Return how many of the rows are of each patient."""
    return np.bincount(pool.cines.patients[rows], minlength=int(pool.cines.patients.max(initial=0)) + 1)


def _scored(pool: Pool, situation: Situation) -> Array:
    return situation.open[pool.scores.is_scored[situation.open] & np.isfinite(pool.scores.uncertainty[situation.open])]


def _of(scored: Array, situation: Situation) -> str:
    waiting = len(situation.open) - len(scored)
    return f"{len(scored)}" + (f", {waiting} more are not scored yet" if waiting else "")


def _without_scores(pool: Pool, situation: Situation) -> Choice:
    choice = fewest_of_patient(pool, situation)
    return Choice(choice.index, f"no cine is scored yet; {choice.reason}")


def _farthest(pool: Pool, candidates: Array, situation: Situation, of: str) -> Choice:
    embeddings = pool.scores.embeddings
    is_scored = pool.scores.is_scored
    labelled = np.flatnonzero(pool.labels.is_labelled & is_scored)
    handed_out = situation.handed_out[is_scored[situation.handed_out]]
    distances = pool.scores.core_set.to_nearest(labelled)[candidates]
    # leases end, so they are no centres that are kept
    distances = np.minimum(distances, distances_to_nearest(embeddings[candidates], embeddings[handed_out]))
    if np.isinf(distances).all():
        mean = embeddings[candidates].mean(axis=0)
        return Choice(int(candidates[(embeddings[candidates] @ mean).argmax()]), f"most typical {of}")
    covered = len(labelled) + len(handed_out)
    return Choice(int(candidates[distances.argmax()]), f"least like the {covered} labelled or shown {of}")
