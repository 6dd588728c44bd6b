# SPDX-License-Identifier: Apache-2.0
"""The verb ``train`` of the command line: one sub-command a model, each with the options of its own."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from echo_plugin.cli.options import DEFAULT_MODELS, Device, Models, Seed, Studies
from echo_plugin.model_card import Sampling, TemporalHead
from echo_plugin.progress import Progress, progress_bar
from echo_plugin.training.options import (
    DefectOptions,
    DetectorOptions,
    MaeOptions,
    TrainOptions,
    ViewOptions,
)

Options = TypeVar("Options", bound=TrainOptions)

train = typer.Typer(
    help="""Train a model on the annotations of a study folder, and publish it.

    A training that was interrupted goes on when the same command is given again. Curves for TensorBoard are in the
    folder logs beside the models. With several GPUs: torchrun --nproc-per-node 2 -m echo_plugin train ...

    Example: monailabel-echo train detector --studies my_studies --models my_models --epochs 20""",
    no_args_is_help=True,
)

Epochs = Annotated[int | None, typer.Option(help="Passes over the training frames.", min=1)]
Backbone = Annotated[str | None, typer.Option(help="Network body; the starter's by default.")]
ImageSize = Annotated[int | None, typer.Option(help="Side of what the network sees, px.", min=32)]
Start = Annotated[
    str,
    typer.Option(
        "--from",
        metavar="starter|views|mae|scratch|imagenet|FILE",
        help="Weights to go on from: its own, the view encoder, the masked autoencoder's, none, torchvision's, or a"
        " .safetensors or .pth file; defects also: face, of face recognition.",
    ),
]
PaperRecipe = Annotated[
    Literal["ours", "paper"], typer.Option(help="paper: the ASD/VSD paper's network, loss and optimiser.")
]
MaxMinutes = Annotated[float | None, typer.Option(help="End the epochs after this wall time.", min=0.01)]
Patience = Annotated[
    int | None, typer.Option(help="End after so many epochs without a better measure; 0: never.", min=0)
]
Cache = Annotated[Path | None, typer.Option(help="Keep decoded frames there for the next training.")]


@train.command("detector")
def train_detector_command(
    studies: Studies,
    models: Models = DEFAULT_MODELS,
    epochs: Epochs = None,
    backbone: Backbone = None,
    image_size: ImageSize = None,
    recipe: PaperRecipe = "ours",
    start: Start = "starter",
    max_minutes: MaxMinutes = None,
    patience: Patience = None,
    cache: Cache = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Train the septal detector on annotated frames."""
    options = _options(
        DetectorOptions,
        "septal_detector",
        models,
        epochs=epochs,
        backbone=backbone,
        image_size=image_size,
        recipe=recipe,
        start=start,
        max_minutes=max_minutes,
        patience=patience,
        cache_dir=cache,
        seed=seed,
        device=device,
    )
    from echo_plugin.training.detector import train_detector

    _run("detector", train_detector, studies, models, options)


