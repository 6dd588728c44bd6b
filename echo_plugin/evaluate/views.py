# SPDX-License-Identifier: Apache-2.0
"""Measuring views: a published model on held-out patients, or its architecture trained anew on every fold."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from echo_plugin.anatomy import View
from echo_plugin.annotations import ViewPrediction
from echo_plugin.answer.predict import EchoPipeline
from echo_plugin.errors import TrainingDataError
from echo_plugin.evaluate.folds import FoldAnswers, cross_validate, patient_folds
from echo_plugin.evaluate.held_out import HeldOut, choose_held_out
from echo_plugin.evaluate.report import draw_confusion, draw_curves, draw_pictures, worst_cines, write_report
from echo_plugin.geometry import FloatArray
from echo_plugin.measure.classes import Cohort, calibration_metric, classification_metrics, confusion_matrix
from echo_plugin.model_card import Metric, ModelCard, load_card
from echo_plugin.models.checkpoint import VIEW_CLASSIFIER
from echo_plugin.network_config import ViewConfig
from echo_plugin.progress import Progress
from echo_plugin.training.datasets import LabelledCine, LabelledFolder, open_labelled_folder
from echo_plugin.training.options import OnEpoch, ViewOptions
from echo_plugin.training.views import cines_of_views

HARD_PAIRS = ((View.PSAX_MV, View.PSAX_PM),)
"""Views that stills hardly tell apart: the mitral valve and the papillary muscles below it differ by motion."""
RELIABILITY_BINS = 10

Ids = NDArray[np.int_]


def view_metrics(
    cohort: Cohort, truth: Ids, probabilities: FloatArray, classes: Sequence[str], majority_id: int | None
) -> dict[str, Metric]:
    """Return accuracies, the figures of each view, the calibration error, and how often each hard pair is confused.

    "accuracy" is micro (of all cines), "balanced_accuracy" macro (the mean over views), as torchmetrics has it.
    """
    metrics = classification_metrics(cohort, truth, probabilities, classes=classes, majority_id=majority_id)
    metrics["expected calibration error"] = calibration_metric(cohort, truth, probabilities)
    answers = probabilities.argmax(axis=1)
    for pair in HARD_PAIRS:
        names = [view.value for view in pair]
        if not set(names) <= set(classes):
            continue
        ids = [classes.index(name) for name in names]
        chosen = np.isin(truth, ids)
        if chosen.any():
            swapped = np.isin(answers[chosen], ids) & (answers[chosen] != truth[chosen])
            metrics[f"confused {names[0]} / {names[1]}"] = cohort.of(chosen).mean(swapped.astype(float))
    return metrics


def open_set_metrics(
    cohort: Cohort, is_strange: NDArray[np.bool_], is_standard: NDArray[np.bool_], is_named: NDArray[np.bool_]
) -> dict[str, Metric]:
    """Return the share of standard views that are kept, of cines without one that are told so, and of right answers.

    ``is_named`` : the view that is said is that of the cine; an answer is right if it is, or says rightly that there is
    no standard view.
    """
    is_right = np.where(is_strange, ~is_standard, is_named & is_standard)
    metrics = {"accuracy, no standard view among the answers": cohort.mean(is_right.astype(float))}
    if (~is_strange).any():
        metrics["standard views kept"] = cohort.of(~is_strange).mean(is_standard[~is_strange].astype(float))
    if is_strange.any():
        told = cohort.of(is_strange).mean((~is_standard[is_strange]).astype(float))
        metrics["no standard view, and said so"] = told
    return metrics


def view_facts(
    cohort: Cohort, truth: Ids, probabilities: FloatArray, classes: Sequence[str], metrics: Mapping[str, Metric]
) -> dict[str, Any]:
    """Return what a report says of the answers, JSON-ready."""
    confusion = confusion_matrix(truth, probabilities.argmax(axis=1), len(classes))
    return {
        "patients": cohort.count,
        "cines": len(truth),
        "seed": cohort.seed,
        "split": cohort.split,
        "metrics": {name: dataclasses.asdict(m) for name, m in metrics.items() if np.isfinite(m.value)},
        "classes": list(classes),
        "confusion": confusion.astype(int).tolist(),
    }


def view_figures(truth: Ids, probabilities: FloatArray, classes: Sequence[str]) -> dict[str, Figure]:
    """Return the confusion matrix and the reliability curve, by title."""
    confusion = confusion_matrix(truth, probabilities.argmax(axis=1), len(classes))
    curve = reliability(probabilities, truth)
    line = np.array([0.0, 1.0])
    return {
        "Confusion": draw_confusion(confusion, classes),
        "Reliability": draw_curves({"measured": curve, "perfect": (line, line)}, "probability said", "share right"),
    }


def reliability(probabilities: FloatArray, truth: Ids, bins: int = RELIABILITY_BINS) -> tuple[FloatArray, FloatArray]:
    """Return the mean probability and the share of right answers of each bin of probability that has any."""
    said = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == truth
    cells = np.minimum((said * bins).astype(int), bins - 1)
    there = np.unique(cells)
    return np.array([said[cells == c].mean() for c in there]), np.array([right[cells == c].mean() for c in there])


def evaluate_views(
    studies: Path,
    models: Path,
    out: Path,
    *,
    device: str = "auto",
    progress: Progress | None = None,
    patients: Sequence[str] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure views by cine and write the report to ``out``.

    Cines of views that the model does not know, and those of OTHER, measure whether it says so; of stills it says
    nothing of the kind, so "open_set_cines", how many are measured by that, leaves them out.

    Raises
    ------
    TrainingDataError, ModelNotFoundError
        If nobody is left to measure on, or nothing is published.
    """
    classes = load_card(models, VIEW_CLASSIFIER).classes
    chosen = choose_held_out(
        studies, models, [VIEW_CLASSIFIER], patients=patients, wants=lambda cine: cine.annotation.view is not None
    )
    is_known = [_view_name(cine) in classes for cine in chosen.cines]
    if not any(is_known):
        views = ", ".join(classes)
        msg = f"Study folder {studies} has no held-out cine of a view that the model tells apart ({views})."
        raise TrainingDataError(msg)
    answers = _answers(chosen, models, device, progress)
    known = dataclasses.replace(chosen, cines=tuple(c for c, k in zip(chosen.cines, is_known, strict=True) if k))
    truth = np.array([classes.index(_view_name(cine)) for cine in known.cines])
    rows = [[a.probabilities[View(name)] for name in classes] for a, k in zip(answers, is_known, strict=True) if k]
    probabilities = np.array(rows)
    cohort = known.cohort([cine.patient_id for cine in known.cines], seed)
    said = [(answer.view.value, answer.is_standard) for answer in answers]
    strange, asked = _open_set(chosen.cines, said, classes, chosen.split, seed)
    metrics = view_metrics(cohort, truth, probabilities, classes, known.commonest_class) | strange
    facts = view_facts(cohort, truth, probabilities, classes, metrics)
    extra = {"classes": facts["classes"], "confusion": facts["confusion"], "open_set_cines": asked}
    figures = view_figures(truth, probabilities, classes)
    figures["Worst cines"] = draw_pictures(worst_cines(known, probabilities, truth, classes))
    return write_report(out, known.report("views", cohort, metrics, extra), figures, title="Views")


