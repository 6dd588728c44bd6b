# SPDX-License-Identifier: Apache-2.0
"""The reproduced table of the ASD/VSD paper: its rows, its figures beside the paper's, and what they say in words.

Rows are compared on the same split of each seed. The splits of the seeds share patients, so that their differences are
no independent draws: intervals are those of the corrected resampled t-test.

References
----------
Nadeau and Bengio 2003, Inference for the Generalization Error, section 3: variance times (1/n + n_test/n_train).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtrit

from echo_plugin.durable import write_atomically
from echo_plugin.evaluate.defect_tables import PAPER
from echo_plugin.evaluate.report import markdown_table

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
    return "\n".join([*lines, markdown_table(head, body)]) + "\n"


def write_table(out: Path, title: str, report: Mapping[str, Any]) -> None:
    """Write ``title`` .json and .md to ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / f"{title}.json", json.dumps(report, indent=1).encode())
    write_atomically(out / f"{title}.md", describe(f"Defects: {title}", report).encode())


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


SWEEP_SCALES, SWEEP_MARGINS = (8.0, 16.0, 30.0, 64.0), (0.1, 0.2, 0.3, 0.4, 0.5)
PAPER_SETTING = "s 64, m 0.5 (the paper's)"
FACE_SIZE_PX = 112
"""The input that face-recognition weights were made for."""


@dataclass(frozen=True)
class Row:
    """One line of the table. ``options`` : what it changes of a training; None: no network, but HOG and an SVM."""

    name: str
    options: dict[str, Any] | None = field(default_factory=dict)

    @property
    def file(self) -> str:
        """Part of a file's name."""
        return "".join(letter if letter.isalnum() else "_" for letter in self.name.lower())


ARCFACE_AND_SOFTMAX = {
    "ImageNet": ("ArcFace, ImageNet", "softmax, ImageNet"),
    "random weights": ("ArcFace, random weights", "softmax, random weights"),
    "each wall, view encoder": ("each wall, ArcFace, view encoder", "each wall, softmax, view encoder"),
    "each wall, random weights": ("each wall, ArcFace, random weights", "each wall, softmax, random weights"),
}
"""Pairs of rows that differ in the loss alone: the paper compares it among networks that begin alike."""


def paper_rows(backbone: str = "resnet50", image_size: int | None = None) -> list[Row]:
    """Return the rows of the paper's table; each loss with ImageNet's weights and without any.

    ``backbone`` : of those that the paper trains as ResNet-50. ``image_size`` : px; None: the paper's 224.
    """
    paper: dict[str, Any] = {"recipe": "paper", "start": "scratch", "image_size": image_size}
    own, dense = paper | {"backbone": backbone}, paper | {"backbone": "densenet121", "head": "softmax"}
    softmax, imagenet = {"head": "softmax"}, {"start": "imagenet"}
    return [
        Row("ArcFace, face-pretrained", paper | {"backbone": "iresnet50", "start": "face", "image_size": FACE_SIZE_PX}),
        Row("ArcFace, ImageNet", own | imagenet),
        Row("softmax, ImageNet", own | softmax | imagenet),
        Row("ArcFace, random weights", own),
        Row("softmax, random weights", own | softmax),
        Row("DenseNet-121 softmax, ImageNet", dense | imagenet),
        Row("DenseNet-121 softmax, random weights", dense),
        Row("HOG + SVM", None),
    ]


def own_rows() -> list[Row]:
    """Return ours: a crop for each wall, with two losses and two beginnings."""
    return [
        Row("each wall, ArcFace, view encoder", {"start": "views"}),
        Row("each wall, softmax, view encoder", {"start": "views", "head": "softmax"}),
        Row("each wall, ArcFace, random weights", {"start": "scratch"}),
        Row("each wall, softmax, random weights", {"start": "scratch", "head": "softmax"}),
    ]


def more_rows() -> list[Row]:
    """Return other losses of ours, and both septa in one crop."""
    return [
        Row("each wall, CosFace, view encoder", {"start": "views", "head": "cosface"}),
        Row("each wall, SubCenter, view encoder", {"start": "views", "head": "subcenter"}),
        Row(
            "both in one, ArcFace, view encoder",
            {"start": "views", "cropping": "union", "image_size": 160},
        ),
    ]


def sweep_rows() -> list[Row]:
    """Return every s and m with crops of each wall, and the paper's s and m among them."""
    rows = [{"scale": s, "margin_rad": m, "start": "views"} for s in SWEEP_SCALES for m in SWEEP_MARGINS]
    names = [f"s {row['scale']:g}, m {row['margin_rad']:g}" for row in rows]
    return [
        Row(PAPER_SETTING if PAPER_SETTING.startswith(name) else name, row)
        for name, row in zip(names, rows, strict=True)
    ]


COMPARED = {
    "balanced_accuracy": "balanced accuracy of patients",
    "verification AUC (plain embeddings)": "verification AUC (plain embeddings, as in the paper)",
    "verification AUC (class probabilities)": "verification AUC (class probabilities)",
}
FEWEST_SEEDS = 3
"""Of fewer no difference is said to be shown; nor of equal ones: few test patients leave few steps to differ by."""

Outcomes = Sequence[Mapping[str, Any]]


def summarise_table(outcomes: Outcomes) -> dict[str, Any]:
    """Return the rows and the sentences of the table of networks and losses."""
    rows = tabulate(outcomes)
    classified, verified, *_ = COMPARED
    sentences = [best_of(rows, measure) for measure in (classified, verified)]
    sentences += [arcface_minus_softmax(outcomes, measure) for measure in COMPARED]
    return {"rows": rows, "sentences": [sentence for sentence in sentences if sentence]}


