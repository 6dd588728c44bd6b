# SPDX-License-Identifier: Apache-2.0
"""Scoring a study folder: what is new, or was scored by other models, is looked at once; everything else is left.

A cine that cannot be read is noted with the reason and not tried again until its file changes; one at which something
else failed is tried again by the next run. Killed at any moment, the next run goes on after the last cine. A run is of
the models that were published when it began: where others are published meanwhile it ends, and the next is of those.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from echo_plugin.acquisition.evidence import Array, CineEvidence
from echo_plugin.acquisition.judge import LabelJudge, frame_quality, judgement, pooled
from echo_plugin.acquisition.probe import CineProber
from echo_plugin.acquisition.score_store import REVIEW, Judgement, ScoreStore, models_key
from echo_plugin.acquisition.uncertainty import calibrate
from echo_plugin.errors import EchoError, ModelMismatchError, ModelNotFoundError, TrainingDataError, UnreadableCineError
from echo_plugin.io.study_folder import StudyFolder
from echo_plugin.models.card_file import load_card
from echo_plugin.models.checkpoint import SEPTAL_DETECTOR
from echo_plugin.progress import Progress
from echo_plugin.training.datasets import LabelledCine, LabelledFolder, detection_frames, open_labelled_folder
from echo_plugin.training.provenance import known_patients, names_its_patients

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scored:
    """What one run did.

    ``cines`` : looked at. ``unreadable`` : of them, noted as such. ``put_off`` : of them, left to the next run: not the
    file was at fault. ``judged`` : labels.
    """

    cines: int
    unreadable: int
    put_off: int
    judged: int


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
    waiting = store.unscored(key, entries)
    prober = CineProber(models, device=device) if waiting else None
    done = unreadable = put_off = 0
    for entry, stamp in waiting:
        if should_stop() or prober is None:
            return Scored(done, unreadable, put_off, 0)
        evidence = _look_at(prober, folder, entry.image_id)
        if models_key(models) != key:  # the prober follows what is published: whose evidence this is, nobody knows
            logger.info("Other models were published; the next run scores with them")
            return Scored(done, unreadable, put_off, 0)
        done, unreadable, put_off = done + 1, unreadable + isinstance(evidence, str), put_off + (evidence is None)
        if evidence is not None:
            store.put(key, entry.image_id, stamp, evidence)
        if progress is not None:
            progress(done, len(waiting), "cines")
    store.keep_only(key, [entry.image_id for entry in entries])
    judged = judge_labels(folder, models, store, device=device, should_stop=should_stop)
    return Scored(done, unreadable, put_off, judged)


def _look_at(prober: CineProber, folder: StudyFolder, image_id: str) -> CineEvidence | str | None:
    """Return the evidence, the sentence why the file cannot be read, or None where something else failed."""
    try:
        return prober.probe(folder.read_cine(image_id))
    except UnreadableCineError as exc:
        logger.warning("Cine %s is not scored: %s", image_id, exc)
        return str(exc)
    except (ModelNotFoundError, ModelMismatchError):
        raise
    except Exception as exc:  # no memory, say: one cine must never keep the others from being scored
        logger.warning("Cine %s is left to the next scoring (%s)", image_id, type(exc).__name__)
        return None


def judge_labels(
    folder: StudyFolder,
    models: Path,
    store: ScoreStore,
    *,
    device: str = "auto",
    should_stop: Callable[[], bool] = lambda: False,
) -> int:
    """Judge every label of patients the published detector did not learn from; return how many were judged now."""
    card = load_card(models, SEPTAL_DETECTOR)
    if not names_its_patients(card):
        return 0
    try:
        labelled = open_labelled_folder(folder.root)
    except TrainingDataError:
        return 0
    seen = known_patients(card, sorted({cine.patient_id for cine in labelled.cines}))
    fresh = [c for c in labelled.cines if seen.get(c.patient_id, "test") == "test" and detection_frames(c, 1)]
    known = store.judgements()
    waiting = [c for c in fresh if not _is_judged(known, c, card.sha256[:16])]
    if not waiting:
        return 0
    judge = LabelJudge(models, device=device)
    return _judge(labelled, waiting, judge, store, detector=card.sha256[:16], should_stop=should_stop)


def _is_judged(known: Mapping[str, Judgement], cine: LabelledCine, models: str) -> bool:
    """Whether the current revision was judged, by this detector or by a review."""
    kept = known.get(cine.image_id)
    is_current = kept is not None and kept.revision == cine.annotation.revision
    return is_current and kept is not None and (kept.models == models or kept.models.startswith(REVIEW))


def _judge(
    labelled: LabelledFolder,
    waiting: Sequence[LabelledCine],
    judge: LabelJudge,
    store: ScoreStore,
    *,
    detector: str,
    should_stop: Callable[[], bool],
) -> int:
    earlier: list[Array] = [j.judged for j in store.judgements().values()]
    count = 0
    for cine in waiting:
        if should_stop():
            break
        try:
            looked = judge.look(labelled, cine)
        except EchoError as exc:
            logger.warning("Label of %s is not judged: %s", cine.image_id, exc)
            continue
        if looked.models != detector:  # published meanwhile: it may have learned from this very patient
            break
        calibration = calibrate(looked.operating_score, pooled([*earlier, looked.judged]))
        store.judge(judgement(looked, frame_quality(looked, calibration)))
        count += 1
    return count
