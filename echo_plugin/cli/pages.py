# SPDX-License-Identifier: Apache-2.0
"""Pages for people, in Markdown: a model card, and figures with the command, date and machine that made them."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from echo_plugin.durable import write_atomically
from echo_plugin.evaluate.report import describe_machine, markdown_table
from echo_plugin.model_card import Metric, ModelCard, load_card

BY_PATIENT = " (patients)"
"""Ends the name of a figure that is of patients; the others are of cines or frames."""


def write_model_cards(models: Path) -> list[Path]:
    """Write ``<name>.md`` beside each card of a folder of published models; return the files."""
    pages = []
    for path in sorted(models.glob("*.json")):
        page = path.with_suffix(".md")
        write_atomically(page, render_card(load_card(models, path.stem)).encode())
        pages.append(page)
    return pages


def render_card(card: ModelCard) -> str:
    """Return a card as one page of Markdown; figures of single classes stand in tables of their own."""
    data = card.cohort
    parts = ", ".join(f"{patients} {name}" for name, patients in data.split.items())
    facts = [
        ("task", card.task),
        ("network", card.architecture),
        ("input", f"grey, {card.input_size_px} x {card.input_size_px} px"),
        ("classes", ", ".join(card.classes)),
        ("trained on", card.trained_on),
        ("data", f"{data.patients} patients, {data.cines} cines; digest `{data.digest[:12]}`"),
        ("patients of the split", parts or "not said"),
        ("training", f"`{card.training.command}`" if card.training.command else "not said"),
        ("wall time", "not said" if card.training.wall_time_s is None else f"{card.training.wall_time_s / 60:.0f} min"),
        ("seed", "not said" if card.training.seed is None else str(card.training.seed)),
        ("licence", card.licence),
        ("SHA-256 of the weights", f"`{card.sha256[:12]}`" if card.sha256 else "not published"),
    ]
    sections = [
        f"# {card.name} {card.version}",
        card.intended_use,
        markdown_table(("what", "value"), facts),
        *([f"## Limits\n\n{card.limits}"] if card.limits else []),
        *_figures(card),
        f"Written by `monailabel-echo info --markdown` from `{card.name}.json`.",
    ]
    return "\n\n".join(sections) + "\n"


def _figures(card: ModelCard) -> list[str]:
    if not card.metrics:
        return ["## Figures\n\nNobody was left to measure this model on."]
    about = (
        "Of patients that the training neither learned from nor chose a checkpoint with. Intervals: 95 %, bootstrap"
        "\nover patients. A constant answer is the commonest class or the median box."
    )
    overall = {name: metric for name, metric in card.metrics.items() if _class_of(name, card) is None}
    rows = [
        (name, f"{m.value:.3f}", _interval(m), _number(m.baseline), str(m.patients), m.split)
        for name, m in overall.items()
    ]
    head = ("figure", "value", "95 % interval", "constant answer", "patients", "measured on")
    sections = [f"## Figures\n\n{about}", markdown_table(head, rows)]
    for suffix, title in ((BY_PATIENT, "By class, patients"), ("", "By class")):
        own = {n: m for n, m in card.metrics.items() if n not in overall and n.endswith(BY_PATIENT) == bool(suffix)}
        if own:
            sections.append(f"## {title}\n\n{_class_table(own, card)}")
    return sections


def _class_table(metrics: Mapping[str, Metric], card: ModelCard) -> str:
    """Return one row for each class and figure, the constant answer beside it."""
    rows = [
        (_class_of(name, card) or "", _without_class(name, card), f"{m.value:.3f}", _interval(m), _number(m.baseline))
        for name, m in metrics.items()
    ]
    return markdown_table(("class", "figure", "value", "95 % interval", "constant answer"), rows)


def _class_of(name: str, card: ModelCard) -> str | None:
    """Return the class that ends the name of a figure; None: it is of all classes."""
    return next((c for c in card.classes if name.removesuffix(BY_PATIENT).endswith(f" {c}")), None)


def _without_class(name: str, card: ModelCard) -> str:
    return name.removesuffix(BY_PATIENT).removesuffix(f" {_class_of(name, card)}")


def _interval(metric: Metric) -> str:
    return "–" if metric.low is None else f"{metric.low:.3f} to {metric.high:.3f}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def write_results_page(page: Path, title: str, text: str) -> None:
    """Write ``text``, Markdown, as one page; its folder is made."""
    made = {"command": f"`{_command()}`", "date": datetime.now(UTC).date().isoformat(), "machine": describe_machine()}
    page.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(
        page, f"# {title}\n\n{markdown_table(('what', 'value'), made.items())}\n\n{text.strip()}\n".encode()
    )


def _command() -> str:
    program = Path(sys.argv[0])
    is_benchmark = program.parent.name == "benchmarks"
    name = f"python tests/benchmarks/{program.name}" if is_benchmark else "monailabel-echo"
    return f"{name} {shlex.join(sys.argv[1:])}".strip()
