# SPDX-License-Identifier: Apache-2.0
"""Judging the labels of a study folder: by the published detector, those of patients it did not learn from."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from echo_plugin.acquisition.evidence import Array
from echo_plugin.acquisition.judge import LabelJudge, frame_quality, judgement, pooled, unseen_cines
from echo_plugin.acquisition.score_store import REVIEW, Judgement, ScoreStore
from echo_plugin.acquisition.uncertainty import calibrate
from echo_plugin.errors import EchoError, TrainingDataError
from echo_plugin.io.study_folder import StudyFolder
from echo_plugin.models.card_file import load_card
from echo_plugin.models.checkpoint import SEPTAL_DETECTOR
from echo_plugin.training.datasets import LabelledCine, LabelledFolder, open_judgeable_folder
from echo_plugin.training.provenance import names_its_patients

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class JudgedLabels:
    """``judged`` : labels judged now. ``left_out`` : nobody can judge them: no patient id, or a damaged annotation."""

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

    Labels that were judged by a review, which has models that saw none of the patient, keep that judgement.
    """
    card = load_card(models, SEPTAL_DETECTOR)
    if not names_its_patients(card):
        return JudgedLabels(0, 0)
    try:
        labelled, left_out = open_judgeable_folder(folder.root)
    except TrainingDataError:
        return JudgedLabels(0, 0)
    known, detector = store.judgements(), card.sha256[:16]
    waiting = [c for c in unseen_cines(card, labelled) if not _is_judged(known.get(c.image_id), c, detector)]
    if not waiting:
        return JudgedLabels(0, left_out)
    judge = LabelJudge(models, device=device)
    return JudgedLabels(_judge(labelled, waiting, judge, store, detector=detector, should_stop=should_stop), left_out)


def _is_judged(kept: Judgement | None, cine: LabelledCine, detector: str) -> bool:
    """Whether the current revision was judged, by this detector or by a review."""
    if kept is None or kept.revision != cine.annotation.revision:
        return False
    return kept.models == detector or kept.models.startswith(REVIEW)


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
