# SPDX-License-Identifier: Apache-2.0
"""Measuring septal boxes through the pipeline that users run, on patients that the detector did not learn from.

Boxes are measured three times: as single frames give them, which is what papers report; with the scores and corners
that all frames of a cine together give them; and as viewers show them, the best course of each septum among these.
Lengths are in px of the model's input, and in mm where the cine is calibrated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echo_plugin.anatomy import DETECTED_SEPTA
from echo_plugin.annotations import SeptalBox
from echo_plugin.answer.boxes import link_boxes, weigh_boxes
from echo_plugin.answer.predict import EchoPipeline
from echo_plugin.answer.preprocess import FrameMapping, map_region, to_model_input
from echo_plugin.cine import Cine
from echo_plugin.evaluate.held_out import (
    AGES,
    DAYS_OF_YEAR,
    QUALITIES,
    HeldOut,
    choose_held_out,
    in_ranges,
    metric_words,
    number_in,
    phantom_facts,
)
from echo_plugin.evaluate.report import (
    Picture,
    draw_curves,
    draw_pictures,
    froc_curves,
    recall_curves,
    surest,
    worst_overlaps,
    write_report,
)
from echo_plugin.geometry import FloatArray
from echo_plugin.io.sector import tissue_region
from echo_plugin.measure.boxes import (
    COCO_IOUS,
    PRECISIONS,
    AveragePrecisions,
    FrameBoxes,
    average_precisions,
    best_overlaps,
    centre_distances,
    constant_answer,
    constant_boxes_px,
    detection_metrics,
    shown_metrics,
)
from echo_plugin.measure.classes import Cohort
from echo_plugin.models.checkpoint import SEPTAL_DETECTOR
from echo_plugin.progress import Progress
from echo_plugin.training.datasets import LabelledCine, detection_frames, unsought_labels

COLUMNS = (
    "group", "frames", "patients", "AP", "AP50", "constant answer's AP50",
    *(f"{words} {s.value}" for words in ("AP50 (boxes)", "mean IoU", "centre distance") for s in DETECTED_SEPTA),
)  # fmt: skip
NOTHING = "–"
HALF = PRECISIONS["AP50"]

Facts = Mapping[str, str | float | None]


@dataclass(frozen=True)
class MeasuredFrames:
    """N frames with answers and truth; ``medians`` : the constant boxes, None: not known."""

    cohort: Cohort
    answers: tuple[FrameBoxes, ...]
    truths: tuple[FrameBoxes, ...]
    medians: FloatArray | None

    def only(self, keep: NDArray[np.bool_]) -> MeasuredFrames:
        """Return the frames that are kept (N,)."""
        chosen = np.flatnonzero(keep)
        return MeasuredFrames(
            self.cohort.of(keep),
            tuple(self.answers[i] for i in chosen),
            tuple(self.truths[i] for i in chosen),
            self.medians,
        )


def tables_of_groups(frames: MeasuredFrames, facts: Sequence[Facts]) -> list[dict[str, Any]]:
    """Return tables by view, age and image quality; ``facts`` (N,) as ``evaluate_detector`` gathers them."""
    views = sorted({str(f["view"]) for f in facts if f["view"] is not None})
    groups = {
        "By view": {view: np.array([f["view"] == view for f in facts]) for view in views},
        "By age": in_ranges([f["age_years"] for f in facts], AGES),
        "By image quality": in_ranges([f["image_quality"] for f in facts], QUALITIES),
    }
    return [_table(title, members, frames) for title, members in groups.items()]


def _table(title: str, members: Mapping[str, NDArray[np.bool_]], frames: MeasuredFrames) -> dict[str, Any]:
    rows = [_row(name, frames.only(keep)) for name, keep in members.items() if keep.any()]
    note = "" if rows else "Not known of these cines: only labels, headers or the phantom's own table tell it."
    return {"title": title, "note": note, "columns": list(COLUMNS), "rows": rows}


def _row(name: str, frames: MeasuredFrames) -> list[str]:
    """Return the cells of a group: resampled is only what shows an interval, the others are of the group as it is."""
    truths, cohort, labels = frames.truths, frames.cohort, range(len(DETECTED_SEPTA))
    alone = average_precisions(cohort, frames.answers, truths, resamples=0)
    size = [name, str(len(truths)), str(cohort.count)]
    if not alone.cells:
        return [*size, "no septum", *[NOTHING] * (len(COLUMNS) - len(size) - 1)]
    resampled = average_precisions(cohort, frames.answers, truths, ious=HALF).of(None, HALF)
    constant = NOTHING
    if frames.medians is not None:
        same = [constant_answer(frames.medians)] * len(truths)
        constant = f"{average_precisions(cohort, same, truths, ious=HALF, resamples=0).of(None, HALF)[0]:.3f}"
    overlaps = [best_overlaps(frames.answers, truths, k) for k in labels]
    return [
        *size,
        f"{alone.of(None, COCO_IOUS)[0]:.3f}",
        metric_words(cohort.from_samples(float(resampled[0]), resampled[1:])),
        constant,
        *(_precision_of_septum(alone, truths, k) for k in labels),
        *(f"{np.nanmean(o):.3f}" if np.isfinite(o).any() else NOTHING for o in overlaps),
        *(_centre_distance(frames, k) for k in labels),
    ]


def _precision_of_septum(precisions: AveragePrecisions, truths: Sequence[FrameBoxes], label: int) -> str:
    """Return AP50 of one septum and the count of its boxes: in the mean a wall that a view seldom shows weighs much."""
    boxes = sum(len(truth.of(label)[0]) for truth in truths)
    return f"{precisions.of(label, HALF)[0]:.3f} ({boxes})" if boxes else NOTHING


def _centre_distance(frames: MeasuredFrames, label: int) -> str:
    """Return the mean distance of the centres of one septum, in mm where pixels have a known size, else in px."""
    px, mm = centre_distances(frames.answers, frames.truths, label)
    distances, unit = (mm, "mm") if np.isfinite(mm).any() else (px, "px")
    known = np.isfinite(distances)
    if not known.any():
        return NOTHING
    metric = frames.cohort.of(known).mean(distances[known])
    return f"{metric_words(metric, digits=1)} {unit}"


FRAMES_PER_CINE = 8
"""Annotated frames of a cine that are measured, evenly spread: neighbours say the same."""


@dataclass(frozen=True)
class MeasuredCine:
    """The measured frames of one cine: ``single``, ``linked`` and ``shown`` boxes beside the true ones, and facts.

    ``frames`` : 0-based. ``facts`` : view, age in years, image quality; None: not known.
    """

    image_id: str
    frames: Sequence[int]
    truths: list[FrameBoxes]
    single: list[FrameBoxes]
    linked: list[FrameBoxes]
    shown: list[FrameBoxes]
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
    kinds = ("truths", "single", "linked", "shown")
    truths, single, linked, shown = ([frame for c in cines for frame in getattr(c, kind)] for kind in kinds)
    cohort = chosen.cohort(owners, seed)
    medians = constant_boxes_px(chosen.card)
    alone = average_precisions(cohort, single, truths)
    over_time = average_precisions(cohort, linked, truths)
    metrics = detection_metrics(cohort, single, truths, medians, precisions=alone)
    metrics |= {f"{name}, linked over time": m for name, m in over_time.metrics(None).items()}
    metrics |= {f"{name} gained by linking over time": m for name, m in over_time.gains(alone).items()}
    metrics |= shown_metrics(cohort, shown, truths, medians)
    known = [c.facts for c in cines for _ in c.truths]
    tables = tables_of_groups(MeasuredFrames(cohort, tuple(single), tuple(truths), medians), known)
    figures = {
        "Precision and recall": draw_curves(recall_curves(single, truths), "recall", "precision at IoU 0.5"),
        "FROC": draw_curves(froc_curves(single, truths), "false boxes per frame", "sensitivity at IoU 0.5"),
        "Worst frames": draw_pictures(_worst_frames(chosen, cines)),
    }
    report = chosen.report("detector", cohort, metrics, {"frames": len(truths), "tables": tables})
    return write_report(out, report, figures, title="Septal boxes")


def _measure(chosen: HeldOut, labels: LabelledCine, pipeline: EchoPipeline, facts: Mapping[str, str]) -> MeasuredCine:
    cine = chosen.labelled.folder.read_cine(labels.image_id)
    frames = detection_frames(labels, FRAMES_PER_CINE)
    mapping = map_region(tissue_region(cine), cine.height, cine.width, chosen.card.input_size_px)
    everything = list(range(cine.frame_count))  # boxes are linked over all frames, as viewers see them
    candidates = pipeline.detect_septa(cine, everything)
    weighed = weigh_boxes(candidates, everything)
    seen = link_boxes(candidates, everything, pipeline.track.for_detector(chosen.card))
    spacing = _mm_per_model_px(cine, mapping)
    said = labels.annotation
    truths = [
        replace(_frame_boxes(said.boxes_on(f), mapping, spacing), unsought=unsought_labels(said, f)) for f in frames
    ]
    single, linked, shown = (
        [_frame_boxes([box for box in boxes if box.frame_index == f], mapping, spacing) for f in frames]
        for boxes in (candidates, weighed, seen)
    )
    view, age = labels.annotation.view, number_in(facts, "age_days")
    age = cine.patient_age_days if age is None else age
    known: dict[str, str | float | None] = {
        "view": None if view is None else view.value,
        "age_years": None if age is None else age / DAYS_OF_YEAR,
        "image_quality": number_in(facts, "image_quality"),
    }
    return MeasuredCine(labels.image_id, frames, truths, single, linked, shown, known)


def _worst_frames(chosen: HeldOut, cines: Sequence[MeasuredCine]) -> list[Picture]:
    """Return the frames whose surest boxes lie worst, read for this only."""
    truths, single = ([frame for c in cines for frame in getattr(c, k)] for k in ("truths", "single"))
    places = [(c, i) for c in cines for i in range(len(c.frames))]
    pictures = []
    for place, overlap in worst_overlaps(single, truths):
        measured, i = places[place]
        cine, frame = chosen.labelled.folder.read_cine(measured.image_id), measured.frames[i]
        pixels, _ = to_model_input(cine, [frame], chosen.card.input_size_px)
        title = f"{measured.image_id[-16:]} frame {frame}\nIoU {overlap:.2f}"
        pictures.append(Picture(pixels[0].numpy(), measured.truths[i], surest(measured.single[i]), title))
    return pictures


def _mm_per_model_px(cine: Cine, mapping: FrameMapping) -> tuple[float, float] | None:
    """Return the width and height of a px of the model's input; None: the cine is not calibrated."""
    region = tissue_region(cine)
    x, y = region.mm_per_px_x, region.mm_per_px_y
    return None if x is None or y is None else (x / mapping.scale, y / mapping.scale)


def _frame_boxes(
    boxes: Sequence[SeptalBox], mapping: FrameMapping, mm_per_px: tuple[float, float] | None
) -> FrameBoxes:
    known = [box for box in boxes if box.septum in DETECTED_SEPTA]
    labels: NDArray[np.int_] = np.array([DETECTED_SEPTA.index(box.septum) for box in known], dtype=int)
    scores = np.array([1.0 if box.score is None else box.score for box in known])
    return FrameBoxes(mapping.to_model(known), labels, scores, mm_per_px)
