# SPDX-License-Identifier: Apache-2.0
"""Measuring defects from pixels alone: the whole table of the ASD/VSD paper, and what a reader must know beside it.

Classification by cine and by patient, verification and retrieval among different patients, calibration, coverage, and
the same told apart by age, view, size, image quality and drop-out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from echo_plugin.anatomy import Defect
from echo_plugin.cine import ByteArray
from echo_plugin.cohort_facts import number_in, phantom_facts
from echo_plugin.defects import pictures, verification
from echo_plugin.defects.metrics import any_defect_metrics, calibration_metric, coverage_curve, mean_over, reliability
from echo_plugin.defects.tables import (
    AnsweredCine,
    beside_paper,
    dropout_table,
    tables_of_groups,
    words,
)
from echo_plugin.evaluation_pictures import embedded_picture, worst_cines
from echo_plugin.geometry import FloatArray
from echo_plugin.held_out import HeldOut, choose_held_out
from echo_plugin.metrics import Cohort, classification_metrics, confusion_matrix
from echo_plugin.model_card import Metric
from echo_plugin.models.card_file import load_card
from echo_plugin.models.checkpoint import DEFECT_EMBEDDER, SEPTAL_DETECTOR
from echo_plugin.predict import EchoPipeline
from echo_plugin.prediction import CineEmbedding
from echo_plugin.report import draw_confusion, draw_pictures, write_report
from echo_plugin.training.datasets import crop_frames

Progress = Callable[[int, int, str], None]

THUMBNAIL_PX = 96


@dataclass(frozen=True)
class Answers:
    """What the models said of N cines: ``probabilities`` (N, K), ``embeddings`` (N, D) of unit length, the true ids.

    ``thumbnails`` : (S, S) uint8 of what was embedded. ``abstained`` : (N,) bool.
    """

    classes: tuple[str, ...]
    truth: NDArray[np.int_]
    probabilities: FloatArray
    embeddings: FloatArray
    abstained: NDArray[np.bool_]
    embedded: tuple[CineEmbedding, ...]
    thumbnails: tuple[ByteArray, ...]
    cines: tuple[AnsweredCine, ...]

    @property
    def normal_id(self) -> int:
        """The class that is no defect."""
        return self.classes.index(Defect.NORMAL.value)

    @property
    def said(self) -> list[str]:
        """The class that is answered of each cine."""
        return [self.classes[k] for k in self.probabilities.argmax(axis=1)]

    @property
    def right(self) -> FloatArray:
        """(N,) 1 where the answer is the truth."""
        return np.asarray(self.probabilities.argmax(axis=1) == self.truth, dtype=np.float64)


def evaluate_defects(
    studies: Path,
    models: Path,
    out: Path,
    *,
    device: str = "auto",
    progress: Progress | None = None,
    patients: Sequence[str] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure defects (detector, then embedder) by cine and by patient; write the report to ``out``.

    Only cines on which somebody boxed a septum are measured: the others cannot show a septal defect.

    Raises
    ------
    TrainingDataError, ModelNotFoundError
        If nobody is left to measure on, or nothing is published.
    """
    classes = load_card(models, DEFECT_EMBEDDER).classes
    chosen = choose_held_out(
        studies,
        models,
        [DEFECT_EMBEDDER, SEPTAL_DETECTOR],
        patients=patients,
        wants=lambda cine: getattr(cine.annotation.defect, "value", None) in classes and bool(crop_frames(cine, 1)),
    )
    pipeline = EchoPipeline(models, device=device)
    answers = _ask(chosen, pipeline, progress)
    owners = [cine.patient_id for cine in chosen.cines]
    cohort = chosen.cohort(owners, seed)
    pairs = verification.cross_patient_pairs(answers.embeddings, answers.truth, owners)
    majority = chosen.commonest_class
    names, patient_truth, by_patient = _patient_answers(chosen, cohort, answers, pipeline)
    each = _classified(chosen.cohort(names, seed), answers, patient_truth, by_patient, majority)
    metrics = {f"{name} (patients)": metric for name, metric in each.items()} | _by_cine(cohort, answers, majority)
    metrics |= verification.verification_metrics(pairs, chosen.split, seed)
    metrics |= verification.retrieval_metrics(answers.embeddings, answers.truth, owners, chosen.split, seed)
    dropout, found = dropout_table(cohort, answers.cines, answers.said, Defect.NORMAL.value)
    metrics |= found
    constant = None if majority is None else (answers.truth == majority).astype(np.float64)
    tables = [beside_paper(metrics), dropout, *tables_of_groups(cohort, answers.cines, answers.right, constant)]
    confusions = {
        "cines": confusion_matrix(answers.truth, answers.probabilities.argmax(axis=1), len(answers.classes)),
        "patients": confusion_matrix(patient_truth, by_patient.argmax(axis=1), len(answers.classes)),
    }
    extra = {
        "classes": list(answers.classes),
        "confusion": confusions["cines"].astype(int).tolist(),
        "confusion_of_patients": confusions["patients"].astype(int).tolist(),
        "verification_pairs": {"same": int(pairs.is_same.sum()), "different": int((~pairs.is_same).sum())},
        "coverage": _coverage(answers),
        "tables": tables,
    }
    figures = {f"Confusion of {what}": draw_confusion(counts, answers.classes) for what, counts in confusions.items()}
    figures |= _figures(chosen, cohort, answers, pairs, metrics)
    return write_report(out, chosen.report("defects", cohort, metrics, extra), figures, title="Septal defects")


