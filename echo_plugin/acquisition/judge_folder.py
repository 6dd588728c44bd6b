# SPDX-License-Identifier: Apache-2.0
"""Judging the labels of a study folder: by the published detector, those of patients it did not learn from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from echo_plugin.acquisition.judge import (
    JudgedCine,
    LabelJudge,
    frame_quality,
    judgement,
    look_at_each,
    unseen_cines,
)
from echo_plugin.acquisition.score_store import REVIEW, Judgement, ScoreStore, rows_judged_by
from echo_plugin.acquisition.uncertainty import calibrate, pooled
from echo_plugin.boxes.tracks import operating_score
from echo_plugin.errors import TrainingDataError
from echo_plugin.io.study_folder import StudyFolder
from echo_plugin.models.card_file import load_card
from echo_plugin.models.checkpoint import SEPTAL_DETECTOR
from echo_plugin.training.datasets import LabelledCine, LabelledFolder, open_judgeable_folder
from echo_plugin.training.provenance import names_its_patients

PORTION = 200
"""So many labels are looked at, then calibrated by together: enough to calibrate by, few to lose when killed."""


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
    revisions = {cine.image_id: cine.annotation.revision for cine in labelled.cines}
    rows = rows_judged_by(detector, known.values(), revisions)
    judge, judged = LabelJudge(models, device=device), 0
    for start in range(0, len(waiting), PORTION):
        looked = _look_at(labelled, waiting[start : start + PORTION], judge, detector, should_stop)
        rows = pooled([rows, *(one.judged for one in looked)])
        calibration = calibrate(operating_score(card), rows)
        for one in looked:
            store.judge(judgement(one, frame_quality(one, calibration)))
        judged += len(looked)
    return JudgedLabels(judged, left_out)


def _is_judged(kept: Judgement | None, cine: LabelledCine, detector: str) -> bool:
    """Whether the current revision was judged, by this detector or by a review."""
    if kept is None or kept.revision != cine.annotation.revision:
        return False
    return kept.models == detector or kept.models.startswith(REVIEW)


def _look_at(
    labelled: LabelledFolder,
    cines: Sequence[LabelledCine],
    judge: LabelJudge,
    detector: str,
    should_stop: Callable[[], bool],
) -> list[JudgedCine]:
    """Return what ``detector`` says of the cines; ends early when stopped or replaced."""
    looked: list[JudgedCine] = []
    for one in look_at_each(judge, labelled, takewhile(lambda _: not should_stop(), cines)):
        if one.models != detector:  # published meanwhile: it may have learned from this very patient
            break
        looked.append(one)
    return looked