def cross_validate_views(
    studies: Path,
    models: Path,
    out: Path,
    *,
    folds: int,
    options: ViewOptions,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train the published view classifier's architecture anew on every fold of the patients; write the report.

    By the recipe of its card, but from random weights: whatever it went on from may have seen the patients.
    What each fold says is kept in ``out``: a run that was stopped goes on with the next.

    Raises
    ------
    TrainingDataError, ModelNotFoundError
        If there are too few labelled patients, or nothing is published whose architecture to take.
    """
    card = load_card(models, VIEW_CLASSIFIER)
    config, vocabulary = card.network_as(ViewConfig), tuple(View(name) for name in card.classes)
    options = _as_taught(options, card)
    labelled = open_labelled_folder(studies)
    cines = cines_of_views(labelled, vocabulary)
    splits = patient_folds([cine.patient_id for cine in cines], folds, options.seed)
    answers = cross_validate(
        labelled, cines, config, vocabulary, splits=splits, options=options, kept=out / "folds", progress=progress,
        on_epoch=lambda fold: _progress_of_fold(progress, fold, folds),
    )  # fmt: skip
    truth = np.concatenate([fold.truth for fold in answers])
    probabilities = np.concatenate([fold.probabilities for fold in answers])
    cohort = _cohort_of_folds(labelled, cines, answers, options.seed)
    taught = [vocabulary.index(c.annotation.view) for s in splits for c in cines if c.patient_id in s.train]
    metrics = view_metrics(cohort, truth, probabilities, card.classes, int(np.bincount(taught).argmax()))
    strange, asked = _open_set_of_folds(answers, cines, card.classes, cohort.split, cohort.seed)
    report = {
        **_facts_of_folds(labelled, card, options, answers),
        "open_set_cines": asked,
        **view_facts(cohort, truth, probabilities, card.classes, metrics | strange),
    }
    return write_report(out, report, view_figures(truth, probabilities, card.classes), title=f"Views, {folds} folds")


def _as_taught(options: ViewOptions, card: ModelCard) -> ViewOptions:
    """Return the options with the recipe by which the model of ``card`` was trained."""
    return dataclasses.replace(options, recipe=card.training.recipe, mirror=card.training.mirror)


def _cohort_of_folds(
    labelled: LabelledFolder, cines: Sequence[LabelledCine], answers: Sequence[FoldAnswers], seed: int
) -> Cohort:
    kind = "phantoms" if labelled.is_phantom else "patients"
    words = f"{kind} of {len(answers)} folds, each measured by a model that learned from others"
    return Cohort(tuple(cines[i].patient_id for fold in answers for i in fold.cines), words, seed)


def _facts_of_folds(
    labelled: LabelledFolder, card: ModelCard, options: ViewOptions, answers: Sequence[FoldAnswers]
) -> dict[str, Any]:
    """Return what a report says of the models of the folds, which have the architecture of ``card``."""
    command = f"monailabel-echo evaluate views --studies {labelled.folder.root.name} --models DIR --out DIR"
    command += f" --folds {len(answers)}" + ("" if options.epochs is None else f" --epochs {options.epochs}")
    trained_on = "the other folds, from random weights"
    return {
        "task": "views",
        "model": {"name": card.architecture, "version": "of each fold", "trained_on": trained_on, "sha256": ""},
        "on_phantoms": labelled.is_phantom,
        "patients_left_out": 0,
        "folds": [{"validation_measure": f.validation_measure, "cines": len(f.truth)} for f in answers],
        "command": command + (f" --seed {options.seed}" if options.seed else ""),
        "recipe": options.recipe,
        "mirror": options.mirror,
        "begun_with": "random weights",
        "published_model_trained_on": card.trained_on,
    }


def _progress_of_fold(progress: Progress | None, fold: int, folds: int) -> OnEpoch | None:
    """Return what says, after an epoch of one fold, how far all of them are; None: nobody asks."""
    if progress is None:
        return None
    return lambda status: progress(
        fold * status.total_epochs + status.epoch, folds * status.total_epochs, f"fold {fold + 1}"
    )


def _answers(chosen: HeldOut, models: Path, device: str, progress: Progress | None) -> list[ViewPrediction]:
    pipeline = EchoPipeline(models, device=device)
    answers = []
    for number, labels in enumerate(chosen.cines):
        view = pipeline.predict(chosen.labelled.folder.read_cine(labels.image_id), tasks=("view",)).view
        assert view is not None
        answers.append(view)
        if progress is not None:
            progress(number + 1, len(chosen.cines), "")
    return answers


def _open_set(
    cines: Sequence[LabelledCine],
    said: Sequence[tuple[str, bool | None]],
    classes: Sequence[str],
    split: str,
    seed: int,
) -> tuple[dict[str, Metric], int]:
    """Return the open-set figures, and of how many cines: those of which the model says whether they are standard.

    ``said`` : of each cine the view, and whether it is a standard one.
    """
    asked = [(cine, view, told) for cine, (view, told) in zip(cines, said, strict=True) if told is not None]
    if not asked:
        return {}, 0
    names = [_view_name(cine) for cine, _, _ in asked]
    is_strange = np.array([name not in classes or name == View.OTHER.value for name in names])
    is_named = np.array([view == name for name, (_, view, _) in zip(names, asked, strict=True)])
    is_standard = np.array([told for _, _, told in asked], dtype=bool)
    cohort = Cohort(tuple(cine.patient_id for cine, _, _ in asked), split, seed)
    return open_set_metrics(cohort, is_strange, is_standard, is_named), len(asked)


def _open_set_of_folds(
    answers: Sequence[FoldAnswers], cines: Sequence[LabelledCine], classes: Sequence[str], split: str, seed: int
) -> tuple[dict[str, Metric], int]:
    """Return the open-set figures of all folds; a still says nothing of the kind here either."""
    asked: list[LabelledCine] = []
    said: list[tuple[str, bool | None]] = []
    for fold in answers:
        for place, view in enumerate(fold.logits.argmax(axis=1)):
            cine = cines[fold.cines[place]]
            is_told = fold.is_standard is not None and cine.frame_count > 1
            asked.append(cine)
            said.append((classes[view], bool(fold.is_standard[place]) if is_told else None))  # type: ignore[index]
    return _open_set(asked, said, classes, split, seed)


def _view_name(cine: LabelledCine) -> str:
    return cine.annotation.view.value if cine.annotation.view else ""
