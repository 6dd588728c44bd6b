# SPDX-License-Identifier: Apache-2.0
"""What an evaluation of defects shows: verification curve, embeddings, calibration, coverage, retrieved cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from echo_plugin.cine import ByteArray
from echo_plugin.defects.verification import neighbours
from echo_plugin.geometry import FloatArray
from echo_plugin.metrics import CONFIDENCE_BINS

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