@train.command("defects")
def train_defects_command(
    studies: Studies,
    models: Models = DEFAULT_MODELS,
    epochs: Epochs = None,
    backbone: Backbone = None,
    image_size: ImageSize = None,
    recipe: PaperRecipe = "ours",
    head: Annotated[
        Literal["arcface", "subcenter", "cosface", "softmax"] | None,
        typer.Option(help="The loss; arcface by default."),
    ] = None,
    crops: Annotated[
        Literal["walls", "union"] | None, typer.Option(help="A crop of each septum, or one round both.")
    ] = None,
    scale: Annotated[float | None, typer.Option(help="s of ArcFace.", min=1)] = None,
    margin: Annotated[float | None, typer.Option(help="m of ArcFace, rad.", min=0, max=1.5)] = None,
    start: Start = "starter",
    max_minutes: MaxMinutes = None,
    patience: Patience = None,
    cache: Cache = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Train the defect embedder on cines with a defect and boxes."""
    options = _options(
        DefectOptions,
        "defect_embedder",
        models,
        epochs=epochs,
        backbone=backbone,
        image_size=image_size,
        recipe=recipe,
        head=head,
        cropping=crops,
        scale=scale,
        margin_rad=margin,
        start=start,
        max_minutes=max_minutes,
        patience=patience,
        cache_dir=cache,
        seed=seed,
        device=device,
    )
    from echo_plugin.training.defects import train_defects

    _run("defects", train_defects, studies, models, options)


@train.command("views")
def train_views_command(
    studies: Studies,
    models: Models = DEFAULT_MODELS,
    epochs: Epochs = None,
    backbone: Backbone = None,
    image_size: ImageSize = None,
    recipe: Annotated[Literal["ours", "usf-mae"], typer.Option(help="usf-mae: the fetal paper's.")] = "ours",
    pooling: Annotated[
        Literal[TemporalHead, "image"] | None,
        typer.Option(help="What is made of a clip's frames; image: one frame."),
    ] = None,
    sampling: Annotated[Sampling | None, typer.Option(help="Which frames make a clip.")] = None,
    clip_frames: Annotated[int | None, typer.Option(help="Frames of a clip, T; 4 by default.", min=1, max=64)] = None,
    chunks: Annotated[
        int | None, typer.Option(help="Parts of an embedding that are woven, K; 4 by default.", min=1)
    ] = None,
    mirror: Annotated[bool, typer.Option("--mirror", help="Also learn from clips exchanged left and right.")] = False,
    vocabulary: Annotated[
        Literal["ned-12", "ned-16", "paediatric", "fetal-5"] | None,
        typer.Option(help="Which views are told apart; paediatric by default."),
    ] = None,
    start: Start = "starter",
    max_minutes: MaxMinutes = None,
    patience: Patience = None,
    cache: Cache = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Train the view classifier on cines whose view is labelled."""
    if chunks and pooling not in (None, "weave", "attention"):
        msg = f"--chunks is of the poolings weave and attention; {pooling} cuts nothing in chunks."
        raise typer.BadParameter(msg)
    options = _options(
        ViewOptions,
        "view_classifier",
        models,
        epochs=epochs,
        backbone=backbone,
        image_size=image_size,
        recipe=recipe,
        temporal=pooling,
        sampling=sampling,
        frames_per_clip=clip_frames,
        chunks=chunks,
        mirror=mirror,
        vocabulary=vocabulary,
        start=start,
        max_minutes=max_minutes,
        patience=patience,
        cache_dir=cache,
        seed=seed,
        device=device,
    )
    from echo_plugin.training.views import train_views

    _run("views", train_views, studies, models, options)


@train.command("mae")
def train_mae_command(
    images: Annotated[
        list[Path],
        typer.Option("--images", "--studies", help="Folders of ultrasound (DICOM, video, PNG, ...); repeat for more."),
    ],
    models: Models = DEFAULT_MODELS,
    epochs: Epochs = None,
    backbone: Backbone = None,
    image_size: ImageSize = None,
    mask_ratio: Annotated[float, typer.Option(help="Part of the patches that is hidden.", min=0, max=1)] = 0.75,
    patch_norm: Annotated[
        bool, typer.Option("--patch-norm", help="Bring every patch to be drawn to the same contrast.")
    ] = False,
    start: Start = "starter",
    max_minutes: MaxMinutes = None,
    patience: Patience = None,
    cache: Cache = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Train the masked autoencoder on pictures without any label.

    Example: monailabel-echo train mae --images archive --images videos --models my_models
    """
    options = _options(
        MaeOptions,
        "masked_autoencoder",
        models,
        epochs=epochs,
        backbone=backbone,
        image_size=image_size,
        mask_ratio=mask_ratio,
        is_patch_normalised=patch_norm,
        start=start,
        max_minutes=max_minutes,
        patience=patience,
        cache_dir=cache,
        seed=seed,
        device=device,
    )
    from echo_plugin.training.mae import train_mae

    _run("mae", train_mae, images, models, options)


def _options(kind: type[Options], name: str, models: Path, **chosen: Any) -> Options:
    """Return the options of a training of model ``name``; what they refuse is bad usage."""
    starter = starter_folder(models, name, chosen["start"])
    command = shlex.join(["monailabel-echo", *sys.argv[1:]])
    try:
        return kind(**chosen, starter=starter, log_dir=models / "logs", command=command)
    except ValueError as exc:
        raise typer.BadParameter(str(exc)) from exc


def starter_folder(models: Path, name: str, start: str) -> Path | None:
    """Return where the starting weights of model ``name`` lie: among those shipped, unless ``models`` has some.

    None: in ``models``, or no published weights are wanted. The masked autoencoder is not begun with the shipped one.
    """
    begun = {"starter": name, "views": "view_classifier", "mae": "masked_autoencoder"}.get(start)
    if begun is None or name == "masked_autoencoder" or (models / f"{begun}.json").is_file():
        return None
    return DEFAULT_MODELS


def _run(what: str, train_it: Callable[..., Any], learned_from: object, models: Path, options: TrainOptions) -> None:
    """Train, in as many processes as were started, and say what was published."""
    from echo_plugin.training.processes import is_first, joined_processes

    with joined_processes(options.device), progress_bar(f"Training {what}") as bar:
        card = train_it(learned_from, models, options, on_epoch=_shown_on(bar), progress=bar)
        if is_first():
            words = f"Published {card.name} {card.version} to {models}; it learned from {card.trained_on}."
            typer.echo(words, err=True)


def _shown_on(bar: Progress) -> Callable[[Any], None]:
    """Return what moves the bar with every epoch; an interrupted training that goes on is said in words too."""

    def on_epoch(status: Any) -> None:
        if status.is_resumed:
            words = f"Going on with the interrupted training after epoch {status.epoch} of {status.total_epochs}."
            typer.echo(words, err=True)
        note = "" if status.best_metric is None else f"best {status.best_metric:.3f}"
        bar(status.epoch, status.total_epochs, note)

    return on_epoch
