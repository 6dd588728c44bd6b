# SPDX-License-Identifier: Apache-2.0
"""The reproduced table of the ASD/VSD paper beside the paper's own, as JSON, Markdown and HTML."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment

from echo_plugin.defects.tables import PAPER
from echo_plugin.models.durable_file import write_synced

MEASURES = (
    "accuracy",
    "balanced_accuracy",
    "precision ASD",
    "recall ASD",
    "precision VSD",
    "recall VSD",
    "precision Normal",
    "recall Normal",
    "defect sensitivity",
    "defect specificity",
    "verification AUC (plain embeddings)",
    "verification EER (plain embeddings)",
    "verification AUC (class probabilities)",
    "verification EER (class probabilities)",
)
VALIDATION = "validation log loss"
PAPER_NAMES = ("ArcFace, face-pretrained", "softmax", "ArcFace, ImageNet")
PAPER_ROWS = {
    name: {measure: float(values[place]) for measure, values in PAPER.items()} for place, name in enumerate(PAPER_NAMES)
}
"""Of the paper: 24 test patients, not phantoms."""

TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title><style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem; color: #1b1b1f } table { border-collapse: collapse }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #ccc; text-align: left } td.n { text-align: right }
.warning { background: #fff3cd; padding: .6rem 1rem; border-left: 4px solid #b8860b }
</style></head><body><h1>{{ title }}</h1>
{% if on_phantoms %}<p class="warning">Results on phantoms: synthetic cines. They say nothing about patients, and the
paper's rows are of patients: compare the order of the rows, not their digits.</p>{% endif %}
<ul>{% for sentence in notes %}<li>{{ sentence }}</li>
{% endfor %}</ul>
<table><thead><tr>{% for cell in head %}<th>{{ cell }}</th>{% endfor %}</tr></thead><tbody>
{% for row in body %}<tr>{% for cell in row %}<td{% if not loop.first %} class="n"{% endif %}>{{ cell }}</td>
{% endfor %}</tr>
{% endfor %}</tbody></table></body></html>
"""


def tabulate(outcomes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one entry per row: the mean, least and largest of every figure over the seeds; or why it was not run."""
    rows = []
    for name in dict.fromkeys(outcome["row"] for outcome in outcomes):
        own = [outcome for outcome in outcomes if outcome["row"] == name]
        done = [outcome for outcome in own if "metrics" in outcome]
        if not done:
            rows.append({"row": name, "not_run": own[-1]["not_run"]})
            continue
        values = {
            measure: [o["metrics"][measure]["value"] for o in done if measure in o["metrics"]] for measure in MEASURES
        }
        rows.append(
            {
                "row": name,
                "network": done[0].get(
                    "network", "histograms of gradients, linear SVM, union; learns from the validation patients too"
                ),
                "seeds": len(done),
                "patients": done[0]["patients"],
                "wall_time_s": round(sum(o["wall_time_s"] for o in done), 1),
                "figures": {m: _range(v) for m, v in values.items() if v},
            }
        )
        if chosen_by := [o["validation_log_loss"] for o in done if "validation_log_loss" in o]:
            rows[-1]["validation_log_loss"] = _range(chosen_by)
    return rows


def describe(title: str, report: Mapping[str, Any]) -> str:
    """Return the table beside the paper's, in Markdown."""
    head, body = _cells(report)
    lines = [f"# {title}", "", *(f"* {sentence}" for sentence in _notes(report)), ""]
    lines += [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(row)} |" for row in body]
    return "\n".join(lines) + "\n"


def write_table(out: Path, title: str, report: Mapping[str, Any]) -> None:
    """Write ``title`` .json, .md and .html to ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    head, body = _cells(report)
    template = Environment(autoescape=True).from_string(TEMPLATE)
    page = template.render(
        title=f"Defects: {title}", on_phantoms=report["on_phantoms"], notes=_notes(report), head=head, body=body
    )
    write_synced(out / f"{title}.json", json.dumps(report, indent=1).encode())
    write_synced(out / f"{title}.md", describe(f"Defects: {title}", report).encode())
    write_synced(out / f"{title}.html", page.encode())


def _notes(report: Mapping[str, Any]) -> list[str]:
    what = "phantoms" if report["on_phantoms"] else "patients"
    return [
        f"By patient, on {what}{_parts(report)}: mean over {report['seeds']} seeds (least to largest), each with a"
        " split of its own; a precision is of the seeds in which that class was answered.",
        "Verification is between cines of different patients: by their plain embeddings, as in the paper, and by class"
        " probabilities, by which similar cases are found; of these the paper says nothing.",
        "Rows of the paper's recipe have its network, loss and optimiser; batches and augmentation are ours.",
        "Validation log loss: of patients, mean over their classes; the less, the better.",
        *report["sentences"],
        f"Cost of the rows, what they had learned before they were stopped included: {report['cost_s'] / 60:.1f}"
        " minutes of wall time.",
    ]


def _parts(report: Mapping[str, Any]) -> str:
    counts = [row["patients"] for row in report["rows"] if "patients" in row][:1]
    return "".join(f" ({c['train']} to learn from, {c['validation']} to validate, {c['test']} to test)" for c in counts)


def _cells(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    head = ["row", "network", *MEASURES, VALIDATION, "minutes"]
    body = []
    for row in report["rows"]:
        if "not_run" in row:
            body.append([row["row"], f"not run: {row['not_run']}", *("" for _ in range(len(MEASURES) + 2))])
            continue
        figures = [in_words(row["figures"].get(measure)) for measure in MEASURES]
        validation = in_words(row.get("validation_log_loss"))
        body.append([row["row"], row["network"], *figures, validation, f"{row['wall_time_s'] / 60:.1f}"])
    for name, values in report["paper"].items():
        cells = [f"{values[m]:.3f}" if m in values else "" for m in MEASURES]
        body.append([f"paper: {name}", "24 patients, not phantoms", *cells, "", ""])
    return head, body


def in_words(values: Sequence[float] | None) -> str:
    """Return a mean with its least and largest, such as ``0.910 (0.850 to 0.960)``; empty where there is none."""
    return "" if values is None else f"{values[0]:.3f} ({values[1]:.3f} to {values[2]:.3f})"


def _range(values: Sequence[float]) -> list[float]:
    return [float(np.mean(values)), min(values), max(values)]
