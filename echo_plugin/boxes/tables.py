# SPDX-License-Identifier: Apache-2.0
"""Septal boxes by view, age and image quality, each group with its interval and beside the constant answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echo_plugin.anatomy import DETECTED_SEPTA
from echo_plugin.boxes.metrics import FrameBoxes, PrecisionOverLabels, best_overlaps, constant_answer
from echo_plugin.cohort_facts import AGES, QUALITIES
from echo_plugin.geometry import FloatArray
from echo_plugin.metrics import Cohort
from echo_plugin.model_card import Metric

COLUMNS = (
    "group", "frames", "patients", "AP50", "constant answer",
    *(f"{words} {s.value}" for words in ("AP50 (boxes)", "mean IoU") for s in DETECTED_SEPTA),
)  # fmt: skip

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
            Cohort(tuple(self.cohort.patients[i] for i in chosen), self.cohort.split, self.cohort.seed),
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
    truths, cohort = frames.truths, frames.cohort
    present = [k for k in range(len(DETECTED_SEPTA)) if any(len(truth.of(k)[0]) for truth in truths)]
    precision, constant = "no septum", "–"
    if present:
        measure = PrecisionOverLabels(frames.answers, truths, present, [0.5])
        precision = _words(cohort.metric(lambda w: measure(w[:, cohort.index])))
        if frames.medians is not None:
            same = [constant_answer(frames.medians)] * len(truths)
            constant = f"{PrecisionOverLabels(same, truths, present, [0.5]).plain:.3f}"
    each = [_of_septum(frames, k) if k in present else "–" for k in range(len(DETECTED_SEPTA))]
    overlaps = [best_overlaps(frames.answers, truths, k) for k in range(len(DETECTED_SEPTA))]
    means = [f"{np.nanmean(o):.3f}" if np.isfinite(o).any() else "–" for o in overlaps]
    return [name, str(len(truths)), str(cohort.count), precision, constant, *each, *means]


def _of_septum(frames: MeasuredFrames, label: int) -> str:
    """Return AP50 of one septum and the count of its boxes: in the mean a wall that a view seldom shows weighs much."""
    boxes = sum(len(truth.of(label)[0]) for truth in frames.truths)
    return f"{PrecisionOverLabels(frames.answers, frames.truths, [label], [0.5]).plain:.3f} ({boxes})"


def _words(metric: Metric) -> str:
    interval = "" if metric.low is None else f" [{metric.low:.3f}, {metric.high:.3f}]"
    return f"{metric.value:.3f}{interval}"
