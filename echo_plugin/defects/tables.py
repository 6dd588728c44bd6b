# SPDX-License-Identifier: Apache-2.0
"""Defect answers by age, view, what is shown, size, image quality and drop-out, and beside the paper's table.

Image quality and drop-out are known of phantoms only, from the phantom.csv of their folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echo_plugin.anatomy import Defect
from echo_plugin.cohort_facts import AGES, DAYS_OF_YEAR, QUALITIES
from echo_plugin.geometry import FloatArray
from echo_plugin.metrics import Cohort
from echo_plugin.model_card import Metric

DROPOUT_FROM = 0.25
"""A cine has drop-out when so much of the imaged interatrial septum sends nothing back."""

PAPER = {
    "accuracy": ("0.944", "0.889", "0.917"),
    "precision ASD": ("1.000", "0.875", "1.000"),
    "recall ASD": ("0.875", "0.875", "0.750"),
    "precision VSD": ("0.889", "0.778", "0.857"),
    "recall VSD": ("1.000", "0.875", "1.000"),
    "precision Normal": ("0.900", "1.000", "0.923"),
    "recall Normal": ("1.000", "0.917", "1.000"),
    "defect sensitivity": ("1.000", "0.875", "1.000"),
    "defect specificity": ("0.875", "0.958", "0.917"),
    "verification AUC (plain embeddings)": ("0.976", "0.930", "0.962"),
}
"""Table 1 of the ASD/VSD paper, 24 test patients: ArcFace from faces, softmax, ArcFace from ImageNet."""


@dataclass(frozen=True)
class AnsweredCine:
    """What is known of one measured cine; None: not known."""

    view: str | None
    defect: str
    age_days: int | None
    defect_size_mm: float | None
    image_quality: float | None
    septal_dropout: float | None
    is_visible: bool | None = None


def beside_paper(metrics: Mapping[str, Metric], several: int = 0) -> dict[str, Any]:
    """Return the table of the paper with ours and the constant answer in front.

    ``several`` : how many patients have cines of different defects, and are no patients of these figures.
    """
    rows = []
    for name, published in {**PAPER, "verification AUC (class probabilities)": ("–", "–", "–")}.items():
        key = name.removesuffix(" (class probabilities)")
        metric, patients = metrics.get(key), metrics.get(f"{key} (patients)")
        if metric is not None:
            constant = "–" if metric.baseline is None else f"{metric.baseline:.3f}"
            rows.append([name, words(metric), "–" if patients is None else words(patients), constant, *published])
    return {
        "title": "Beside the paper's table",
        "note": "The paper measured 24 patients of another hospital, and its counts contradict one another: it is"
        " a protocol to repeat, not digits to beat. It verified by embeddings; similar cases are found by class"
        " probabilities, which it has not."
        + (f" {several} patients with cines of different defects are measured by cine alone." if several else ""),
        "columns": ["measure", "cines", "patients", "constant answer", "paper: ArcFace, faces", "paper: softmax",
                    "paper: ArcFace, ImageNet"],
        "rows": rows,
    }  # fmt: skip


def tables_of_groups(
    cohort: Cohort, cines: Sequence[AnsweredCine], right: FloatArray, constant: FloatArray | None
) -> list[dict[str, Any]]:
    """Return accuracy by age, view, defect size and image quality; a table without known values says so.

    ``right`` : (N,) 1 where the answer is the truth. ``constant`` : the same for the constant answer; None: not known.
    """
    sizes = [("below 4 mm", 0.0, 4.0), ("4 to 8 mm", 4.0, 8.0), ("8 mm and more", 8.0, np.inf)]
    tables = [
        _ranges("By age", cines, lambda c: None if c.age_days is None else c.age_days / DAYS_OF_YEAR, AGES),
        (
            "By view",
            {view: np.array([c.view == view for c in cines]) for view in sorted({c.view or "" for c in cines})},
        ),
        ("By what the cine shows", _by_what_is_shown(cines)),
        _ranges("By defect size", cines, lambda c: c.defect_size_mm, sizes),
        _ranges("By image quality", cines, lambda c: c.image_quality, QUALITIES),
    ]
    return [_table(title, groups, cohort, right, constant) for title, groups in tables]


def _by_what_is_shown(cines: Sequence[AnsweredCine]) -> dict[str, NDArray[np.bool_]]:
    """Return which cines show the defect, which do not although the child has it, and which are of normal hearts."""
    if all(cine.is_visible is None for cine in cines):
        return {}
    return {
        "a defect in the picture": np.array([cine.is_visible is True for cine in cines]),
        "a defect outside the picture": np.array([cine.is_visible is False for cine in cines]),
        "a normal heart": np.array([cine.defect == Defect.NORMAL.value for cine in cines]),
    }


def _ranges(
    title: str,
    cines: Sequence[AnsweredCine],
    value: Callable[[AnsweredCine], float | None],
    ranges: Sequence[tuple[str, float, float]],
) -> tuple[str, dict[str, NDArray[np.bool_]]]:
    values = np.array([np.nan if (v := value(cine)) is None else v for cine in cines])
    return title, {name: (values >= low) & (values < high) for name, low, high in ranges}


def _table(
    title: str,
    groups: Mapping[str, NDArray[np.bool_]],
    cohort: Cohort,
    right: FloatArray,
    constant: FloatArray | None,
) -> dict[str, Any]:
    rows = []
    for name, place in groups.items():
        if place.any():
            baseline = None if constant is None else float(constant[place].mean())
            metric = cohort.of(place).mean(right[place], baseline)
            beside = "–" if baseline is None else f"{baseline:.3f}"
            rows.append([name, str(int(place.sum())), str(metric.patients), words(metric), beside])
    note = "" if rows else "Not known of these cines: only the phantom's own table (phantom.csv) or labels tell it."
    columns = ["group", "cines", "patients", "accuracy", "constant answer"]
    return {"title": title, "note": note, "columns": columns, "rows": rows}


def dropout_table(
    cohort: Cohort, cines: Sequence[AnsweredCine], answers: Sequence[str], normal: str
) -> tuple[dict[str, Any], dict[str, Metric]]:
    """Return how often hearts without a defect are called so, with and without drop-out, and the figures."""
    title = "Normal hearts with interatrial drop-out"
    columns = ["normal hearts", "cines", "patients", "called Normal", "called ASD"]
    shares = np.array([np.nan if c.septal_dropout is None else c.septal_dropout for c in cines])
    is_normal = np.array([cine.defect == normal for cine in cines])
    said = np.array(list(answers))
    rows, metrics = [], {}
    for name, place in (
        ("with drop-out", is_normal & (shares >= DROPOUT_FROM)),
        ("without", is_normal & (shares < DROPOUT_FROM)),
    ):
        if place.any():
            right = cohort.of(place).mean((said == normal)[place].astype(np.float64))
            wrong = cohort.of(place).mean((said == "ASD")[place].astype(np.float64))
            rows.append([name, str(int(place.sum())), str(right.patients), words(right), words(wrong)])
            metrics[f"called Normal, {name} of the interatrial septum" if name == "with drop-out" else
                    "called Normal, without drop-out"] = right  # fmt: skip
    note = (
        f"Drop-out: at least {DROPOUT_FROM:.0%} of the imaged interatrial septum sends nothing back, the classic"
        " false ASD of the four-chamber view."
    )
    if not np.isfinite(shares).any():
        note = "Not measured: drop-out is known of phantoms only, and this folder has no phantom.csv that tells it."
    return {"title": title, "note": note, "columns": columns, "rows": rows}, metrics


def words(metric: Metric) -> str:
    """Return a figure with its interval, such as ``0.91 [0.85, 0.96]``; a dash where it is undefined."""
    if not np.isfinite(metric.value):
        return "–"
    if metric.low is None or metric.high is None:
        return f"{metric.value:.3f}"
    return f"{metric.value:.3f} [{metric.low:.3f}, {metric.high:.3f}]"
