# SPDX-License-Identifier: Apache-2.0
"""The report of an evaluation: report.json for programs, report.html with pictures for people, Markdown for the manual.

Also what the pictures of several evaluations have in common: curves, confusion, frames, where the model was most wrong.
"""

from __future__ import annotations

import base64
import io
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from echo_plugin.anatomy import DETECTED_SEPTA
from echo_plugin.annotations import DefectPrediction
from echo_plugin.answer.preprocess import crop_square, to_model_input
from echo_plugin.cine import ByteArray, Cine
from echo_plugin.durable import write_atomically
from echo_plugin.evaluate.held_out import HeldOut
from echo_plugin.geometry import FloatArray
from echo_plugin.io.sector import tissue_region
from echo_plugin.measure.boxes import FrameBoxes, best_overlaps, froc, matched_boxes, precision_recall

TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ report.title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b1b1f }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .3rem .8rem; border-bottom: 1px solid #ccc }
img { max-width: 100% }
.warning { background: #fff3cd; padding: .6rem 1rem; border-left: 4px solid #b8860b }
</style></head><body>
<h1>{{ report.title }}</h1>
{% if report.on_phantoms %}<p class="warning">{{ on_phantoms }}</p>{% endif %}
{% for table in tables %}<h2>{{ table.title }}</h2>{% if table.note %}<p>{{ table.note }}</p>{% endif %}
{% if table.rows %}<table><thead><tr>{% for name in table.columns %}<th>{{ name }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in table.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table>{% endif %}
{% endfor %}
{% for plot in report.plots %}<h2>{{ plot.title }}</h2><p><img src="{{ images[plot.file] }}" alt="{{ plot.title }}"></p>
{% endfor %}
</body></html>
"""
ON_PHANTOMS = "Results on phantoms: synthetic cines. They say nothing about patients."

COLOURS = ("#35b6ff", "#ffb000")
"""Of the septa, in class-id order; told apart by colour-blind eyes, and by line style from the truth."""


@dataclass(frozen=True)
class Picture:
    """A frame to show: ``pixels`` (S, S) uint8, what is true, what was answered, and a line about it."""

    pixels: ByteArray
    truth: FrameBoxes | None
    answer: FrameBoxes | None
    title: str


def write_report(out: Path, report: Mapping[str, Any], figures: Mapping[str, Figure], *, title: str) -> dict[str, Any]:
    """Write report.json, report.html and a PNG for each figure (by title) to ``out``; return the report with its plots.

    ``report["tables"]``, where there are some, are ``{"title", "note", "columns", "rows"}`` with cells of text. Each
    file appears whole; report.json last.
    """
    out.mkdir(parents=True, exist_ok=True)
    plots, images = [], {}
    for name, figure in figures.items():
        file = f"{name.lower().replace(' ', '_')}.png"
        FigureCanvasAgg(figure)
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=110, bbox_inches="tight")
        write_atomically(out / file, png.getvalue())
        images[file] = f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"
        plots.append({"title": name, "file": file})
    made = {"title": title, "date": datetime.now(UTC).date().isoformat(), "machine": describe_machine()}
    complete = {**made, "tables": [], **report, "plots": plots}
    page = Environment(autoescape=True).from_string(TEMPLATE)
    html = page.render(report=complete, on_phantoms=ON_PHANTOMS, tables=_tables(complete), images=images)
    write_atomically(out / "report.html", html.encode())
    write_atomically(out / "report.json", (json.dumps(complete, indent=1, allow_nan=False) + "\n").encode())
    return complete


def describe_machine() -> str:
    """Return the processor and how many of its cores this process may use, such as ``Intel Xeon, 2 cores``."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # neither Windows nor macOS has it
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = models[0] if models else platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} core{'' if cores == 1 else 's'}"


def _tables(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return all that a report says in words: how it was made, every figure, and its tables of groups."""
    model = report["model"]
    version = f"{model['name']} {model['version']}, trained on {model['trained_on']}"
    patients = f"{report['patients']} patients, {report['cines']} cines: {report['split']}"
    rows = [
        ["command", report["command"]],
        ["date", report["date"]],
        ["machine", report["machine"]],
        ["model", version],
        ["measured on", f"{patients} ({report['patients_left_out']} patients of the folder were, and are left out)"],
        ["intervals", f"95 %, bootstrap over patients, seed {report['seed']}"],
    ]
    figures = []
    for name, metric in report["metrics"].items():
        low, baseline = metric["low"], metric["baseline"]
        interval = "–" if low is None else f"{low:.3f} to {metric['high']:.3f}"
        constant = "–" if baseline is None else f"{baseline:.3f}"
        figures.append([name, f"{metric['value']:.3f}", interval, constant, str(metric["patients"])])
    columns = ["measure", "value", "95 % interval", "constant answer", "patients"]
    return [
        {"title": "How it was measured", "note": "", "columns": ["what", "value"], "rows": rows},
        {"title": "Figures", "note": "", "columns": columns, "rows": figures},
        *report["tables"],
    ]


def render_markdown(report: Mapping[str, Any]) -> str:
    """Return a report, as report.json has it, as one page of Markdown without pictures."""
    lines = [f"# {report['title']}", "", "Research only, not for clinical use."]
    if report["on_phantoms"]:
        lines[-1] += f" {ON_PHANTOMS}"
    for table in _tables(report):
        lines += ["", f"## {table['title']}", ""]
        lines += [table["note"], ""] if table["note"] else []
        if table["rows"]:
            lines.append(markdown_table(table["columns"], table["rows"]))
    return "\n".join(lines).rstrip() + "\n"


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of texts in Markdown, without an end of line."""
    head, *body = ("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (columns, *rows))
    return "\n".join([head, "|" + "---|" * len(columns), *body])


def draw_confusion(confusion: FloatArray, classes: Sequence[str]) -> Figure:
    """Return counts with rows of truth, shaded by the share of the row."""
    size = 2.5 + 0.45 * len(classes)
    figure = Figure(figsize=(size + 1, size))
    axes = figure.subplots()
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(classes)), classes, rotation=90)
    axes.set_yticks(range(len(classes)), classes)
    axes.set_xlabel("answer")
    axes.set_ylabel("truth")
    for row, column in np.argwhere(confusion > 0):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, f"{confusion[row, column]:.0f}", ha="center", va="center", color=colour, fontsize=8)
    return figure


