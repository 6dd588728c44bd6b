# SPDX-License-Identifier: Apache-2.0
"""Measuring septal boxes through the pipeline that users run, on patients that the detector did not learn from.

Boxes are measured twice: as single frames give them, which is what papers report, and linked over time, which is what
viewers show. Lengths are in px of the model's input, and in mm where the cine is calibrated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echo_plugin.anatomy import DETECTED_SEPTA
from echo_plugin.annotations import SeptalBox
from echo_plugin.boxes.metrics import FrameBoxes, PrecisionOverLabels, constant_boxes_px, detection_metrics
from echo_plugin.boxes.tables import MeasuredFrames, tables_of_groups
from echo_plugin.boxes.tracks import TrackOptions, link_boxes
from echo_plugin.cine import Cine
from echo_plugin.cohort_facts import DAYS_OF_YEAR, number_in, phantom_facts
from echo_plugin.evaluation_pictures import froc_curves, recall_curves, surest, worst_frames
from echo_plugin.held_out import HeldOut, choose_held_out
from echo_plugin.io.sector import tissue_region
from echo_plugin.metrics import Cohort
from echo_plugin.model_card import Metric
from echo_plugin.models.checkpoint import SEPTAL_DETECTOR
from echo_plugin.predict import EchoPipeline
from echo_plugin.preprocess import FrameMapping, to_model_input
from echo_plugin.report import Picture, draw_curves, draw_pictures, write_report
from echo_plugin.training.datasets import LabelledCine, detection_frames

Progress = Callable[[int, int, str], None]

FRAMES_PER_CINE = 8
"""Annotated frames of a cine that are measured, evenly spread: neighbours say the same."""


@dataclass(frozen=True)
class MeasuredCine:
    """The measured frames of one cine: ``single`` and ``linked`` boxes beside the true ones, what to show, and facts.

    ``facts`` : view, age in years, image quality; None: not known.
    """

    truths: list[FrameBoxes]
    single: list[FrameBoxes]
    linked: list[FrameBoxes]
    pictures: list[Picture]
    facts: dict[str, str | float | None]


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
    """Measure septal boxes on annotated frames and write the report to ``out``.

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
    pipeline = EchoPipeline(models, device=device)
    facts = phantom_facts(studies)
    cines, owners = [], []
    for number, labels in enumerate(chosen.cines):
        cines.append(_measure(chosen, labels, pipeline, facts.get(labels.image_id, {})))
        owners += [labels.patient_id] * len(cines[-1].truths)
        if progress is not None:
            progress(number + 1, len(chosen.cines), "")
    truths, single, linked = ([frame for c in cines for frame in getattr(c, k)] for k in ("truths", "single", "linked"))
    cohort = chosen.cohort(owners, seed)
    medians = constant_boxes_px(chosen.card)
    metrics = detection_metrics(cohort, single, truths, medians)
    metrics |= {
        f"{name}, linked over time": m
        for name, m in detection_metrics(cohort, linked, truths, medians).items()
        if name.startswith(("AP", "mean IoU", "false alarms"))
    }
    metrics |= _gain_by_linking(cohort, single, linked, truths)
    known = [c.facts for c in cines for _ in c.truths]
    tables = tables_of_groups(MeasuredFrames(cohort, tuple(single), tuple(truths), medians), known)
    figures = {
        "Precision and recall": draw_curves(recall_curves(single, truths), "recall", "precision at IoU 0.5"),
        "FROC": draw_curves(froc_curves(single, truths), "false boxes per frame", "sensitivity at IoU 0.5"),
        "Worst frames": draw_pictures(worst_frames([p for c in cines for p in c.pictures], single, truths)),
    }
    report = chosen.report("detector", cohort, metrics, {"frames": len(truths), "tables": tables})
    return write_report(out, report, figures, title="Septal boxes")


def _measure(chosen: HeldOut, labels: LabelledCine, pipeline: EchoPipeline, facts: Mapping[str, str]) -> MeasuredCine:
    cine = chosen.labelled.folder.read_cine(labels.image_id)
    frames = detection_frames(labels, FRAMES_PER_CINE)
    pixels, mapping = to_model_input(cine, frames, chosen.card.input_size_px)
    everything = list(range(cine.frame_count))  # boxes are linked over all frames, as viewers see them
    candidates = pipeline.detect_septa(cine, everything)
    tracks = link_boxes(candidates, everything, TrackOptions().for_detector(chosen.card))
    spacing = _mm_per_model_px(cine, mapping)
    truths = [_frame_boxes(labels.annotation.boxes_on(f), mapping, spacing) for f in frames]
    single, linked = (
        [_frame_boxes([box for box in boxes if box.frame_index == f], mapping, spacing) for f in frames]
        for boxes in (candidates, tracks)
    )
    pictures = [
        Picture(picture, truth, surest(answer), f"{labels.image_id[-16:]} frame {frame}")
        for frame, picture, truth, answer in zip(frames, pixels.numpy(), truths, single, strict=True)
    ]
    view, age = labels.annotation.view, number_in(facts, "age_days")
    age = cine.patient_age_days if age is None else age
    return MeasuredCine(
        truths,
        single,
        linked,
        pictures,
        {
            "view": None if view is None else view.value,
            "age_years": None if age is None else age / DAYS_OF_YEAR,
            "image_quality": number_in(facts, "image_quality"),
        },
    )


def _gain_by_linking(
    cohort: Cohort, single: Sequence[FrameBoxes], linked: Sequence[FrameBoxes], truths: Sequence[FrameBoxes]
) -> dict[str, Metric]:
    """Return by how much linking over time raises the average precision, resampled in pairs."""
    present = [k for k in range(len(DETECTED_SEPTA)) if any(len(truth.of(k)[0]) for truth in truths)]
    gains = {}
    for words, iou in (("AP50", 0.5), ("AP75", 0.75)) if present else ():
        before, after = (PrecisionOverLabels(given, truths, present, [iou]) for given in (single, linked))
        gains[f"{words} gained by linking over time"] = cohort.metric(
            lambda w, b=before, a=after: a(w[:, cohort.index]) - b(w[:, cohort.index])  # type: ignore[misc]
        )
    return gains


def _mm_per_model_px(cine: Cine, mapping: FrameMapping) -> float | None:
    """Return the length of a px of the model's input; None: the cine is not calibrated, or not alike both ways."""
    region = tissue_region(cine)
    x, y = region.mm_per_px_x, region.mm_per_px_y
    return x / mapping.scale if x is not None and y is not None and np.isclose(x, y, rtol=0.02) else None


def _frame_boxes(boxes: Sequence[SeptalBox], mapping: FrameMapping, mm_per_px: float | None) -> FrameBoxes:
    known = [box for box in boxes if box.septum in DETECTED_SEPTA]
    labels: NDArray[np.int_] = np.array([DETECTED_SEPTA.index(box.septum) for box in known], dtype=int)
    scores = np.array([1.0 if box.score is None else box.score for box in known])
    return FrameBoxes(mapping.to_model(known), labels, scores, mm_per_px)