def _ask(chosen: HeldOut, pipeline: EchoPipeline, progress: Progress | None) -> Answers:
    classes = chosen.card.classes
    facts = phantom_facts(chosen.labelled.folder.root)
    asked, thumbnails, cines = list[CineEmbedding](), [], []
    for number, labels in enumerate(chosen.cines):
        cine = chosen.labelled.folder.read_cine(labels.image_id)
        embedded = pipeline.embed(cine)
        asked.append(embedded)
        thumbnails.append(embedded_picture(cine, embedded.defect, THUMBNAIL_PX))
        known, said = facts.get(labels.image_id, {}), labels.annotation
        assert said.defect is not None
        age = number_in(known, "age_days")
        cines.append(
            AnsweredCine(
                view=None if said.view is None else said.view.value,
                defect=said.defect.value,
                age_days=cine.patient_age_days if age is None else int(age),
                defect_size_mm=said.defect_size_mm,
                image_quality=number_in(known, "image_quality"),
                septal_dropout=number_in(known, "septal_dropout"),
                is_visible=said.is_defect_visible,
            )
        )
        if progress is not None:
            progress(number + 1, len(chosen.cines), "")
    truth = np.array([classes.index(cine.defect) for cine in cines])
    return Answers(
        classes,
        truth,
        np.array([[cine.defect.probabilities[Defect(name)] for name in classes] for cine in asked]),
        np.array([cine.vector.astype(np.float64) for cine in asked]),
        np.array([cine.defect.abstained is not None for cine in asked]),
        tuple(asked),
        tuple(thumbnails),
        tuple(cines),
    )


def _classified(
    cohort: Cohort, answers: Answers, truth: NDArray[np.int_], probabilities: FloatArray, majority: int | None
) -> dict[str, Metric]:
    metrics = classification_metrics(cohort, truth, probabilities, classes=answers.classes, majority_id=majority)
    metrics |= any_defect_metrics(
        cohort, truth, probabilities.argmax(axis=1), normal_id=answers.normal_id, majority_id=majority
    )
    return metrics | {"expected calibration error": calibration_metric(cohort, truth, probabilities)}


def _by_cine(cohort: Cohort, answers: Answers, majority: int | None) -> dict[str, Metric]:
    metrics = _classified(cohort, answers, answers.truth, answers.probabilities, majority)
    given = ~answers.abstained
    if not given.all():
        metrics["coverage"] = cohort.mean(given.astype(np.float64), 1.0)
        if given.any():
            metrics["accuracy of those not abstained from"] = mean_over(cohort, given, answers.right)
    return metrics


def _patient_answers(
    chosen: HeldOut, cohort: Cohort, answers: Answers, pipeline: EchoPipeline
) -> tuple[list[str], NDArray[np.int_], FloatArray]:
    """Return the P patients, their true ids and (P, K) probabilities; of who got no answer the mean of the cines'."""
    owner = np.array(cohort.patients)
    told = {name: (chosen.labelled.defects[name] or Defect.NORMAL).value for name in set(cohort.patients)}
    names = sorted(name for name, defect in told.items() if defect in answers.classes)
    truth = np.array([answers.classes.index(told[name]) for name in names])
    rows = []
    for name in names:
        joined = pipeline.combine([answers.embedded[place] for place in np.flatnonzero(owner == name)])
        mean = answers.probabilities[owner == name].mean(axis=0)
        rows.append(mean if joined is None else [joined.probabilities[Defect(k)] for k in answers.classes])
    return names, truth, np.array(rows)


def _coverage(answers: Answers) -> dict[str, Any]:
    coverage, accuracy = coverage_curve(answers.truth, answers.probabilities)
    return {"coverage": coverage.tolist(), "accuracy": accuracy.tolist(), "abstained": int(answers.abstained.sum())}


def _figures(
    chosen: HeldOut,
    cohort: Cohort,
    answers: Answers,
    pairs: verification.CasePairs,
    metrics: dict[str, Metric],
) -> dict[str, Figure]:
    figures = {}
    if pairs.can_be_measured:
        band = verification.curve_with_band(pairs, chosen.split, cohort.seed)
        area = f"AUC {words(metrics['verification AUC'])}, {len(pairs.first)} pairs of {cohort.count} patients"
        figures["Verification among different patients"] = pictures.draw_acceptance(band, area)
    layout = pictures.draw_embeddings(answers.embeddings, answers.truth, answers.classes, cohort.seed)
    if layout is not None:
        figures["Embeddings"] = layout
    figures["Reliability"] = pictures.draw_reliability(
        reliability(answers.truth, answers.probabilities),
        metrics["expected calibration error"].value,
        metrics["brier"].value,
    )
    given = ~answers.abstained
    is_part = given.any() and not given.all()
    own = (float(given.mean()), float(answers.right[given].mean())) if is_part else None
    figures["Coverage and accuracy"] = pictures.draw_coverage(
        *coverage_curve(answers.truth, answers.probabilities), metrics["accuracy"].baseline, own
    )
    figures["Most similar cases of other patients"] = pictures.draw_retrieved(
        answers.thumbnails, answers.embeddings, answers.truth, cohort.patients, answers.classes
    )
    figures["Worst cines"] = draw_pictures(worst_cines(chosen, answers.probabilities, answers.truth, answers.classes))
    return figures
