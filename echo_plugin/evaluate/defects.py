# SPDX-License-Identifier: Apache-2.0
"""Measuring defects from pixels alone: the whole table of the ASD/VSD paper, and what a reader must know beside it.

Classification by cine and by patient, verification and retrieval among different patients, calibration, coverage, and
the same told apart by age, view, size, image quality and drop-out.

The paper's pairs are of pictures that show the diagnosis, compared by their embeddings. Many cines of a child do not
show it, so pairs of those that do, by plain embeddings, are the figure beside the paper's. Similar cases are found by
class probabilities: these of the same cines, of all cines by diagnosis, and of whole children stand beside it, so that
neither the choice of pairs nor of vectors hides anything. All pairs are of different patients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from echo_plugin.anatomy import Defect
from echo_plugin.answer.predict import EchoPipeline
from echo_plugin.answer.prediction import CineEmbedding
from echo_plugin.cine import ByteArray
from echo_plugin.errors import TrainingDataError
from echo_plugin.evaluate import defect_tables
from echo_plugin.evaluate.defect_tables import DROPOUT_FROM, AnsweredCine, beside_paper, dropout_table, tables_of_groups
from echo_plugin.evaluate.held_out import HeldOut, choose_held_out, metric_words, number_in, phantom_facts
from echo_plugin.evaluate.report import draw_confusion, draw_pictures, embedded_picture, worst_cines, write_report
from echo_plugin.geometry import FloatArray
from echo_plugin.measure import verification
from echo_plugin.measure.classes import (
    Cohort,
    any_defect_metrics,
    calibration_metric,
    classification_metrics,
    confusion_matrix,
    coverage_curve,
    reliability,
)
from echo_plugin.model_card import Metric, load_card
from echo_plugin.models.checkpoint import DEFECT_EMBEDDER, SEPTAL_DETECTOR, VIEW_CLASSIFIER
from echo_plugin.progress import Progress
from echo_plugin.training.datasets import crop_frames
from echo_plugin.training.splits import patients_of_several_defects

THUMBNAIL_PX = 96


@dataclass(frozen=True)
class Answers:
    """What the models said of N cines: ``probabilities`` (N, K), the true ids, ``abstained`` (N,) bool.

    ``vectors, embeddings`` : (N, D) of unit length, of ``CineEmbedding``. ``thumbnails`` : (S, S) uint8 of what was
    embedded.
    """

    classes: tuple[str, ...]
    truth: NDArray[np.int_]
    probabilities: FloatArray
    vectors: FloatArray
    embeddings: FloatArray
    abstained: NDArray[np.bool_]
    embedded: tuple[CineEmbedding, ...]
    thumbnails: tuple[ByteArray, ...]
    cines: tuple[AnsweredCine, ...]

    @property
    def shows(self) -> NDArray[np.bool_]:
        """(N,) whether the diagnosis can be seen: nobody said that the defect lies outside the picture."""
        return np.array([cine.is_visible is not False for cine in self.cines])

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


def ask(chosen: HeldOut, pipeline: EchoPipeline, progress: Progress | None) -> Answers:
    """Return what the models say of the held-out cines."""
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
        np.array([cine.embedding.astype(np.float64) for cine in asked]),
        np.array([cine.defect.abstained is not None for cine in asked]),
        tuple(asked),
        tuple(thumbnails),
        tuple(cines),
    )


@dataclass(frozen=True)
class PatientAnswers:
    """What the models said of P patients: ``truth`` (P,) ids, ``probabilities`` (P, K).

    ``is_shown`` (P,) : whether any of their cines shows the defect; of a normal heart always. ``agreement`` (P,) : of
    ``PatientDefect``; NaN: not known. ``has_dropout`` (P,) : whether the interatrial septum drops out on one of them.
    """

    names: tuple[str, ...]
    truth: NDArray[np.int_]
    probabilities: FloatArray
    is_shown: NDArray[np.bool_]
    has_dropout: NDArray[np.bool_]
    agreement: FloatArray

    @property
    def said(self) -> NDArray[np.int_]:
        """(P,) the class that is answered."""
        return np.asarray(self.probabilities.argmax(axis=1))

    @property
    def vectors(self) -> FloatArray:
        """(P, K) of unit length: their cosines say how likely two patients have one defect, as those of cines do."""
        found: FloatArray = self.probabilities / np.linalg.norm(self.probabilities, axis=1, keepdims=True)
        return found


def measured_of_several_defects(chosen: HeldOut) -> frozenset[str]:
    """Return those to measure whose cines name different defects."""
    several = patients_of_several_defects((c.patient_id, c.annotation.defect) for c in chosen.labelled.cines)
    return several & {cine.patient_id for cine in chosen.cines}


def join_patients(chosen: HeldOut, answers: Answers, pipeline: EchoPipeline) -> PatientAnswers:
    """Return what the cines of each patient say together; of who got no answer the mean of the cines'.

    Patients whose cines name different defects have no one answer: they are left out.

    Raises
    ------
    TrainingDataError
        If nobody is left.
    """
    owner = np.array([cine.patient_id for cine in chosen.cines])
    several = measured_of_several_defects(chosen)
    told = {name: (chosen.labelled.defects[name] or Defect.NORMAL).value for name in set(owner.tolist()) - several}
    names = sorted(name for name, defect in told.items() if defect in answers.classes)
    if not names:
        msg = f"All {len(several)} patients to measure have cines of different defects; measure others too."
        raise TrainingDataError(msg)
    rows, is_shown, has_dropout, agreement = [], [], [], []
    for name in names:
        own = np.flatnonzero(owner == name)
        joined = pipeline.combine([answers.embedded[place] for place in own])
        mean = answers.probabilities[own].mean(axis=0)
        rows.append(mean if joined is None else [joined.probabilities[Defect(k)] for k in answers.classes])
        agreement.append(np.nan if joined is None or joined.agreement is None else joined.agreement)
        is_shown.append(bool(answers.shows[own].any()))
        has_dropout.append(any((answers.cines[place].septal_dropout or 0.0) >= DROPOUT_FROM for place in own))
    truth = np.array([answers.classes.index(told[name]) for name in names])
    facts = np.array(rows), np.array(is_shown), np.array(has_dropout), np.array(agreement)
    return PatientAnswers(tuple(names), truth, *facts)


MEASURES = (
    "verification AUC",
    "verification EER",
    *(f"TAR at FAR {target:g}" for target in verification.FAR_TARGETS),
    "P@1",
    "mAP@R",
)


def compare_held_out(
    answers: Answers, patients: PatientAnswers, owners: Sequence[str], split: str, seed: int
) -> tuple[verification.CasePairs, dict[str, Metric], dict[str, Any]]:
    """Return the pairs of cines that show their diagnosis, the figures of every protocol, and their table."""
    own, shows = np.asarray(owners), answers.shows
    protocols = {
        "": (answers.vectors[shows], answers.truth[shows], own[shows]),
        " (plain embeddings)": (answers.embeddings[shows], answers.truth[shows], own[shows]),
        " (all cines)": (answers.vectors, answers.truth, own),
        " (patients)": (patients.vectors, patients.truth, np.asarray(patients.names)),
    }
    named = {
        "": "cines that show their diagnosis, by class probabilities",
        " (plain embeddings)": "the same cines, by plain embeddings, as in the paper",
        " (all cines)": "all cines, by class probabilities, the child's diagnosis for truth",
        " (patients)": "children, by class probabilities of all their cines together",
    }
    metrics, rows = dict[str, Metric](), []
    chosen: verification.CasePairs | None = None
    for suffix, (vectors, truth, names) in protocols.items():
        pairs = verification.cross_patient_pairs(vectors, truth, names.tolist())
        chosen = chosen or pairs
        found = verification.verification_metrics(pairs, split, seed)
        found |= verification.retrieval_metrics(vectors, truth, names.tolist(), split, seed)
        metrics |= {f"{name}{suffix}": metric for name, metric in found.items()}
        cells = [metric_words(found[name]) if name in found else "–" for name in MEASURES]
        rows.append([named[suffix], str(len(truth)), str(int(pairs.is_same.sum())), str(len(pairs.first)), *cells])
    assert chosen is not None
    table = {
        "title": "Same defect type? Pairs of different patients",
        "note": "Chance: AUC and EER 0.5. Cines whose defect lies outside the picture are in the third row alone.",
        "columns": ["what is compared", "cases", "same", "pairs", *MEASURES],
        "rows": rows,
    }
    return chosen, metrics, table


def shown_patient_metrics(cohort: Cohort, patients: PatientAnswers, normal_id: int) -> dict[str, Metric]:
    """Return the accuracy over patients whose defect some cine shows, how many those are, and of drop-out."""
    right = np.asarray(patients.said == patients.truth, dtype=np.float64)
    metrics = {}
    if not patients.is_shown.all() and patients.is_shown.any():
        metrics["accuracy where a cine shows the defect"] = cohort.of(patients.is_shown).mean(right[patients.is_shown])
        metrics["a cine shows the defect, or the heart is normal"] = cohort.mean(patients.is_shown.astype(np.float64))
    normal = (patients.truth == normal_id) & patients.has_dropout
    if normal.any():
        metrics["called Normal, with drop-out on some cine"] = cohort.of(normal).mean(right[normal])
    return metrics


def agreement_table(cohort: Cohort, patients: PatientAnswers) -> dict[str, Any]:
    """Return how often children are answered rightly by how many of their views agree: the paper's multi-view check."""
    right = np.asarray(patients.said == patients.truth, dtype=np.float64)
    groups = {
        "all that can show it agree": patients.agreement >= 1,
        "half or more of them": (patients.agreement >= 0.5) & (patients.agreement < 1),
        "fewer": patients.agreement < 0.5,
        "no cine can show it, or no answer": np.isnan(patients.agreement),
    }
    rows = [
        [name, str(int(place.sum())), metric_words(cohort.of(place).mean(right[place]))]
        for name, place in groups.items()
        if place.any()
    ]
    columns = ["views that call the child's defect so", "patients", "accuracy"]
    return {"title": "Do the views of a child agree?", "note": "", "columns": columns, "rows": rows}


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
    size = len(answers.classes)
    confusions = {
        "cines": confusion_matrix(answers.truth, answers.probabilities.argmax(axis=1), size),
        "patients": confusion_matrix(children.truth, children.said, size),
    }
    coverage, accuracy = coverage_curve(answers.truth, answers.probabilities)
    abstained = int(answers.abstained.sum())
    extra = {
        "classes": list(answers.classes),
        "patients_of_several_defects": several,
        "confusion": confusions["cines"].astype(int).tolist(),
        "confusion_of_patients": confusions["patients"].astype(int).tolist(),
        "verification_pairs": {"same": int(pairs.is_same.sum()), "different": int((~pairs.is_same).sum())},
        "coverage": {"coverage": coverage.tolist(), "accuracy": accuracy.tolist(), "abstained": abstained},
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
        area = f"AUC {metric_words(metrics['verification AUC'])}, {len(pairs.first)} pairs of {cohort.count} patients"
        figures["Verification among different patients"] = defect_tables.draw_acceptance(band, area)
    layout = defect_tables.draw_embeddings(answers.embeddings, answers.truth, answers.classes, cohort.seed)
    if layout is not None:
        figures["Embeddings"] = layout
    figures["Reliability"] = defect_tables.draw_reliability(
        reliability(answers.truth, answers.probabilities),
        metrics["expected calibration error"].value,
        metrics["brier"].value,
    )
    given = ~answers.abstained
    is_part = given.any() and not given.all()
    own = (float(given.mean()), float(answers.right[given].mean())) if is_part else None
    figures["Coverage and accuracy"] = defect_tables.draw_coverage(
        *coverage_curve(answers.truth, answers.probabilities), metrics["accuracy"].baseline, own
    )
    figures["Most similar cases of other patients"] = defect_tables.draw_retrieved(
        answers.thumbnails, answers.embeddings, answers.truth, cohort.patients, answers.classes
    )
    figures["Worst cines"] = draw_pictures(worst_cines(chosen, answers.probabilities, answers.truth, answers.classes))
    return figures
