# SPDX-License-Identifier: Apache-2.0
"""``monailabel-echo review``: the labels of a study folder that look like mistakes, the most doubtful first."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from echo_plugin.cli.options import DEFAULT_MODELS, Device, Models, Seed, Studies, require_report_place, write_json


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
