# SPDX-License-Identifier: Apache-2.0
"""The verb ``train`` of the command line.

The masked autoencoder's part of the verb ``train``, and the fetal part of the verb ``phantom``.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from echo_plugin.cli.options import DEFAULT_MODELS, Device, Models, Seed, Trainable
from echo_plugin.model_card import Sampling, TemporalHead
from echo_plugin.progress import Progress, progress_bar
from echo_plugin.training.options import TrainOptions

MAE_ONLY = "Of mae"
Images = Annotated[
    list[Path] | None,
    typer.Option(help=f"{MAE_ONLY}: folders of ultrasound without labels (DICOM, video, PNG, ...); repeat for more."),
]
MaskRatio = Annotated[
    float | None, typer.Option(help=f"{MAE_ONLY}: part of the patches that is hidden; 0.75 by default.", min=0, max=1)
]
PatchNorm = Annotated[
    bool, typer.Option("--patch-norm", help=f"{MAE_ONLY}: bring every patch to be drawn to the same contrast.")
]


def mae_trainer(mask_ratio: float | None, patch_norm: bool) -> Callable[..., Any]:
    """Return what trains the masked autoencoder on folders of pictures.

    Raises
    ------
    ValueError
        If so large a part of the patches cannot be hidden.
    """
    from echo_plugin.training.mae import train_mae
    from echo_plugin.training.options import MaeOptions

    task = MaeOptions(is_patch_normalised=patch_norm)
    if mask_ratio is not None:
        task = MaeOptions(mask_ratio=mask_ratio, is_patch_normalised=patch_norm)
    return partial(train_mae, task=task)


def fetal_phantom(out: Path, patients: int, seed: int, stills: int, *, sheet: Path | None, is_plain: bool) -> None:
    """Write a folder of first-trimester stills; ``is_plain``: nothing was asked for that only children have."""
    from echo_plugin.papers.fetal_study import write_fetal_sheet, write_fetal_study_folder

    if not is_plain:
        msg = "--views and --jobs are of the children's phantom; with --fetal every patient has all five fetal views."
        raise typer.BadParameter(msg)
    with progress_bar("Drawing fetal phantoms") as bar:
        write_fetal_study_folder(out, patients=patients, seed=seed, stills=stills, progress=bar)
    if sheet is not None:
        write_fetal_sheet(out, sheet)


Start = Annotated[
    str,
    typer.Option(
        "--from",
        metavar="starter|views|mae|scratch|imagenet|face|FILE",
        help="Weights to go on from: its own, the view encoder, the masked autoencoder's, none, torchvision's, face"
        " recognition's (defects), or a .safetensors or .pth file.",
    ),
]
Recipe = Annotated[
    Literal["ours", "paper", "usf-mae"],
    typer.Option(
        help="paper: of detector and defects, the ASD/VSD paper's (of defects the network, loss and optimiser; batches"
        " and augmentation stay ours); usf-mae: of views, the fetal paper's."
    ),
]
Patience = Annotated[
    int | None, typer.Option(help="End after so many epochs without a better measure; 0: never.", min=0)
]

DEFECTS_ONLY = "Of the defects"
Head = Annotated[
    Literal["arcface", "subcenter", "cosface", "softmax"] | None,
    typer.Option(help=f"{DEFECTS_ONLY}: the loss; arcface by default."),
]
Crops = Annotated[
    Literal["walls", "union"] | None,
    typer.Option(help=f"{DEFECTS_ONLY}: a crop of each septum, or one round both."),
]
Scale = Annotated[float | None, typer.Option(help=f"{DEFECTS_ONLY}: s of ArcFace.", min=1)]
Margin = Annotated[float | None, typer.Option(help=f"{DEFECTS_ONLY}: m of ArcFace, rad.", min=0, max=1.5)]

VIEWS_ONLY = "Of the views"
Pooling = Annotated[
    Literal[TemporalHead, "image"] | None,
    typer.Option(help=f"{VIEWS_ONLY}: what is made of a clip's frames; image: one frame."),
]
ClipSampling = Annotated[Sampling | None, typer.Option(help=f"{VIEWS_ONLY}: which frames make a clip.")]
ClipFrames = Annotated[
    int | None, typer.Option(help=f"{VIEWS_ONLY}: frames of a clip, T; 4 by default.", min=1, max=64)
]
Chunks = Annotated[
    int | None, typer.Option(help=f"{VIEWS_ONLY}: parts of an embedding that are woven, K; 4 by default.", min=1)
]
Mirror = Annotated[
    bool, typer.Option("--mirror", help=f"{VIEWS_ONLY}: also learn from clips exchanged left and right.")
]
Vocabulary = Annotated[
    Literal["ned-12", "ned-16", "paediatric", "fetal-5"] | None,
    typer.Option(help=f"{VIEWS_ONLY}: which are told apart; paediatric by default."),
]


def train(
    what: Annotated[Literal["detector", "defects", "views", "mae"], typer.Argument(help="Which model.")],
    studies: Annotated[Path | None, typer.Option("--studies", help="Study folder: images and annotations/.")] = None,
    images: Images = None,
    models: Models = DEFAULT_MODELS,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training frames.", min=1)] = None,
    backbone: Annotated[str | None, typer.Option(help="Network body; the starter's by default.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of what the network sees, px.", min=32)] = None,
    recipe: Recipe = "ours",
    head: Head = None,
    crops: Crops = None,
    scale: Scale = None,
    margin: Margin = None,
    pooling: Pooling = None,
    sampling: ClipSampling = None,
    clip_frames: ClipFrames = None,
    chunks: Chunks = None,
    mirror: Mirror = False,
    vocabulary: Vocabulary = None,
    mask_ratio: MaskRatio = None,
    patch_norm: PatchNorm = False,
    start: Start = "starter",
    max_minutes: Annotated[float | None, typer.Option(help="End the epochs after this wall time.", min=0.01)] = None,
    patience: Patience = None,
    cache: Annotated[Path | None, typer.Option(help="Keep decoded frames there for the next training.")] = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Train a model on the annotations of a study folder, or mae on pictures without any, and publish it.

    A training that was interrupted goes on when the same command is given again. Curves for TensorBoard are in the
    folder logs beside the models. With several GPUs: torchrun --nproc-per-node 2 -m echo_plugin train ...

    Example: monailabel-echo train detector --studies my_studies --models my_models --epochs 20
    Example: monailabel-echo train mae --images archive --images videos --models my_models
    """
    kind = None if what == "mae" else Trainable(what)
    folders = [folder for folder in (studies, *(images or ())) if folder is not None]
    if (studies is None) == (images is None) or (images and kind is not None):
        msg = "Name one --studies DIR to learn from, or, for mae, --images DIR, which may be repeated."
        raise typer.BadParameter(msg)
    _require_recipe_of(what, recipe)
    face = "face" if start == "face" else None
    of_defects = {"--head": head, "--crops": crops, "--scale": scale, "--margin": margin, "--from face": face}
    clips = {"--clip-frames": clip_frames, "--chunks": chunks, "--mirror": mirror or None}
    of_views = {"--pooling": pooling, "--sampling": sampling, **clips, "--vocabulary": vocabulary}
    _refuse_of_others(what, "mae", {"--mask-ratio": mask_ratio, "--patch-norm": patch_norm or None})
    _refuse_of_others(what, "defects", of_defects)
    _refuse_of_others(what, "views", of_views)
    if chunks and pooling not in (None, "weave", "attention"):
        msg = f"--chunks is of the poolings weave and attention; {pooling} cuts nothing in chunks."
        raise typer.BadParameter(msg)
    try:
        options = TrainOptions(
            epochs=epochs,
            backbone=backbone,
            image_size=image_size,
            recipe=recipe,
            head=head,
            cropping=crops,
            scale=scale,
            margin_rad=margin,
            temporal=pooling,
            sampling=sampling,
            frames_per_clip=clip_frames,
            chunks=chunks,
            mirror=mirror,
            vocabulary=vocabulary,
            start=start,
            starter=None if kind is None else starter_folder(models, kind, start),
            max_minutes=max_minutes,
            patience=patience,
            cache_dir=cache,
            seed=seed,
            device=device,
            log_dir=models / "logs",
            command=shlex.join(["monailabel-echo", *sys.argv[1:]]),
        )
        run = mae_trainer(mask_ratio, patch_norm) if kind is None else _trainer(kind)
    except ValueError as exc:
        raise typer.BadParameter(str(exc)) from exc
    _run(what, run, folders if kind is None else studies, models, options)


