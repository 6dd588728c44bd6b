# SPDX-License-Identifier: Apache-2.0
"""The neonatal-view paper's table: its rows, its figures, and the same from our runs beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echo_plugin.geometry import FloatArray
from echo_plugin.metrics import Cohort
from echo_plugin.views.report import view_metrics

MEASURES = ("accuracy", "macro_precision", "balanced_accuracy", "macro_f1")
"""Accuracy, precision, recall and F1 of the paper; its precision, recall and F1 are means over the views."""


@dataclass(frozen=True)
class Row:
    """A line of the table: how frames are joined, which ones, and the paper's percentages in the order of MEASURES."""

    name: str
    pooling: str
    sampling: str
    paper: tuple[float, float, float, float] | None = None

    @property
    def file(self) -> str:
        """Part of a file's name."""
        return f"{self.pooling}-{self.sampling}"


ROWS = (
    Row("image classifier", "image", "consecutive", (89.55, 88.99, 89.55, 89.20)),
    Row("mean of 4 consecutive", "mean", "consecutive", (89.73, 90.66, 89.73, 90.01)),
    Row("mean of 4 spaced", "mean", "spaced", (89.99, 90.95, 89.99, 90.27)),
    Row("GRU, 4 consecutive", "gru", "consecutive", (88.46, 88.84, 88.46, 88.44)),
    Row("GRU, 4 spaced", "gru", "spaced"),
    Row("attention, 4 consecutive", "attention", "consecutive", (92.13, 92.14, 91.36, 91.19)),
    Row("attention, 4 spaced", "attention", "spaced"),
    Row("GRU + weaving, 4 spaced", "weave", "spaced", (92.55, 92.72, 92.55, 92.51)),
    Row("GRU + weaving, 4 consecutive", "weave", "consecutive", (93.88, 93.65, 93.88, 93.73)),
)
COMPARISONS = (
    ("weaving over plain GRU, consecutive", "GRU + weaving, 4 consecutive", "GRU, 4 consecutive"),
    ("weaving over plain GRU, spaced", "GRU + weaving, 4 spaced", "GRU, 4 spaced"),
    ("weaving over attention, consecutive", "GRU + weaving, 4 consecutive", "attention, 4 consecutive"),
    ("weaving, consecutive, over the image classifier", "GRU + weaving, 4 consecutive", "image classifier"),
    ("weaving, spaced, over the image classifier", "GRU + weaving, 4 spaced", "image classifier"),
    ("consecutive over spaced, with weaving", "GRU + weaving, 4 consecutive", "GRU + weaving, 4 spaced"),
)


def tabulate(
    results: Mapping[str, Sequence[Mapping[str, Any]]], owners: Sequence[str], classes: Sequence[str], split: str
) -> dict[str, Any]:
    """Return the rows with intervals over all units, and the paired differences between them; JSON-ready.

    ``owners`` : the patient of each cine that ``cines`` of an outcome counts.
    """
    rows = []
    for row in ROWS:
        each = results[row.name]
        cohort, truth, probabilities = _pooled(each, owners, split)
        metrics = view_metrics(cohort, truth, probabilities, classes, None)
        wanted = {name: dataclasses.asdict(metrics[name]) for name in metrics if name in MEASURES or "confused" in name}
        of_units = [float((np.array(o["probabilities"]).argmax(1) == np.array(o["truth"])).mean()) for o in each]
        rows.append({"name": row.name, "paper_percent": row.paper, "metrics": wanted, "accuracy_of_units": of_units})
    differences = []
    for name, better, worse in COMPARISONS:
        cohort, truth, one = _pooled(results[better], owners, split)
        _, _, other = _pooled(results[worse], owners, split)
        gain = (one.argmax(1) == truth).astype(float) - (other.argmax(1) == truth)
        metric = cohort.mean(gain)
        differences.append({"name": name, **dataclasses.asdict(metric), "verdict": verdict(metric.low, metric.high)})
    return {"rows": rows, "differences": differences}


def verdict(low: float | None, high: float | None) -> str:
    """Return in a word what an interval of a difference in accuracy shows."""
    if low is None or high is None or low <= 0 <= high:
        return "not shown"
    return "helps" if low > 0 else "hurts"


def _pooled(
    outcomes: Sequence[Mapping[str, Any]], owners: Sequence[str], split: str
) -> tuple[Cohort, NDArray[np.int_], FloatArray]:
    truth = np.concatenate([np.array(o["truth"], dtype=int) for o in outcomes])
    probabilities = np.concatenate([np.array(o["probabilities"], dtype=float) for o in outcomes])
    patients = tuple(owners[i] for o in outcomes for i in o["cines"])
    return Cohort(patients, split), truth, probabilities


def describe(report: Mapping[str, Any]) -> str:
    """Return the table beside the paper's, in Markdown."""
    kind = "phantoms (synthetic; they say nothing about patients)" if report["on_phantoms"] else "patients"
    lines = [
        f"{report['patients']} {kind}, {report['cines']} cines, {len(report['units'])} units, {report['backbone']},"
        f" begun with {report['begun_with']}, {report['epochs'] or 'default'} epochs; percent, 95 % intervals by"
        " resampling patients.",
        "",
        "| model | accuracy | precision | recall | F1 | confused PSAX-MV / PSAX-PM | paper (accuracy/P/R/F1) |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        metrics = row["metrics"]
        cells = [_percent(metrics[name]) for name in MEASURES]
        pair = [_percent(m) for name, m in metrics.items() if "confused" in name] or ["–"]
        paper = "/".join(f"{value:.2f}" for value in row["paper_percent"]) if row["paper_percent"] else "–"
        lines.append(f"| {row['name']} | {' | '.join([*cells, *pair, paper])} |")
    lines += ["", "| difference in accuracy, same cines | points | |", "|---|---|---|"]
    lines += [f"| {d['name']} | {_percent(d)} | {d['verdict']} |" for d in report["differences"]]
    return "\n".join(lines) + "\n"


def _percent(metric: Mapping[str, Any]) -> str:
    value = f"{100 * metric['value']:.1f}"
    return value if metric["low"] is None else f"{value} [{100 * metric['low']:.1f}, {100 * metric['high']:.1f}]"
