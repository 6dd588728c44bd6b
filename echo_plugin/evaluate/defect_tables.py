# SPDX-License-Identifier: Apache-2.0
"""What a report on defects shows: tables by group and beside the paper's, and the figures drawn.

Image quality and drop-out are known of phantoms only, from the phantom.csv of their folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from echo_plugin.anatomy import Defect
from echo_plugin.cine import ByteArray
from echo_plugin.evaluate.held_out import AGES, DAYS_OF_YEAR, QUALITIES, in_ranges, metric_words
from echo_plugin.geometry import FloatArray
from echo_plugin.measure.classes import CONFIDENCE_BINS, Cohort
from echo_plugin.measure.verification import neighbours
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
            of_patients = "–" if patients is None else metric_words(patients)
            rows.append([name, metric_words(metric), of_patients, constant, *published])
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
        ("By age", in_ranges([None if c.age_days is None else c.age_days / DAYS_OF_YEAR for c in cines], AGES)),
        (
            "By view",
            {view: np.array([c.view == view for c in cines]) for view in sorted({c.view or "" for c in cines})},
        ),
        ("By what the cine shows", _by_what_is_shown(cines)),
        ("By defect size", in_ranges([c.defect_size_mm for c in cines], sizes)),
        ("By image quality", in_ranges([c.image_quality for c in cines], QUALITIES)),
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
            rows.append([name, str(int(place.sum())), str(metric.patients), metric_words(metric), beside])
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
            rows.append([name, str(int(place.sum())), str(right.patients), metric_words(right), metric_words(wrong)])
            metrics[f"called Normal, {name} of the interatrial septum" if name == "with drop-out" else
                    "called Normal, without drop-out"] = right  # fmt: skip
    note = (
        f"Drop-out: at least {DROPOUT_FROM:.0%} of the imaged interatrial septum sends nothing back, the classic"
        " false ASD of the four-chamber view."
    )
    if not np.isfinite(shares).any():
        note = "Not measured: drop-out is known of phantoms only, and this folder has no phantom.csv that tells it."
    return {"title": title, "note": note, "columns": columns, "rows": rows}, metrics


COLOURS = ("#1b9e77", "#d95f02", "#7570b3", "#e7298a", "#66a61e", "#e6ab02", "#a6761d")
MARKERS = "osD^vP*"
"""By class id; colours and shapes that colour-blind eyes tell apart."""
FEWEST_EMBEDDED = 8
"""With fewer points t-SNE arranges nothing."""
QUERIES, FOUND = 6, 5


def draw_acceptance(band: Mapping[str, FloatArray], words: str) -> Figure:
    """Return TAR over FAR with its 95 % band, and the line of chance; ``words`` go into the legend."""
    figure = Figure(figsize=(5, 4.5))
    axes = figure.subplots()
    axes.fill_between(band["far"], band["low"], band["high"], alpha=0.25, label="95 % CI, by patients", linewidth=0)
    axes.plot(band["far"], band["tar"], label=words)
    axes.plot([0, 1], [0, 1], linestyle=":", color="grey", label="chance")
    axes.set_xlabel("pairs of different defects called the same (FAR)")
    axes.set_ylabel("pairs of one defect called the same (TAR)")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)
    return figure


def draw_embeddings(
    embeddings: FloatArray, class_ids: NDArray[np.int_], classes: Sequence[str], seed: int
) -> Figure | None:
    """Return the (N, D) embeddings laid out by t-SNE, a mark for each cine by its true class; None: too few."""
    if len(embeddings) < FEWEST_EMBEDDED:
        return None
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(embeddings) - 1) / 3)
    layout = TSNE(perplexity=perplexity, metric="cosine", init="random", random_state=seed).fit_transform(embeddings)
    figure = Figure(figsize=(5.5, 5))
    axes = figure.subplots()
    for k, name in enumerate(classes):
        x, y = layout[class_ids == k].T
        colour, marker = COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)]
        axes.scatter(x, y, s=18, label=name, alpha=0.8, linewidths=0, color=colour, marker=marker)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel(f"t-SNE of cosine distances, perplexity {perplexity:.0f}; one mark a cine, by its true defect")
    axes.legend()
    return figure


def draw_reliability(rows: FloatArray, ece: float, brier: float) -> Figure:
    """Return accuracy over confidence by bin; ``rows`` (B, 3) from ``metrics.reliability``."""
    figure = Figure(figsize=(5, 4.5))
    axes = figure.subplots()
    confidence, accuracy, counts = rows.T
    axes.plot([0, 1], [0, 1], linestyle=":", color="grey", label="calibrated")
    axes.bar(confidence, accuracy, width=0.8 / CONFIDENCE_BINS, alpha=0.4)
    axes.plot(confidence, accuracy, marker="o", label=f"ECE {ece:.3f}, Brier {brier:.3f}")
    for x, y, count in zip(confidence, accuracy, counts, strict=True):
        axes.annotate(f"{count:.0f}", (x, y), textcoords="offset points", xytext=(4, 4), fontsize=7)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.05)
    axes.set_xlabel("confidence (probability of the answer)")
    axes.set_ylabel("share of right answers; numbers: cines")
    axes.legend(loc="upper left")
    return figure


def draw_coverage(
    coverage: FloatArray, accuracy: FloatArray, constant: float | None, abstaining: tuple[float, float] | None
) -> Figure:
    """Return accuracy over the share of cines that are answered, the surest first.

    ``constant`` : accuracy of the constant answer. ``abstaining`` : (coverage, accuracy) where the model itself stops.
    """
    figure = Figure(figsize=(5, 4))
    axes = figure.subplots()
    axes.plot(coverage, accuracy, label="surest answers first")
    if constant is not None:
        axes.axhline(constant, linestyle=":", color="grey", label="constant answer")
    if abstaining is not None:
        axes.plot(*abstaining, marker="o", linestyle="none", label="the model's own abstention")
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.05)
    axes.set_xlabel("coverage (share of cines that get an answer)")
    axes.set_ylabel("accuracy of the answers")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    return figure


def draw_retrieved(
    thumbnails: Sequence[ByteArray],
    embeddings: FloatArray,
    class_ids: NDArray[np.int_],
    patients: Sequence[str],
    classes: Sequence[str],
) -> Figure:
    """Return rows of a cine and the most similar ones of other patients, framed green where the defect is the same.

    ``thumbnails`` : a (S, S) uint8 crop of each cine.
    """
    queries = _spread(class_ids)
    figure = Figure(figsize=(2.1 * (FOUND + 1), 2.4 * max(len(queries), 1)))
    for row, place in zip(figure.subplots(len(queries), FOUND + 1, squeeze=False), queries, strict=True):
        for axes in row:
            axes.set_xticks([])
            axes.set_yticks([])
        _show(row[0], thumbnails[place], f"asked: {classes[class_ids[place]]}", "black")
        others = neighbours(embeddings, patients, place)[:FOUND]
        for axes, other in zip(row[1:], others, strict=False):
            colour = "#2ca02c" if class_ids[other] == class_ids[place] else "#d62728"
            similarity = float(embeddings[place] @ embeddings[other])
            _show(axes, thumbnails[other], f"{classes[class_ids[other]]} {similarity:z.2f}", colour)
        for axes in row[1 + len(others) :]:
            axes.set_axis_off()
    return figure


def _spread(class_ids: NDArray[np.int_]) -> list[int]:
    """Return up to ``QUERIES`` places, the classes in turn, evenly spread over each."""
    present = sorted(set(class_ids.tolist()))
    each = max(QUERIES // max(len(present), 1), 1)
    chosen = []
    for k in present:
        places = np.flatnonzero(class_ids == k)
        chosen += places[np.unique(np.linspace(0, len(places) - 1, each).round().astype(int))].tolist()
    return chosen


def _show(axes: Any, pixels: ByteArray, title: str, colour: str) -> None:
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255)
    axes.set_title(title, fontsize=9, color=colour)
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=2)
