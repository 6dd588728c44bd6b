# SPDX-License-Identifier: Apache-2.0
"""Which cine an annotator sees next, why, and which of its frames are worth drawing; which labels look like mistakes.

How a cine is chosen is in ``acquisition.strategies``; here are requests, who has which cine before them, and the names
that viewers show. A call reads what `score_folder` found earlier: no cine is decoded and no model runs.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.tasks.strategy import Strategy

from echo_plugin.acquisition.label_quality import Confirmed
from echo_plugin.acquisition.pool import LivePool, Pool
from echo_plugin.acquisition.score_store import (
    DETECTOR,
    LEASES_FILE,
    Judgement,
    Lease,
    Leases,
    open_scores,
)
from echo_plugin.acquisition.strategies import (
    DOUBTFUL,
    Choice,
    Situation,
    current_judgements,
    doubtful,
    fewest_of_patient,
    first,
    keep_to_patient_limit,
    most_suspicious,
    most_uncertain,
    most_unlike,
    of_a_failing_view,
    uncertain_and_unlike,
)
from echo_plugin.acquisition.uncertainty import Array
from echo_plugin.errors import EchoError, UnknownImageError, UnreadableCineError
from echo_plugin.host.datastore import FINAL, EchoDatastore, require_tag
from echo_plugin.host.submission import annotator
from echo_plugin.io.label_summaries import LabelSummary
from echo_plugin.model_card import load_card
from echo_plugin.models.checkpoint import SEPTAL_DETECTOR
from echo_plugin.training.provenance import names_its_patients, seen_patients

logger = logging.getLogger(__name__)

Choose = Callable[[Pool, Situation, Mapping[str, Any], Mapping[str, Lease]], Choice]

DEFAULT_STRATEGY = "uncertainty"
"""For who names none. The one that ``tests/benchmarks/active_learning_loop.py`` found best."""

ATTEMPTS = 20
"""Annotators who ask at the same moment choose the same cine; one gets it, the others choose again."""

LEARNED = "the detector learned from their patients; `monailabel-echo review` judges those"


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
        self.store = open_scores(datastore.root, datastore.cache)
        self.leases = Leases(self.store.path.with_name(LEASES_FILE))
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
        if self.leases.take(image_id, holder) or (holder and self.leases.renew(image_id, holder)):
            return {"image": image_id, "is_yours": True}
        minutes = self.leases.minutes_left(self.leases.latest()[image_id])
        reason = f"Cine {image_id} is with another annotator; ask again in {minutes} minutes."
        return {"image": image_id, "is_yours": False, "reason": reason}


def doubtful_labels(pool: Pool, waiting: WaitingCines) -> list[Judgement]:
    """Return the labels that look like mistakes, the worst first."""
    return doubtful(current_judgements(pool), waiting.is_confirmed)


def why_none(pool: Pool, waiting: WaitingCines, datastore: EchoDatastore) -> str:
    """Return why no label is shown: how many agree with the detector, were confirmed, or were not judged and why."""
    labelled = np.flatnonzero(pool.labels.is_labelled & ~pool.labels.is_unusable)
    if not len(labelled):
        return "No cine has a label that could be doubted."
    judgements = current_judgements(pool)
    judged = {judgement.image_id for judgement in judgements}
    rest = [i for place in labelled if (i := pool.cines.image_ids[place]) not in judged]
    agree = sum(judgement.quality >= DOUBTFUL for judgement in judgements)
    unreadable = len(doubtful(judgements, waiting.is_confirmed))
    confirmed = len(judgements) - agree - unreadable
    said = ((agree, "in agreement with the detector"), (confirmed, "confirmed"), (unreadable, "of unreadable cines"))
    causes = _why_not_judged(rest, waiting, datastore)
    words = [f"{count} {what}" for count, what in said if count]
    words += [f"{count} not judged ({cause})" for cause, count in causes.most_common()]
    return f"No label looks like a mistake. Of {len(labelled)}: {'; '.join(words)}."


def _why_not_judged(image_ids: list[str], waiting: WaitingCines, datastore: EchoDatastore) -> Counter[str]:
    """Return how many of these labels were not judged, by the reason."""
    try:
        card = load_card(waiting.models, SEPTAL_DETECTOR)
    except EchoError:
        return Counter({"no detector is published": len(image_ids)} if image_ids else {})
    if not names_its_patients(card):
        return Counter({"the detector does not say whom it learned from": len(image_ids)} if image_ids else {})
    patients = {entry.image_id: entry.patient_id for entry in datastore.studies.entries()}
    asked = tuple(sorted({patient for image_id in image_ids if (patient := patients.get(image_id))}))
    seen = _learned_from(waiting.models, card.sha256, asked)
    labels = datastore.labels.current()
    return Counter(_cause(patients.get(image_id), labels.get(image_id), seen) for image_id in image_ids)


@lru_cache(maxsize=1)
def _learned_from(models: Path, sha256: str, patients: tuple[str, ...]) -> frozenset[str]:
    """Return those of the patients that the detector with these weights learned from.

    Fingerprints are slow on purpose, half a millisecond each, and these are asked for while others wait for the pool.
    """
    return seen_patients(load_card(models, SEPTAL_DETECTOR), patients)


def _cause(patient: str | None, label: LabelSummary | None, seen: frozenset[str]) -> str:
    if not patient:
        return "their patient is not known"
    if patient in seen:
        return LEARNED
    if label is None or not label.frames:
        return "no frame of theirs is annotated"
    return "the detector has not looked at them yet, or no box of theirs names its septum"


class NextCine(Strategy):
    """Choose a cine that nobody has before them.

    Parameters
    ----------
    description
        Shown by viewers.
    choose
        The choice among the cines that may be shown.
    waiting
        The cines with their scores, and who has which.
    among_labelled
        Whether cines with a doubtful label are chosen from rather than those without a label.
        A label is doubted where it is; of those without one at most PER_PATIENT cines of a patient are shown between
        two published models.
    """

    def __init__(
        self,
        description: str,
        choose: Choose,
        waiting: WaitingCines,
        *,
        among_labelled: bool = False,
    ) -> None:
        super().__init__(description)
        self._choose = choose
        self._waiting = waiting
        self._among_labelled = among_labelled

    def __call__(self, request: Mapping[str, Any], datastore: EchoDatastore) -> dict[str, Any] | None:
        """Return ``{"id", "reason", "frames"}``, 0-based frames; None when every cine has a label.

        When all that wait are with annotators, the one that this annotator has longest comes again. When none is
        theirs, or no label is doubtful, there is a reason and no id. What someone without a name is shown is with them
        as well, but does not come again: one cannot be told from another.
        """
        holder = annotator(request)
        chosen_from = self._chosen_from(request, datastore)
        datastore.images.look_again_aside()
        with self._waiting.pool.reading() as pool:
            waiting = np.array(
                [
                    place
                    for place in np.flatnonzero(chosen_from(pool)).tolist()
                    if not datastore.images.is_set_aside(pool.cines.image_ids[place])
                ],
                dtype=np.int64,
            )
            if not len(waiting):
                return {"reason": why_none(pool, self._waiting, datastore)} if self._among_labelled else None
            for _ in range(ATTEMPTS):
                shown = self._waiting.leases.latest()
                running = {i for i, lease in shown.items() if self._waiting.leases.is_running(lease)}
                is_free = np.array([pool.cines.image_ids[place] not in running for place in waiting], dtype=bool)
                if not is_free.any():
                    return self._one_of_theirs(pool, waiting, shown, holder)
                situation = self._situation(pool, waiting[is_free], shown, running)
                choice = self._choose(pool, situation, request, shown)
                image_id = pool.cines.image_ids[choice.index]
                if self._waiting.leases.take(image_id, holder):
                    return _answer(pool, choice)
        return {"reason": f"{ATTEMPTS} cines went to others at this very moment; ask again."}

    def _chosen_from(self, request: Mapping[str, Any], datastore: EchoDatastore) -> Callable[[Pool], Array]:
        """Return which places wait, given the label tag and names that a request may name."""
        tag, names = require_tag(request.get("label_tag")), request.get("labels")
        if self._among_labelled:
            return self._doubtful
        if tag == FINAL and not names and isinstance(names, list | None):
            return lambda pool: ~pool.labels.is_labelled
        unlabelled = set(datastore.get_unlabeled_images(tag, names))
        return lambda pool: np.array([i in unlabelled for i in pool.cines.image_ids], dtype=bool)

    def _doubtful(self, pool: Pool) -> Array:
        places = [pool.cines.index_of[judgement.image_id] for judgement in doubtful_labels(pool, self._waiting)]
        return np.isin(np.arange(len(pool.cines.image_ids)), places)

    def _situation(self, pool: Pool, free: Array, shown: Mapping[str, Lease], running: set[str]) -> Situation:
        places = pool.cines.index_of
        handed_out = np.array(sorted(places[i] for i in running if i in places), dtype=np.int64)
        situation = Situation(free, handed_out)
        if self._among_labelled:
            return situation
        since = self._waiting.models_published_at()
        in_batch = {places[i] for i, lease in shown.items() if i in places and lease.leased_at >= since}
        in_batch.update(np.flatnonzero(pool.labels.is_labelled & (pool.labels.saved_at >= since)).tolist())
        return keep_to_patient_limit(pool, situation, np.array(sorted(in_batch), dtype=np.int64))

    def _one_of_theirs(
        self, pool: Pool, waiting: Array, shown: Mapping[str, Lease], holder: str | None
    ) -> dict[str, Any]:
        theirs = sorted(
            (shown[i].leased_at, place)
            for place in waiting.tolist()
            if shown[i := pool.cines.image_ids[place]].holder == holder and holder is not None
        )
        for _, place in theirs:
            if self._waiting.leases.renew(pool.cines.image_ids[place], str(holder)):
                return _answer(pool, Choice(place, f"shown to you before; all {len(waiting)} that wait are in work"))
        soonest = min((shown[pool.cines.image_ids[place]] for place in waiting), key=lambda lease: lease.expires_at)
        minutes = self._waiting.leases.minutes_left(soonest)
        reason = f"All {len(waiting)} cines that wait are with other annotators; ask again in {minutes} minutes."
        return {"reason": reason if holder else f"{reason} With a name you would be shown yours again."}


def _answer(pool: Pool, choice: Choice) -> dict[str, Any]:
    image_id = pool.cines.image_ids[choice.index]
    frames = pool.frames_to_draw(choice.index)
    judgement = pool.judgements.get(image_id)
    if judgement is not None and judgement.revision == pool.labels.revision[choice.index]:
        frames = tuple(sorted(judgement.frames))
    return {"id": image_id, "reason": choice.reason, "frames": list(frames)}


def _choose_at_random(
    pool: Pool, situation: Situation, request: Mapping[str, Any], shown: Mapping[str, Lease]
) -> Choice:
    """Return any, one shown lately less often; ``request["seed"]`` repeats a choice."""
    seed = request.get("seed")
    if seed is not None and (not isinstance(seed, int) or seed < 0):
        msg = f"Strategy random: seed is {str(seed)[:40]!r}; a whole number of 0 or more is accepted."
        raise ValueError(msg)
    now = time.time()
    ages = np.array(
        [
            max(1.0, now - shown[i].leased_at) if (i := pool.cines.image_ids[place]) in shown else now
            for place in situation.open
        ]
    )
    chosen = np.random.default_rng(seed).choice(len(situation.open), p=ages / ages.sum())
    return Choice(int(situation.open[chosen]), f"any of {len(situation.open)}")


def _plain(choose: Callable[[Pool, Situation], Choice]) -> Choose:
    return lambda pool, situation, _request, _shown: choose(pool, situation)


def strategies(waiting: WaitingCines) -> dict[str, NextCine]:
    """Return the strategies by the names viewers show, in that order: they preselect the first, DEFAULT_STRATEGY."""
    about: dict[str, tuple[str, Choose]] = {
        DEFAULT_STRATEGY: ("The cine that the detector is least certain of", _plain(most_uncertain)),
        "diversity": ("The cine least like those with a label", _plain(most_unlike)),
        "hybrid": ("Of the most uncertain cines the one least like those with a label", _plain(uncertain_and_unlike)),
        "failing_view": ("An uncertain cine of the view that needs labels most", _plain(of_a_failing_view)),
        "random": ("Any cine without a label", _choose_at_random),
        "fewest_labels": ("A cine of the patient with the fewest labels", _plain(fewest_of_patient)),
        "first": ("The first cine without a label", _plain(first)),
    }
    doubtful = "The labelled cine whose label looks most like a mistake"
    return {
        **{name: NextCine(*one, waiting) for name, one in about.items()},
        "suspicious": NextCine(doubtful, _plain(most_suspicious), waiting, among_labelled=True),
    }


def choose_cine(
    offered: Mapping[str, Strategy],
    request: Mapping[str, Any],
    datastore: EchoDatastore,
    open_cine: Callable[[str], object],
) -> dict[str, Any]:
    """Choose a cine that ``open_cine`` can open, and note on it whom it was shown to; unreadable ones are set aside.

    Without an ``id`` there is none, and ``reason``, if there, says why.
    A request that names no strategy means ``DEFAULT_STRATEGY``.

    Raises
    ------
    UnknownImageError
        If there is no such strategy.
    """
    name = str(request.get("strategy") or DEFAULT_STRATEGY)
    if name not in offered:
        msg = f"Strategy {name[:80]!r} is unknown; {', '.join(offered)} are offered."
        raise UnknownImageError(msg)
    while (chosen := offered[name](request, datastore)) is not None:
        if "id" not in chosen:
            return dict(chosen)
        try:
            open_cine(chosen["id"])
        except UnreadableCineError as exc:
            datastore.images.set_aside(chosen["id"], str(exc))
            continue
        shown = {"ts": int(time.time()), "client_id": request.get("client_id")}
        datastore.images.add_notes(chosen["id"], {"strategy": {name: shown}})
        return dict(chosen)
    return {}
