# SPDX-License-Identifier: Apache-2.0
"""Septal boxes by view, age and image quality, each group with its interval and beside the constant answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echo_plugin.anatomy import DETECTED_SEPTA
from echo_plugin.boxes.matching import COCO_IOUS
from echo_plugin.boxes.metrics import (
    PRECISIONS,
    AveragePrecisions,
    FrameBoxes,
    average_precisions,
    best_overlaps,
    centre_distances,
    constant_answer,
)
from echo_plugin.cohort_facts import AGES, QUALITIES
from echo_plugin.geometry import FloatArray
from echo_plugin.metrics import Cohort
from echo_plugin.model_card import Metric

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
        "By age": _ranges(facts, "age_years", AGES),
        "By image quality": _ranges(facts, "image_quality", QUALITIES),
    }
    return [_table(title, members, frames) for title, members in groups.items()]


def _ranges(
    facts: Sequence[Facts], name: str, ranges: Sequence[tuple[str, float, float]]
) -> dict[str, NDArray[np.bool_]]:
    values = np.array([np.nan if f[name] is None else f[name] for f in facts], dtype=np.float64)
    return {words: (values >= low) & (values < high) for words, low, high in ranges}


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
        _words(cohort.from_samples(float(resampled[0]), resampled[1:])),
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
    return f"{_words(metric, digits=1)} {unit}"


def _words(metric: Metric, digits: int = 3) -> str:
    interval = "" if metric.low is None else f" [{metric.low:.{digits}f}, {metric.high:.{digits}f}]"
    return f"{metric.value:.{digits}f}{interval}"
