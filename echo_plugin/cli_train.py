# SPDX-License-Identifier: Apache-2.0
"""The verb ``train`` of the command line."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from echo_plugin.cli_options import DEFAULT_MODELS, Device, Models, Seed, Studies, Trainable
from echo_plugin.progress_bar import progress_bar

Start = Annotated[
    Literal["starter", "views", "scratch"],
    typer.Option("--from", help="Weights to go on from: its own, the view encoder, none."),
]


def train(
    what: Annotated[Trainable, typer.Argument(help="Which model.")],
    studies: Studies,
    models: Models = DEFAULT_MODELS,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training frames.", min=1)] = None,
    backbone: Annotated[str | None, typer.Option(help="Network body; the starter's by default.")] = None,
    start: Start = "starter",
    max_minutes: Annotated[float | None, typer.Option(help="End the epochs after this wall time.", min=0.01)] = None,
    cache: Annotated[Path | None, typer.Option(help="Keep decoded frames there for the next training.")] = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Train a model on the annotations of a study folder and publish it.

    Example: monailabel-echo train detector --studies my_studies --models my_models --epochs 20
    """
    from echo_plugin.training.options import EpochStatus, TrainOptions

    if what is Trainable.DETECTOR:
        from echo_plugin.training.detector import train_detector as run
    elif what is Trainable.DEFECTS:
        from echo_plugin.training.defects import train_defects as run
    else:
        from echo_plugin.training.views import train_views as run
    options = TrainOptions(
        epochs=epochs,
        backbone=backbone,
        start=start,
        max_minutes=max_minutes,
        cache_dir=cache,
        seed=seed,
        device=device,
        command=shlex.join(["monailabel-echo", *sys.argv[1:]]),
    )
    with progress_bar(f"Training {what}") as bar:

        def on_epoch(status: EpochStatus) -> None:
            bar(
                status.epoch,
                status.total_epochs,
                "" if status.best_metric is None else f"best {status.best_metric:.3f}",
            )

        card = run(studies, models, options, on_epoch=on_epoch, progress=bar)
    typer.echo(f"Published {card.name} {card.version} to {models}.", err=True)
