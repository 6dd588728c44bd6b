# SPDX-License-Identifier: Apache-2.0
"""Which labels of a study folder look like mistakes, judged by detectors that did not learn from the patient.

Two ways to come by such detectors: train one for each fold of patients (`fold_judges`), or take the published one for
the patients that its card does not list as learned from (`published_judge`).
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from echo_plugin.acquisition.agreement import Agreement, agreement
from echo_plugin.acquisition.confirmed import Confirmed
from echo_plugin.acquisition.judge import JudgedCine, LabelJudge, frame_quality, judgement, look_at_each, unseen_cines
from echo_plugin.acquisition.label_quality import FrameQuality
from echo_plugin.acquisition.score_store import Judgement
from echo_plugin.acquisition.uncertainty import calibrate, pooled
from echo_plugin.annotations import Annotation
from echo_plugin.errors import AnnotationError, TrainingDataError
from echo_plugin.io.study_folder import StudyFolder
from echo_plugin.models.card_file import load_card
from echo_plugin.models.checkpoint import SEPTAL_DETECTOR
from echo_plugin.progress import Progress
from echo_plugin.training.datasets import LabelledCine, LabelledFolder, detection_frames, open_judgeable_folder
from echo_plugin.training.provenance import names_its_patients

logger = logging.getLogger(__name__)

TrainFold = Callable[[Sequence[str], Path, Progress], None]
"""(patients to learn from, folder to publish to, who is told how far it is): trains on these patients, on nobody else.
"""

JudgeOf = Callable[[LabelledFolder], Iterator[tuple[LabelJudge, Sequence[LabelledCine]]]]
"""Yields detectors with the cines each may judge."""


@dataclass(frozen=True)
class Doubt:
    """One annotated cine: the judgement, the frames with labels and detections, and the quality of each frame."""

    judgement: Judgement
    judged: JudgedCine
    quality: FrameQuality


@dataclass(frozen=True)
class Review:
    """``doubts`` : the most doubtful first. ``confirmed`` : of labels that a person looked at again, doubted no more.

    ``left_out`` : how many labelled cines no detector here may or can judge. ``folder`` : with the cines, for pictures.
    """

    doubts: tuple[Doubt, ...]
    confirmed: tuple[Doubt, ...]
    left_out: int
    agreement: Agreement
    is_phantom: bool
    judges: str
    folder: StudyFolder


def split_folds(patients: Sequence[str], count: int, seed: int) -> list[tuple[str, ...]]:
    """Return the patients in ``count`` folds of nearly equal size, drawn by ``seed``; each patient is in one.

    Raises
    ------
    TrainingDataError
        If there are fewer patients than folds, or fewer than two folds.
    """
    patients = sorted(set(patients))
    if not 2 <= count <= len(patients):
        msg = f"{len(patients)} patients cannot be reviewed in {count} folds; 2 to as many as there are patients can."
        raise TrainingDataError(msg)
    shuffled = np.random.default_rng(seed).permutation(np.array(patients, dtype=object))
    return [tuple(sorted(fold)) for fold in np.array_split(shuffled, count)]


def review(
    studies: Path,
    judge_of: JudgeOf,
    *,
    judges: str,
    progress: Progress | None = None,
) -> Review:
    """Return what is doubtful in the labels of a study folder.

    Parameters
    ----------
    judge_of
        See ``published_judge`` and ``fold_judges``.
    judges
        What the detectors are, in words.

    Raises
    ------
    TrainingDataError
        If there is nothing that may be judged.
    """
    labelled, damaged = open_judgeable_folder(studies)
    wanted = [cine for cine in labelled.cines if detection_frames(cine, 1)]
    judged: list[JudgedCine] = []
    for judge, cines in judge_of(labelled):
        for one in look_at_each(judge, labelled, cines):
            judged.append(one)
            if progress is not None:
                progress(len(judged), len(wanted), "judging labels")
    if not judged:
        msg = (
            f"Study folder {studies} has no label that may be judged: the published detector learned from every"
            " patient with boxes; judge by folds instead (--predictions folds)."
        )
        raise TrainingDataError(msg)
    is_confirmed = Confirmed(labelled.folder)
    doubts: dict[bool, list[Doubt]] = {False: [], True: []}
    for doubt in _ranked(judged):
        doubts[is_confirmed(doubt.judgement.image_id, doubt.judgement.revision)].append(doubt)
    return Review(
        tuple(doubts[False]),
        tuple(doubts[True]),
        len(wanted) - len(judged) + damaged,
        agreement(_histories(labelled)),
        labelled.is_phantom,
        judges,
        labelled.folder,
    )


def _ranked(judged: Sequence[JudgedCine]) -> list[Doubt]:
    """Return all of them by one calibration, the most doubtful first."""
    calibration = calibrate(judged[0].operating_score, pooled([one.judged for one in judged]))
    qualities = [frame_quality(one, calibration) for one in judged]
    doubts = [Doubt(judgement(one, q, calibration), one, q) for one, q in zip(judged, qualities, strict=True)]
    return sorted(doubts, key=lambda doubt: (doubt.judgement.quality, doubt.judgement.image_id))


def _histories(labelled: LabelledFolder) -> Iterator[Sequence[Annotation]]:
    for cine in labelled.cines:
        try:
            yield labelled.folder.history(cine.image_id)
        except AnnotationError as exc:
            logger.warning("Annotators of %s are not compared: %s", cine.image_id, exc)


def published_judge(models: Path, device: str) -> JudgeOf:
    """Judge by the published detector the cines of patients it did not learn from.

    Raises
    ------
    TrainingDataError
        If its card does not say whom it learned from.
    """
    card = load_card(models, SEPTAL_DETECTOR)
    if not names_its_patients(card):
        msg = f"Model {card.name}: its card does not list whom it learned from, so it may judge nobody; use folds."
        raise TrainingDataError(msg)

    def judges(labelled: LabelledFolder) -> Iterator[tuple[LabelJudge, Sequence[LabelledCine]]]:
        yield LabelJudge(models, device=device), unseen_cines(card, labelled)

    return judges


def fold_judges(train: TrainFold, folds: int, *, seed: int, device: str, progress: Progress | None = None) -> JudgeOf:
    """Judge every cine by a detector trained on the patients of the other folds; ``progress`` is told of trainings."""

    def judges(labelled: LabelledFolder) -> Iterator[tuple[LabelJudge, Sequence[LabelledCine]]]:
        wanted = [cine for cine in labelled.cines if detection_frames(cine, 1)]
        patients = [cine.patient_id for cine in wanted]
        for number, fold in enumerate(split_folds(patients, folds, seed), start=1):
            others = sorted(set(patients) - set(fold))
            with _private_folder() as models:
                train(others, models, _of_fold(progress, number, folds))
                yield LabelJudge(models, device=device), [c for c in wanted if c.patient_id in fold]

    return judges


def _of_fold(progress: Progress | None, number: int, folds: int) -> Progress:
    """Return what tells ``progress`` besides which fold it is."""

    def report(done: int, total: int, note: str) -> None:
        if progress is not None:
            progress(done, total, f"fold {number} of {folds}, {note}")

    return report


@contextmanager
def _private_folder() -> Iterator[Path]:
    """Yield a folder that only this user reads and that is gone afterwards: fold detectors learned from patients."""
    with tempfile.TemporaryDirectory(prefix="monailabel-echo-review-") as folder:
        yield Path(folder)


def to_json(result: Review) -> Mapping[str, object]:
    """Return the review for programs; no patient is named."""
    people = result.agreement
    return {
        "on_phantoms": result.is_phantom,
        "judges": result.judges,
        "left_out": result.left_out,
        "confirmed": len(result.confirmed),
        "cines": [
            {
                "image_id": doubt.judgement.image_id,
                "revision": doubt.judgement.revision,
                "author": doubt.judged.cine.annotation.author,
                "quality": round(doubt.judgement.quality, 4),
                "frames": list(doubt.judgement.frames),
                "doubt": doubt.judgement.words,
                "by_frame": {
                    str(frame): {kind: round(float(scores[n]), 4) for kind, scores in doubt.quality.by_kind.items()}
                    for n, frame in enumerate(doubt.judged.frame_indices)
                },
            }
            for doubt in result.doubts
        ],
        "agreement": {
            "cines": people.cines,
            "pairs": people.pairs,
            "frames": people.frames,
            "mean_iou": people.mean_iou,
            "kappa": people.kappa,
        },
    }