def summarise_sweep(outcomes: Outcomes) -> dict[str, Any]:
    """Return the rows, the least log loss of validation patients first, and the sentences of every s and m.

    Validation patients of one seed are test patients of another: test figures are of what each seed chose by its own.
    """
    rows = sorted(tabulate(outcomes), key=lambda row: row.get("validation_log_loss", [math.inf])[0])
    done = [row for row in rows if "validation_log_loss" in row]
    if not done:
        return {"rows": rows, "sentences": ["No row was run."]}
    loss = [f"{row['row']}, {in_words(row['validation_log_loss'])}" for row in done]
    sentence = f"Chosen by the log loss of validation patients, mean over seeds: {loss[0]}"
    places = [number for number, row in enumerate(done) if row["row"] == PAPER_SETTING]
    if places == [0]:
        return {"rows": rows, "sentences": [f"{sentence}."]}
    sentences = [f"{sentence}; {loss[place]}, is number {place + 1} of {len(done)}." for place in places]
    chosen = [*outcomes, *_chosen_by_each_seed(outcomes)]
    for measure, words in COMPARED.items() if places else ():
        difference = paired_difference(chosen, "chosen", PAPER_SETTING, measure)
        what = describe_difference(difference, "what was chosen", "the paper's")
        sentences.append(f"On test patients, each seed's choice minus {PAPER_SETTING}, {words}: {what}.")
    return {"rows": rows, "sentences": sentences or [f"{sentence}."]}


def best_of(rows: Sequence[Mapping[str, Any]], measure: str) -> str:
    """Return a sentence that names the best row by the mean of a figure; says so when nothing was run."""
    done = [row for row in rows if measure in row.get("figures", ())]
    if not done:
        return f"No row has a {COMPARED[measure]}."
    ranked = sorted(done, key=lambda row: -row["figures"][measure][0])
    best, low = ranked[0], ranked[0]["figures"][measure][1]
    sentence = (
        f"Best {COMPARED[measure]}: {best['row']}, {in_words(best['figures'][measure])}, of {len(done)} rows on the"
    )
    overlap = [row["row"] for row in ranked[1:] if row["figures"][measure][2] >= low]
    return f"{sentence} test patients themselves" + (f"; within its range: {'; '.join(overlap)}." if overlap else ".")


def arcface_minus_softmax(outcomes: Outcomes, measure: str) -> str:
    """Return a sentence on the pairs of rows that differ in the loss alone; empty if there are no such rows."""
    names = {outcome["row"] for outcome in outcomes}
    parts = []
    for beginning, (arcface, softmax) in ARCFACE_AND_SOFTMAX.items():
        if {arcface, softmax} <= names:
            difference = paired_difference(outcomes, arcface, softmax, measure)
            parts.append(f"{beginning}: {describe_difference(difference, 'ArcFace', 'softmax')}")
    return f"ArcFace minus softmax over seeds, {COMPARED[measure]}: {'; '.join(parts)}." if parts else ""


def paired_difference(outcomes: Outcomes, first: str, second: str, measure: str) -> dict[str, float] | None:
    """Return the mean of ``first`` minus ``second`` over the seeds that have both, and the seeds; None: none has.

    Of several seeds also the standard deviation, and the ends of the corrected 95 % interval.
    """
    values: dict[str, dict[int, float]] = {first: {}, second: {}}
    shares = []
    for outcome in outcomes:
        if outcome["row"] in values and measure in outcome.get("metrics", ()):
            values[outcome["row"]][outcome["seed"]] = outcome["metrics"][measure]["value"]
            shares.append(outcome["patients"]["test"] / outcome["patients"]["train"])
    seeds = sorted(values[first].keys() & values[second].keys())
    if not seeds:
        return None
    gains = np.array([values[first][seed] - values[second][seed] for seed in seeds])
    found = {"mean": float(gains.mean()), "seeds": len(seeds)}
    if len(seeds) == 1:
        return found
    deviation = float(gains.std(ddof=1))
    half = float(stdtrit(len(seeds) - 1, 0.975)) * deviation * math.sqrt(1 / len(seeds) + float(np.mean(shares)))
    return found | {"deviation": deviation, "low": found["mean"] - half, "high": found["mean"] + half}


def describe_difference(difference: Mapping[str, float] | None, first: str, second: str) -> str:
    """Return a paired difference in words, and which of the two it shows to be better, if it does."""
    if difference is None:
        return "not run"
    mean, seeds = difference["mean"], int(difference["seeds"])
    if seeds == 1:
        return f"{mean:+.3f} on one seed, not shown to differ"
    low, high = difference["low"], difference["high"]
    shown = "not shown to differ"
    if seeds >= FEWEST_SEEDS and difference["deviation"] > 1e-9 and (low > 0 or high < 0):
        shown = f"{first if low > 0 else second} is better"
    return f"{mean:+.3f} (SD {difference['deviation']:.3f}, 95 % {low:+.3f} to {high:+.3f}, {seeds} seeds), {shown}"


def _chosen_by_each_seed(outcomes: Outcomes) -> list[dict[str, Any]]:
    done = [outcome for outcome in outcomes if "validation_log_loss" in outcome]
    return [
        {**min((o for o in done if o["seed"] == seed), key=lambda o: o["validation_log_loss"]), "row": "chosen"}
        for seed in sorted({outcome["seed"] for outcome in done})
    ]
