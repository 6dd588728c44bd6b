# SPDX-License-Identifier: Apache-2.0
"""Measuring views: a published model on held-out patients, or its architecture trained anew on every fold."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from echo_plugin.anatomy import View
from echo_plugin.annotations import ViewPrediction
from echo_plugin.errors import TrainingDataError
from echo_plugin.evaluation_pictures import worst_cines
from echo_plugin.held_out import HeldOut, choose_held_out
from echo_plugin.metrics import Cohort
from echo_plugin.model_card import Metric, ModelCard
from echo_plugin.models.card_file import load_card
from echo_plugin.models.checkpoint import VIEW_CLASSIFIER, config_from_card
from echo_plugin.models.view_classifier import ViewConfig
from echo_plugin.predict import EchoPipeline
from echo_plugin.progress import Progress
from echo_plugin.report import draw_pictures, write_report
from echo_plugin.training.datasets import LabelledCine, LabelledFolder, open_labelled_folder
from echo_plugin.training.options import OnEpoch, TrainOptions
from echo_plugin.training.view_cines import cines_of_views
from echo_plugin.views.cross_validation import cross_validate
from echo_plugin.views.folds import FoldAnswers, patient_folds
from echo_plugin.views.report import open_set_metrics, view_facts, view_figures, view_metrics


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
    options: TrainOptions,
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
    config, vocabulary = config_from_card(card, ViewConfig), tuple(View(name) for name in card.classes)
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


def _as_taught(options: TrainOptions, card: ModelCard) -> TrainOptions:
    """Return the options with the recipe by which the model of ``card`` was trained."""
    recipe, is_mirrored = str(card.config.get("recipe", options.recipe)), card.config.get("mirror", options.mirror)
    return dataclasses.replace(options, recipe=recipe, mirror=bool(is_mirrored))


def _cohort_of_folds(
    labelled: LabelledFolder, cines: Sequence[LabelledCine], answers: Sequence[FoldAnswers], seed: int
) -> Cohort:
    kind = "phantoms" if labelled.is_phantom else "patients"
    words = f"{kind} of {len(answers)} folds, each measured by a model that learned from others"
    return Cohort(tuple(cines[i].patient_id for fold in answers for i in fold.cines), words, seed)


def _facts_of_folds(
    labelled: LabelledFolder, card: ModelCard, options: TrainOptions, answers: Sequence[FoldAnswers]
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
