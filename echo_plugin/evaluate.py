# SPDX-License-Identifier: Apache-2.0
"""Measuring boxes and views through the pipeline that users run, on patients that nobody learned from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from echo_plugin.anatomy import DETECTED_SEPTA
from echo_plugin.annotations import SeptalBox
from echo_plugin.box_metrics import FrameBoxes, constant_boxes_px, detection_metrics
from echo_plugin.evaluation_pictures import recall_curves, surest, worst_cines, worst_frames
from echo_plugin.held_out import HeldOut, choose_held_out
from echo_plugin.metrics import classification_metrics, confusion_matrix, expected_calibration_error
from echo_plugin.models.card_file import load_card
from echo_plugin.models.checkpoint import SEPTAL_DETECTOR, VIEW_CLASSIFIER
from echo_plugin.predict import EchoPipeline
from echo_plugin.preprocess import FrameMapping, to_model_input
from echo_plugin.report import Picture, draw_confusion, draw_curves, draw_pictures, write_report
from echo_plugin.training.datasets import detection_frames

Progress = Callable[[int, int, str], None]

FRAMES_PER_CINE = 8


def evaluate_detector(
    studies: Path,
    models: Path,
    out: Path,
    *,
    device: str = "auto",
    progress: Progress | None = None,
    patients: Sequence[str] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure septal boxes on annotated frames and write the report to ``out``; distances are px of the model's input.

    Boxes are those of single frames, before they are linked over time.

    Raises
    ------
    TrainingDataError, ModelNotFoundError
        If nobody is left to measure on, or nothing is published.
    """
    chosen = choose_held_out(
        studies,
        models,
        [SEPTAL_DETECTOR],
        patients=patients,
        wants=lambda cine: bool(detection_frames(cine, FRAMES_PER_CINE)),
    )
    size = chosen.card.input_size_px
    pipeline = EchoPipeline(models, device=device)
    truths: list[FrameBoxes] = []
    answers: list[FrameBoxes] = []
    owners: list[str] = []
    pictures: list[Picture] = []
    for number, labels in enumerate(chosen.cines):
        cine = chosen.labelled.folder.read_cine(labels.image_id)
        frames = detection_frames(labels, FRAMES_PER_CINE)
        pixels, mapping = to_model_input(cine, frames, size)
        found = pipeline.detect_septa(cine, frames)
        for frame, picture in zip(frames, pixels.numpy(), strict=True):
            truth = _frame_boxes(labels.annotation.boxes_on(frame), mapping)
            answer = _frame_boxes([box for box in found if box.frame_index == frame], mapping)
            truths.append(truth)
            answers.append(answer)
            owners.append(labels.patient_id)
            pictures.append(Picture(picture, truth, surest(answer), f"{labels.image_id[-16:]} frame {frame}"))
        _tell(progress, number, chosen)
    cohort = chosen.cohort(owners, seed)
    metrics = detection_metrics(cohort, answers, truths, constant_boxes_px(chosen.card))
    figures = {
        "Precision and recall": draw_curves(recall_curves(answers, truths), "recall", "precision at IoU 0.5"),
        "Worst frames": draw_pictures(worst_frames(pictures, answers, truths)),
    }
    report = chosen.report("detector", cohort, metrics, {"frames": len(truths)})
    return write_report(out, report, figures, title="Septal boxes")


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

    Raises
    ------
    TrainingDataError, ModelNotFoundError
        If nobody is left to measure on, or nothing is published.
    """
    classes = load_card(models, VIEW_CLASSIFIER).classes
    chosen = choose_held_out(
        studies,
        models,
        [VIEW_CLASSIFIER],
        patients=patients,
        wants=lambda cine: cine.annotation.view is not None and cine.annotation.view.value in classes,
    )
    pipeline = EchoPipeline(models, device=device)
    rows = []
    for number, labels in enumerate(chosen.cines):
        prediction = pipeline.predict(chosen.labelled.folder.read_cine(labels.image_id), tasks=("view",)).view
        assert prediction is not None
        named = {view.value: probability for view, probability in prediction.probabilities.items()}
        rows.append([named[name] for name in classes])
        _tell(progress, number, chosen)
    truth = np.array([classes.index(c.annotation.view.value) for c in chosen.cines if c.annotation.view])
    probabilities = np.array(rows)
    cohort = chosen.cohort([cine.patient_id for cine in chosen.cines], seed)
    metrics = classification_metrics(cohort, truth, probabilities, classes=classes, majority_id=chosen.commonest_class)
    confusion = confusion_matrix(truth, probabilities.argmax(axis=1), len(classes))
    extra = {
        "classes": list(classes),
        "confusion": confusion.astype(int).tolist(),
        "expected_calibration_error": expected_calibration_error(probabilities, truth),
    }
    figures = {
        "Confusion": draw_confusion(confusion, classes),
        "Worst cines": draw_pictures(worst_cines(chosen, probabilities, truth, classes)),
    }
    return write_report(out, chosen.report("views", cohort, metrics, extra), figures, title="Views")


def _frame_boxes(boxes: Sequence[SeptalBox], mapping: FrameMapping) -> FrameBoxes:
    known = [box for box in boxes if box.septum in DETECTED_SEPTA]
    labels = np.array([DETECTED_SEPTA.index(box.septum) for box in known], dtype=int)
    scores = np.array([1.0 if box.score is None else box.score for box in known])
    return FrameBoxes(mapping.to_model(known), labels, scores)


def _tell(progress: Progress | None, number: int, chosen: HeldOut) -> None:
    if progress is not None:
        progress(number + 1, len(chosen.cines), "")
