# SPDX-License-Identifier: Apache-2.0
"""The verbs that measure: ``evaluate``, a sub-command a model, and ``review``, which doubts labels."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from echo_plugin.cli.options import DEFAULT_MODELS, Device, Models, Seed, Studies, require_report_place, write_json
from echo_plugin.durable import write_atomically
from echo_plugin.progress import progress_bar

evaluate = typer.Typer(
    help="""Measure a model on patients that it did not learn from.

    Example: monailabel-echo evaluate views --studies held_out --out runs/views""",
    no_args_is_help=True,
)

Out = Annotated[Path, typer.Option("--out", help="Folder for report.json, report.html and the plots.")]
Markdown = Annotated[Path | None, typer.Option("--markdown", help="Also write the figures as one Markdown page there.")]


@evaluate.command("detector")
def evaluate_detector_command(
    studies: Studies,
    out: Out,
    models: Models = DEFAULT_MODELS,
    markdown: Markdown = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Measure the boxes of the septa on annotated frames, by view, age and image quality."""
    from echo_plugin.evaluate.detector import evaluate_detector

    with progress_bar("Evaluating detector") as bar:
        _write(evaluate_detector(studies, models, out, device=device, progress=bar, seed=seed), markdown)


@evaluate.command("defects")
def evaluate_defects_command(
    studies: Studies,
    out: Out,
    models: Models = DEFAULT_MODELS,
    markdown: Markdown = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Measure defects by cine and by patient, verification, and when the model says nothing."""
    from echo_plugin.evaluate.defects import evaluate_defects

    with progress_bar("Evaluating defects") as bar:
        _write(evaluate_defects(studies, models, out, device=device, progress=bar, seed=seed), markdown)


@evaluate.command("views")
def evaluate_views_command(
    studies: Studies,
    out: Out,
    models: Models = DEFAULT_MODELS,
    folds: Annotated[int | None, typer.Option(help="Train the architecture anew on so many folds.", min=2)] = None,
    epochs: Annotated[int | None, typer.Option(help="Of each fold's training.", min=2)] = None,
    markdown: Markdown = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Measure views by cine, or the architecture trained anew on every fold of the patients."""
    from echo_plugin.evaluate.views import cross_validate_views, evaluate_views
    from echo_plugin.training.options import ViewOptions

    with progress_bar("Evaluating views") as bar:
        if folds is None:
            report = evaluate_views(studies, models, out, device=device, progress=bar, seed=seed)
        else:
            options = ViewOptions(epochs=epochs, seed=seed, device=device)
            report = cross_validate_views(studies, models, out, folds=folds, options=options, progress=bar)
        _write(report, markdown)


def _write(report: dict[str, Any], markdown: Path | None) -> None:
    """Write the report to stdout as JSON and, where that was asked for, as a page of Markdown."""
    from echo_plugin.evaluate.report import render_markdown

    if markdown is not None:
        markdown.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(markdown, render_markdown(report).encode())
    write_json(report, None)


def review(
    studies: Studies,
    models: Models = DEFAULT_MODELS,
    predictions: Annotated[
        Literal["folds", "model"],
        typer.Option(help="folds: train a detector for each fold of patients; model: the published one, for others."),
    ] = "folds",
    folds: Annotated[int, typer.Option(help="Folds of patients.", min=2)] = 3,
    minutes: Annotated[float, typer.Option(help="Wall time of the trainings of all folds.", min=0.05)] = 15.0,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for review.html and review.json.")] = None,
    json_target: Annotated[str | None, typer.Option("--json", metavar="FILE|-", help="Write JSON there.")] = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """List the labels that look most like mistakes; the strategy "suspicious" of the server shows them in that order.

    Example: monailabel-echo review --studies my_studies --predictions model --out review/
    """
    from echo_plugin.acquisition.review import (
        describe_review,
        fold_judges,
        keep_judgements,
        published_judge,
        to_json,
        train_folds,
        write_review,
    )
    from echo_plugin.acquisition.review import review as review_labels
    from echo_plugin.durable import make_directory
    from echo_plugin.progress import progress_bar
    from echo_plugin.training.options import DetectorOptions

    if json_target not in (None, "-"):
        require_report_place(Path(str(json_target)), "--json")
    if out is not None:
        make_directory(out)
    with progress_bar("Reviewing labels") as bar:
        if predictions == "model":
            judge_of = published_judge(models, device)
            judges = "the published detector, of patients it did not learn from"
        else:
            options = DetectorOptions(max_minutes=minutes / folds, seed=seed, device=device)
            train = train_folds(studies, models, options)
            judge_of = fold_judges(train, folds, seed=seed, device=device, progress=bar)
            judges = f"{folds} detectors, each trained without the patients it judges"
        result = review_labels(studies, judge_of, judges=judges, progress=bar)
    keep_judgements(studies, result)
    if out is not None:
        write_review(out, result)
    if json_target is None:
        sys.stdout.write(describe_review(result))
    else:
        write_json(to_json(result), json_target)