def draw_curves(curves: Mapping[str, tuple[FloatArray, FloatArray]], x: str, y: str) -> Figure:
    """Return one line for each name; curves are (x values, y values) in 0..1."""
    figure = Figure(figsize=(5, 4))
    axes = figure.subplots()
    for name, (xs, ys) in curves.items():
        axes.plot(xs, ys, label=name)
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    if curves:
        axes.legend()
    return figure


def draw_pictures(pictures: Sequence[Picture], columns: int = 4) -> Figure:
    """Return frames with true boxes dashed and answers solid."""
    rows = max(-(-len(pictures) // columns), 1)
    figure = Figure(figsize=(3 * columns, 3.3 * rows))
    for axes, picture in zip(figure.subplots(rows, columns, squeeze=False).ravel(), pictures, strict=False):
        axes.imshow(picture.pixels, cmap="gray", vmin=0, vmax=255)
        axes.set_title(picture.title, fontsize=8)
        for boxes, style in ((picture.truth, "--"), (picture.answer, "-")):
            _draw_boxes(axes, boxes, style)
    for axes in figure.axes:
        axes.set_axis_off()
    return figure


def _draw_boxes(axes: Any, boxes: FrameBoxes | None, style: str) -> None:
    if boxes is None:
        return
    for (x1, y1, x2, y2), label in zip(boxes.boxes - 0.5, boxes.labels, strict=True):  # imshow counts pixel centres
        colour = COLOURS[int(label) % len(DETECTED_SEPTA)]
        axes.add_patch(
            Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linestyle=style, linewidth=1.5)
        )


WORST = 8
THUMBNAIL_PX = 192
FOUND_FROM = 0.3


def surest(answer: FrameBoxes) -> FrameBoxes:
    """Return the best box of each septum, where it is sure enough to be shown."""
    keep = []
    for label in range(len(DETECTED_SEPTA)):
        places = np.flatnonzero((answer.labels == label) & (answer.scores >= FOUND_FROM))
        keep += [int(places[answer.scores[places].argmax()])] if len(places) else []
    return FrameBoxes(answer.boxes[keep], answer.labels[keep], answer.scores[keep])


Curves = dict[str, tuple[FloatArray, FloatArray]]
"""By septum the x and y values, as the score threshold falls."""


def recall_curves(answers: Sequence[FrameBoxes], truths: Sequence[FrameBoxes]) -> Curves:
    """Return (recall, precision)."""
    curves = {}
    for label, septum in enumerate(DETECTED_SEPTA):
        precision, recall = precision_recall(matched_boxes(answers, truths, label), np.ones((1, len(truths))))
        curves[septum.value] = (recall[0], precision[0])
    return curves


def froc_curves(answers: Sequence[FrameBoxes], truths: Sequence[FrameBoxes]) -> Curves:
    """Return (false boxes per frame, sensitivity)."""
    curves = {}
    for label, septum in enumerate(DETECTED_SEPTA):
        false, sensitivity = froc(matched_boxes(answers, truths, label), np.ones((1, len(truths))))
        curves[septum.value] = (false[0], sensitivity[0])
    return curves


def worst_overlaps(answers: Sequence[FrameBoxes], truths: Sequence[FrameBoxes]) -> list[tuple[int, float]]:
    """Return the places of the frames whose surest boxes lie worst, and their IoU, worst first."""
    overlaps = np.stack([best_overlaps(answers, truths, label) for label in range(len(DETECTED_SEPTA))])
    lowest = np.where(np.isfinite(overlaps), overlaps, np.inf).min(axis=0)
    return [(int(i), float(lowest[i])) for i in np.argsort(lowest)[:WORST] if np.isfinite(lowest[i])]


def worst_cines(
    chosen: HeldOut, probabilities: FloatArray, truth: NDArray[np.int_], classes: Sequence[str]
) -> list[Picture]:
    """Return a middle frame of the cines whose true class got the least probability."""
    pictures = []
    right = probabilities[np.arange(len(truth)), truth]
    for i in np.argsort(right)[:WORST]:
        cine = chosen.labelled.folder.read_cine(chosen.cines[i].image_id)
        pixels, _ = to_model_input(cine, [cine.frame_count // 2], THUMBNAIL_PX)
        said = classes[int(probabilities[i].argmax())]
        title = f"{chosen.cines[i].image_id[-16:]}\n{classes[truth[i]]}: {right[i]:.2f}, said {said}"
        pictures.append(Picture(pixels[0].numpy(), None, None, title))
    return pictures


def embedded_picture(cine: Cine, defect: DefectPrediction, size_px: int) -> ByteArray:
    """Return (S, S) uint8: what was embedded of one frame, or the middle frame where no septum was found."""
    if not defect.crops:
        pixels: ByteArray = to_model_input(cine, [cine.frame_count // 2], size_px)[0][0].numpy()
        return pixels
    box = max(defect.crops, key=lambda crop: crop.score or 0.0)
    frame = cine.read_frames([box.frame_index])[0]
    square = (box.x1, box.y1, box.x2, box.y2)
    crop: ByteArray = crop_square(frame, square, size_px, region=tissue_region(cine)).numpy()  # no burned-in text
    return crop
