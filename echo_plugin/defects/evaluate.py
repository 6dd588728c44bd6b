# SPDX-License-Identifier: Apache-2.0
"""Measuring defects from pixels alone: the whole table of the ASD/VSD paper, and what a reader must know beside it.

Classification by cine and by patient, verification and retrieval among different patients, calibration, coverage, and
the same told apart by age, view, size, image quality and drop-out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from echo_plugin.anatomy import Defect
from echo_plugin.defects import pictures, verification
from echo_plugin.defects.held_out_answers import (
    Answers,
    PatientAnswers,
    ask,
    join_patients,
    measured_of_several_defects,
)
from echo_plugin.defects.held_out_pairs import agreement_table, compare_held_out, shown_patient_metrics
from echo_plugin.defects.metrics import any_defect_metrics, coverage_curve, reliability
from echo_plugin.defects.tables import beside_paper, dropout_table, tables_of_groups, words
from echo_plugin.evaluation_pictures import worst_cines
from echo_plugin.geometry import FloatArray
from echo_plugin.held_out import HeldOut, choose_held_out
from echo_plugin.metrics import Cohort, calibration_metric, classification_metrics, confusion_matrix
from echo_plugin.model_card import Metric
from echo_plugin.models.card_file import load_card
from echo_plugin.models.checkpoint import DEFECT_EMBEDDER, SEPTAL_DETECTOR, VIEW_CLASSIFIER
from echo_plugin.predict import EchoPipeline
from echo_plugin.progress import Progress
from echo_plugin.report import draw_confusion, draw_pictures, write_report
from echo_plugin.training.datasets import crop_frames


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

    Only cines on which somebody boxed a septum are measured: the others cannot show a septal defect. Whom a model that
    answers has learned from is left out, the view classifier among them where it says when to abstain.
    Children whose cines name different defects have no one answer: they are measured by cine alone, and counted.

    Raises
    ------
    TrainingDataError, ModelNotFoundError
        If nobody is left to measure on, or nothing is published.
    """
    classes = load_card(models, DEFECT_EMBEDDER).classes
    pipeline = EchoPipeline(models, device=device)
    chosen = _choose(studies, models, classes, pipeline, patients)
    answers = ask(chosen, pipeline, progress)
    children = join_patients(chosen, answers, pipeline)
    owners = [cine.patient_id for cine in chosen.cines]
    cohort, of_patients = chosen.cohort(owners, seed), chosen.cohort(children.names, seed)
    majority = chosen.commonest_class
    metrics = _by_patient(of_patients, answers, children, majority) | _by_cine(cohort, answers, majority)
    pairs, found, compared = compare_held_out(answers, children, owners, chosen.split, seed)
    metrics |= found
    dropout, found = dropout_table(cohort, answers.cines, answers.said, Defect.NORMAL.value)
    metrics |= found
    several = len(measured_of_several_defects(chosen))
    constant = None if majority is None else (answers.truth == majority).astype(np.float64)
    tables = [
        beside_paper(metrics, several),
        compared,
        agreement_table(of_patients, children),
        dropout,
        *tables_of_groups(cohort, answers.cines, answers.right, constant),
    ]
    confusions = _confusions(answers, children)
    extra = {
        "classes": list(answers.classes),
        "patients_of_several_defects": several,
        "confusion": confusions["cines"].astype(int).tolist(),
        "confusion_of_patients": confusions["patients"].astype(int).tolist(),
        "verification_pairs": {"same": int(pairs.is_same.sum()), "different": int((~pairs.is_same).sum())},
        "coverage": _coverage(answers),
        "tables": tables,
    }
    figures = {f"Confusion of {what}": draw_confusion(counts, answers.classes) for what, counts in confusions.items()}
    figures |= _figures(chosen, cohort, answers, pairs, metrics)
    return write_report(out, chosen.report("defects", cohort, metrics, extra), figures, title="Septal defects")


def _choose(
    studies: Path, models: Path, classes: Sequence[str], pipeline: EchoPipeline, patients: Sequence[str] | None
) -> HeldOut:
    """Return the cines to measure on: boxed, of a defect that is told, of whom no model that answers has learned."""
    is_view_asked = pipeline.is_view_needed(("defect",))  # it withholds answers, and drops walls
    return choose_held_out(
        studies,
        models,
        [DEFECT_EMBEDDER, SEPTAL_DETECTOR, *([VIEW_CLASSIFIER] if is_view_asked else [])],
        patients=patients,
        wants=lambda cine: getattr(cine.annotation.defect, "value", None) in classes and bool(crop_frames(cine, 1)),
    )


def _classified(
    cohort: Cohort, answers: Answers, truth: NDArray[np.int_], probabilities: FloatArray, majority: int | None
) -> dict[str, Metric]:
    metrics = classification_metrics(cohort, truth, probabilities, classes=answers.classes, majority_id=majority)
    metrics |= any_defect_metrics(
        cohort, truth, probabilities.argmax(axis=1), normal_id=answers.normal_id, majority_id=majority
    )
    return metrics | {"expected calibration error": calibration_metric(cohort, truth, probabilities)}


def _by_patient(cohort: Cohort, answers: Answers, children: PatientAnswers, majority: int | None) -> dict[str, Metric]:
    metrics = _classified(cohort, answers, children.truth, children.probabilities, majority)
    metrics |= shown_patient_metrics(cohort, children, answers.normal_id)
    return {f"{name} (patients)": metric for name, metric in metrics.items()}


def _by_cine(cohort: Cohort, answers: Answers, majority: int | None) -> dict[str, Metric]:
    metrics = _classified(cohort, answers, answers.truth, answers.probabilities, majority)
    given = ~answers.abstained
    if not given.all():
        metrics["coverage"] = cohort.mean(given.astype(np.float64), 1.0)
        if given.any():
            metrics["accuracy of those not abstained from"] = cohort.of(given).mean(answers.right[given])
    shows = answers.shows
    if shows.any() and not shows.all():  # viewers show the probabilities of these
        metrics["expected calibration error of cines that show their diagnosis"] = calibration_metric(
            cohort.of(shows), answers.truth[shows], answers.probabilities[shows]
        )
    return metrics


def _confusions(answers: Answers, children: PatientAnswers) -> dict[str, FloatArray]:
    """Return the confusion matrices of cines and of patients."""
    return {
        "cines": confusion_matrix(answers.truth, answers.probabilities.argmax(axis=1), len(answers.classes)),
        "patients": confusion_matrix(children.truth, children.said, len(answers.classes)),
    }


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