def _require_recipe_of(what: str, recipe: str) -> None:
    is_fetal = recipe == "usf-mae"
    if recipe != "ours" and (what == "mae" or is_fetal != (what == "views")):
        msg = f"--recipe {recipe} is a recipe of {'views' if is_fetal else 'detector and defects'}, not of {what}."
        raise typer.BadParameter(msg)


def _refuse_of_others(what: str, owner: str, given: Mapping[str, object]) -> None:
    """Refuse options of ``owner`` that were given (not None) for another model."""
    if what != owner and any(value is not None for value in given.values()):
        *others, last = given
        msg = f"{', '.join(others)} and {last} are of {owner}; {what} has none of them."
        raise typer.BadParameter(msg)


def _run(what: str, train_it: Callable[..., Any], learned_from: object, models: Path, options: TrainOptions) -> None:
    """Train, in as many processes as were started, and say what was published."""
    from echo_plugin.training.processes import is_first, joined_processes

    with joined_processes(options.device), progress_bar(f"Training {what}") as bar:
        card = train_it(learned_from, models, options, on_epoch=_shown_on(bar), progress=bar)
        if is_first():
            words = f"Published {card.name} {card.version} to {models}; it learned from {card.trained_on}."
            typer.echo(words, err=True)


def starter_folder(models: Path, what: Trainable, start: str) -> Path | None:
    """Return where the starting weights lie: among those shipped, unless ``models`` has some or others are wanted."""
    from echo_plugin.answer.runtime import TRAIN_COMMANDS
    from echo_plugin.models.checkpoint import MASKED_AUTOENCODER, VIEW_CLASSIFIER

    own = next(name for name, word in TRAIN_COMMANDS.items() if word == what)
    name = {"starter": own, "views": VIEW_CLASSIFIER, "mae": MASKED_AUTOENCODER}.get(start)
    return None if name is None or (models / f"{name}.json").is_file() else DEFAULT_MODELS


def _trainer(what: Trainable) -> Callable[..., Any]:
    if what is Trainable.DETECTOR:
        from echo_plugin.training.detector import train_detector

        return train_detector
    if what is Trainable.DEFECTS:
        from echo_plugin.training.defects import train_defects

        return train_defects
    from echo_plugin.training.views import train_views

    return train_views


def _shown_on(bar: Progress) -> Callable[[Any], None]:
    """Return what moves the bar with every epoch; an interrupted training that goes on is said in words too."""

    def on_epoch(status: Any) -> None:
        if status.is_resumed:
            words = f"Going on with the interrupted training after epoch {status.epoch} of {status.total_epochs}."
            typer.echo(words, err=True)
        note = "" if status.best_metric is None else f"best {status.best_metric:.3f}"
        bar(status.epoch, status.total_epochs, note)

    return on_epoch
