# SPDX-License-Identifier: Apache-2.0
"""Scoring a study folder: what is new, or was scored by other models, is scored once; everything else is left.

A cine that cannot be read is noted with the reason and not tried again until its file changes; one at which something
else failed is tried again by the next run. Killed at any moment, the next run goes on after the last cine. A run is of
the models that were published when it began: where others are published meanwhile it ends, and the next is of those.
What it did is forgotten by then, unless it is what choices go by: of models that follow each other fast, none is ever
through, and choices go by the last that was. Labels are judged afterwards, by the published detector, of patients it
did not learn from.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path

from echo_plugin.acquisition.label_quality import JudgedCine, LabelJudge, detect_each, judge_label, unseen_cines
from echo_plugin.acquisition.pool import models_in_use
from echo_plugin.acquisition.score_store import REVIEW, Judgement, ScoreStore, matches_of, models_key
from echo_plugin.acquisition.uncertainty import Calibration, CineScorer, CineScores, calibrate
from echo_plugin.answer.boxes import operating_score
from echo_plugin.errors import ModelMismatchError, ModelNotFoundError, TrainingDataError, UnreadableCineError
from echo_plugin.io.study_folder import StudyFolder
from echo_plugin.model_card import load_card
from echo_plugin.models.checkpoint import SEPTAL_DETECTOR
from echo_plugin.progress import Progress
from echo_plugin.training.datasets import LabelledCine, LabelledFolder, open_judgeable_folder
from echo_plugin.training.provenance import names_its_patients

logger = logging.getLogger(__name__)

PORTION = 200
"""So many labels go through the detector, then are judged together: enough to calibrate by, few to lose when killed."""


@dataclass(frozen=True)
class JudgedLabels:
    """``judged`` : labels judged now, or again. ``left_out`` : nobody can judge them: no patient id, or damaged."""

    judged: int
    left_out: int


def judge_labels(
    folder: StudyFolder,
    models: Path,
    store: ScoreStore,
    *,
    device: str = "auto",
    should_stop: Callable[[], bool] = lambda: False,
) -> JudgedLabels:
    """Judge every label of patients the published detector did not learn from, once for each revision.

    Qualities are ranked together, so labels are judged again when scores are calibrated by far more boxes than then.
    Labels that were judged by a review, which has models that saw none of the patient, keep that judgement.
    """
    card = load_card(models, SEPTAL_DETECTOR)
    if not names_its_patients(card):
        return JudgedLabels(0, 0)
    try:
        labelled, left_out = open_judgeable_folder(folder.root)
    except TrainingDataError:
        return JudgedLabels(0, 0)
    detector, score = card.sha256[:16], operating_score(card)
    unseen, known = unseen_cines(card, labelled), store.judgements()
    matches = matches_of(detector, known.values(), {c.image_id: c.annotation.revision for c in labelled.cines})
    detect = partial(_detect, labelled, LabelJudge(models, device=device), detector, should_stop)
    judged, calibration = set[str](), None
    for cines in _portions([c for c in unseen if not _is_judged(known.get(c.image_id), c, detector)]):
        found = detect(cines)
        matches += [one.matches for one in found]
        calibration = calibrate(score, matches)
        judged |= _keep(store, found, calibration)
    known, calibration = store.judgements(), calibration or calibrate(score, matches)
    for cines in _portions([c for c in unseen if _is_outdated(known.get(c.image_id), c, detector, calibration)]):
        judged |= _keep(store, detect(cines), calibration)
    return JudgedLabels(len(judged), left_out)


def _portions(cines: Sequence[LabelledCine]) -> list[Sequence[LabelledCine]]:
    return [cines[start : start + PORTION] for start in range(0, len(cines), PORTION)]


def _keep(store: ScoreStore, found: Sequence[JudgedCine], calibration: Calibration) -> set[str]:
    """Keep what is thought of the cines by one calibration; return their image ids."""
    for one in found:
        store.judge(judge_label(one, calibration)[0])
    return {one.cine.image_id for one in found}


def _is_judged(kept: Judgement | None, cine: LabelledCine, detector: str) -> bool:
    """Whether the current revision was judged, by this detector or by a review."""
    if kept is None or kept.revision != cine.annotation.revision:
        return False
    return kept.models == detector or kept.models.startswith(REVIEW)


def _is_outdated(kept: Judgement | None, cine: LabelledCine, detector: str, calibration: Calibration) -> bool:
    """Whether this detector judged the current revision by a calibration with which today's does not compare.

    That is so when one of the two is fitted and the other is not, and when today's is fitted to twice as many boxes:
    how often labels are judged again grows with the logarithm of how many there are.
    """
    if kept is None or (kept.revision, kept.models) != (cine.annotation.revision, detector):
        return False
    before, now = kept.fitted_to, calibration.fitted_to
    return bool(before) != bool(now) or 0 < 2 * before <= now


def _detect(
    labelled: LabelledFolder,
    judge: LabelJudge,
    detector: str,
    should_stop: Callable[[], bool],
    cines: Sequence[LabelledCine],
) -> list[JudgedCine]:
    """Return labels and detections of the cines; ends early when stopped or when ``detector`` is replaced."""
    going_on = takewhile(lambda _: not should_stop(), cines)
    # another one, published meanwhile, may have learned from this very patient
    return list(takewhile(lambda one: one.detector == detector, detect_each(judge, labelled, going_on)))


@dataclass(frozen=True)
class Scored:
    """What one run did.

    ``cines`` : tried. ``unreadable`` : of them, noted as such. ``put_off`` : of them, left to the next run: not the
    file was at fault. ``labels`` : what became of them; None: ended before they were judged.
    """

    cines: int
    unreadable: int
    put_off: int
    labels: JudgedLabels | None


def score_folder(
    folder: StudyFolder,
    models: Path,
    store: ScoreStore,
    *,
    device: str = "auto",
    progress: Progress | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Scored:
    """Score what is not scored yet, judge the labels that the detector did not learn from, forget older models.

    Labels that were judged by a review, which has models that saw none of the patient, keep that judgement.

    Raises
    ------
    ModelNotFoundError, ModelMismatchError
        If no usable detector is published.
    """
    key = models_key(models)
    folder.refresh()
    entries = folder.entries()
    image_ids = [entry.image_id for entry in entries]
    store.keep_only({key, models_in_use(store)}, image_ids)  # of models published meanwhile none may be whole
    waiting = store.unscored(key, entries)
    scorer = CineScorer(models, device=device) if waiting else None
    done = unreadable = put_off = 0
    for entry, stamp in waiting:
        if should_stop() or scorer is None:
            return Scored(done, unreadable, put_off, None)
        scores = _score_cine(scorer, folder, entry.image_id)
        if models_key(models) != key:  # the scorer follows what is published: whose scores these are, nobody knows
            logger.info("Other models were published; the next run scores with them")
            return Scored(done, unreadable, put_off, None)
        done, unreadable, put_off = done + 1, unreadable + isinstance(scores, str), put_off + (scores is None)
        if scores is not None:
            store.put(key, entry.image_id, stamp, scores)
        if progress is not None:
            progress(done, len(waiting), "cines")
    store.keep_only({key}, image_ids)
    labels = judge_labels(folder, models, store, device=device, should_stop=should_stop)
    return Scored(done, unreadable, put_off, labels)


def _score_cine(scorer: CineScorer, folder: StudyFolder, image_id: str) -> CineScores | str | None:
    """Return the scores, the sentence why the file cannot be read, or None where something else failed."""
    try:
        return scorer.score(folder.read_cine(image_id))
    except UnreadableCineError as exc:
        logger.warning("Cine %s is not scored: %s", image_id, exc)
        return str(exc)
    except (ModelNotFoundError, ModelMismatchError):
        raise
    except Exception as exc:  # no memory, say: one cine must never keep the others from being scored
        logger.warning("Cine %s is left to the next scoring (%s)", image_id, type(exc).__name__)
        return None
