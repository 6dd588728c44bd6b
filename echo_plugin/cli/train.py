# SPDX-License-Identifier: Apache-2.0
"""The verb ``train`` of the command line: one sub-command a model, each with the options of its own."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from echo_plugin.cli.options import DEFAULT_MODELS, Device, Seed, Studies
from echo_plugin.network_config import Sampling, TemporalHead
from echo_plugin.progress import Progress, progress_bar
from echo_plugin.training.options import DefectOptions, DetectorOptions, MaeOptions, TrainOptions, ViewOptions

TRAINED: dict[str, tuple[str, type[TrainOptions]]] = {
    "detector": ("septal_detector", DetectorOptions),
    "defects": ("defect_embedder", DefectOptions),
    "views": ("view_classifier", ViewOptions),
    "mae": ("masked_autoencoder", MaeOptions),
}
"""The published name and the options by sub-command; their parameters are named as the fields of the options."""

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
LearnedModels = Annotated[
    Path, typer.Option("--models", help="Folder to publish in, and of the model to go on with; not the starters'.")
]
Cache = Annotated[Path | None, typer.Option("--cache", help="Keep decoded frames there for the next training.")]


@train.command("detector")
def train_detector_command(
    studies: Studies,
    models: LearnedModels,
    epochs: Epochs = None,
    backbone: Backbone = None,
    image_size: ImageSize = None,
    recipe: PaperRecipe = "ours",
    start: Start = "starter",
    max_minutes: MaxMinutes = None,
    patience: Patience = None,
    cache_dir: Cache = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Train the septal detector on annotated frames."""
    _train("detector", locals())


@train.command("defects")
def train_defects_command(
    studies: Studies,
    models: LearnedModels,
    epochs: Epochs = None,
    backbone: Backbone = None,
    image_size: ImageSize = None,
    recipe: PaperRecipe = "ours",
    head: Annotated[
        Literal["arcface", "subcenter", "cosface", "softmax"] | None,
        typer.Option(help="The loss; arcface by default."),
    ] = None,
    cropping: Annotated[
        Literal["walls", "union"] | None, typer.Option("--crops", help="A crop of each septum, or one round both.")
    ] = None,
    scale: Annotated[float | None, typer.Option(help="s of ArcFace.", min=1)] = None,
    margin_rad: Annotated[float | None, typer.Option("--margin", help="m of ArcFace, rad.", min=0, max=1.5)] = None,
    start: Start = "starter",
    max_minutes: MaxMinutes = None,
    patience: Patience = None,
    cache_dir: Cache = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Train the defect embedder on cines with a defect and boxes."""
    _train("defects", locals())


@train.command("views")
def train_views_command(
    studies: Studies,
    models: LearnedModels,
    epochs: Epochs = None,
    backbone: Backbone = None,
    image_size: ImageSize = None,
    recipe: Annotated[Literal["ours", "usf-mae"], typer.Option(help="usf-mae: the fetal paper's.")] = "ours",
    temporal: Annotated[
        Literal[TemporalHead, "image"] | None,
        typer.Option("--pooling", help="What is made of a clip's frames; image: one frame."),
    ] = None,
    sampling: Annotated[Sampling | None, typer.Option(help="Which frames make a clip.")] = None,
    frames_per_clip: Annotated[
        int | None, typer.Option("--clip-frames", help="Frames of a clip, T; 4 by default.", min=1, max=64)
    ] = None,
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
    cache_dir: Cache = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Train the view classifier on cines whose view is labelled."""
    if chunks and temporal not in (None, "weave", "attention"):
        msg = f"--chunks is of the poolings weave and attention; {temporal} cuts nothing in chunks."
        raise typer.BadParameter(msg)
    _train("views", locals())


@train.command("mae")
def train_mae_command(
    images: Annotated[
        list[Path],
        typer.Option("--images", "--studies", help="Folders of ultrasound (DICOM, video, PNG, ...); repeat for more."),
    ],
    models: LearnedModels,
    epochs: Epochs = None,
    backbone: Backbone = None,
    image_size: ImageSize = None,
    mask_ratio: Annotated[float, typer.Option(help="Part of the patches that is hidden.", min=0, max=1)] = 0.75,
    is_patch_normalised: Annotated[
        bool, typer.Option("--patch-norm", help="Bring every patch to be drawn to the same contrast.")
    ] = False,
    start: Start = "starter",
    max_minutes: MaxMinutes = None,
    patience: Patience = None,
    cache_dir: Cache = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Train the masked autoencoder on pictures without any label.

    Example: monailabel-echo train mae --images archive --images videos --models my_models
    """
    _train("mae", locals())


def starter_folder(models: Path, name: str, start: str) -> Path | None:
    """Return where the starting weights of model ``name`` lie: among those shipped, unless ``models`` has some.

    None: in ``models``, or no published weights are wanted. The masked autoencoder is not begun with the shipped one.
    """
    begun = {"starter": name, "views": "view_classifier", "mae": "masked_autoencoder"}.get(start)
    if begun is None or name == "masked_autoencoder" or (models / f"{begun}.json").is_file():
        return None
    return DEFAULT_MODELS


def _train(what: str, chosen: dict[str, Any]) -> None:
    """Train, in as many processes as were started, and say what was published.

    ``chosen`` : what a sub-command was given, by the names of the fields of its options.
    """
    name, kind = TRAINED[what]
    learned_from, models = chosen.pop("images" if what == "mae" else "studies"), chosen.pop("models")
    starter = starter_folder(models, name, chosen["start"])
    command = shlex.join(["monailabel-echo", *sys.argv[1:]])
    try:
        options = kind(**chosen, starter=starter, log_dir=models / "logs", command=command)
    except ValueError as exc:
        raise typer.BadParameter(str(exc)) from exc
    from echo_plugin.training.processes import is_first, joined_processes

    with joined_processes(options.device), progress_bar(f"Training {what}") as bar:
        card = _trainer(what)(learned_from, models, options, on_epoch=_shown_on(bar), progress=bar)
        if is_first():
            words = f"Published {card.name} {card.version} to {models}; it learned from {card.trained_on}."
            typer.echo(words, err=True)


def _trainer(what: str) -> Callable[..., Any]:
    if what == "detector":
        from echo_plugin.training.detector import train_detector

        return train_detector
    if what == "defects":
        from echo_plugin.training.defects import train_defects

        return train_defects
    if what == "views":
        from echo_plugin.training.views import train_views

        return train_views
    from echo_plugin.training.mae import train_mae

    return train_mae


def _shown_on(bar: Progress) -> Callable[[Any], None]:
    """Return what moves the bar with every epoch; an interrupted training that goes on is said in words too."""

    def on_epoch(status: Any) -> None:
        if status.is_resumed:
            words = f"Going on with the interrupted training after epoch {status.epoch} of {status.total_epochs}."
            typer.echo(words, err=True)
        note = "" if status.best_metric is None else f"best {status.best_metric:.3f}"
        bar(status.epoch, status.total_epochs, note)

    return on_epoch
