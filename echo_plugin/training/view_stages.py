# SPDX-License-Identifier: Apache-2.0
"""How views are learned: clips, recipes, and the two stages of the neonatal-view paper, single frames first.

Batches are (B, T, S, S) float 0..1. What is random about a picture is drawn once for a clip: its frames are turned by
one angle, moved and changed alike, for a view that shook from frame to frame would have no motion of its own.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from torch import Tensor
from torch.nn.functional import cross_entropy

from echo_plugin.answer.preprocess import normalise
from echo_plugin.answer.views import choose_clips
from echo_plugin.cine import Cine
from echo_plugin.geometry import FloatArray
from echo_plugin.model_card import LearnedTimes
from echo_plugin.models.checkpoint import VIEW_CLASSIFIER
from echo_plugin.models.view_classifier import ViewClassifier
from echo_plugin.network_config import ViewConfig
from echo_plugin.progress import Progress
from echo_plugin.training.augment import VIEW_MOTION, change_appearance, compose, random_affines, uniform, warp
from echo_plugin.training.datasets import LabelledCine, LabelledFolder, PreparedFrames, prepare_frames, prepare_whole
from echo_plugin.training.loop import Learned, Recipe, balanced_batches, lower_precision, run_epochs
from echo_plugin.training.options import EpochStatus, OnEpoch, ViewOptions

PLAIN = 0.1
"""Part of the training clips whose look is left as it is, in our recipe."""
CROP_ATTEMPTS = 10
"""Of torchvision's RandomResizedCrop, before it takes the whole picture."""


def vary_as_ours(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Return clips turned, moved and with another look; left and right are not exchanged."""
    is_plain = (torch.rand(len(pixels), generator=generator) < PLAIN).to(pixels.device)[:, None, None, None]
    pixels = torch.where(is_plain, pixels, change_appearance(pixels, generator))
    size = pixels.shape[-1]
    return warp(pixels, random_affines(len(pixels), size, VIEW_MOTION, generator), size)


def mirrored(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Return clips of which half, drawn at random, are exchanged left and right."""
    is_flipped = (torch.rand(len(pixels), generator=generator) < 0.5).to(pixels.device)[:, None, None, None]
    return torch.where(is_flipped, pixels.flip(-1), pixels)


def vary_as_usf_mae(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Return clips rotated by 0 to 90 degrees, flipped both ways half the time, and cropped at random.

    A fetus lies as it likes, so no view of it depends on a side.
    """
    count, side = len(pixels), pixels.shape[-1]
    angle = uniform(count, 0, math.pi / 2, generator)
    cos, sin = angle.cos(), angle.sin()
    flips = 1 - 2 * (torch.rand(count, 2, generator=generator) < 0.5).float()
    rotation = torch.stack([torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)], 1)
    linear = flips[:, :, None] * rotation
    middle = torch.full((count, 2, 1), side / 2)
    turned = torch.cat([linear, middle - linear @ middle], dim=2)
    return warp(pixels, compose(resized_crops(count, side, generator), turned), side)


def resized_crops(count: int, side_px: int, generator: torch.Generator) -> Tensor:
    """Return (count, 2, 3) affines of torchvision's RandomResizedCrop with scale (0.5, 2), the fetal paper's.

    More than the whole area is asked for two times in three; what does not fit is drawn again, and in the end the whole
    picture is taken.
    """
    area = side_px**2 * (torch.rand(count, CROP_ATTEMPTS, generator=generator) * 1.5 + 0.5)
    ratio = ((torch.rand(count, CROP_ATTEMPTS, generator=generator) * 2 - 1) * math.log(4 / 3)).exp()
    sides = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], dim=2).round()  # (count, tries, w and h)
    fits = (sides <= side_px).all(dim=2)
    first = fits.float().argmax(dim=1)
    chosen = sides[torch.arange(count), first]
    chosen = torch.where(fits.any(dim=1)[:, None], chosen, torch.full_like(chosen, float(side_px)))
    corner = (torch.rand(count, 2, generator=generator) * (side_px - chosen + 1)).floor()
    scale = side_px / chosen
    return torch.cat([torch.diag_embed(scale), (-corner * scale)[:, :, None]], dim=2)


@dataclass(frozen=True, kw_only=True)
class ViewRecipe:
    """The numbers of one way to train views; ``clip_rate`` : learning rate of the second stage, as a part."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    warm_up: float
    clip_norm: float
    smoothing: float
    vary: Callable[[Tensor, torch.Generator], Tensor]
    clip_rate: float = 1 / 3
    border: float = 0.0
    """Part of the side that is cut off all round; ``ViewConfig`` carries it to predictions."""


RECIPES = {
    "ours": ViewRecipe(
        epochs=40,
        batch_size=32,
        learning_rate=1e-3,
        weight_decay=0.05,
        warm_up=0.05,
        clip_norm=5.0,
        smoothing=0.05,  # neighbouring views shade over
        vary=vary_as_ours,
    ),
    "usf-mae": ViewRecipe(
        epochs=120,
        batch_size=64,
        learning_rate=5e-4,
        weight_decay=0.01,
        warm_up=0.1,
        clip_norm=1.0,
        smoothing=0.0,
        vary=vary_as_usf_mae,
        border=0.05,
    ),
}
"""The fetal paper's (arXiv 2512.24492) warm-up and clipping are from its authors' code; how wide the border is, it
does not say. Our own pictures are cut at the ultrasound region before, so no text is left for it to cut."""


def view_recipe(options: ViewOptions) -> ViewRecipe:
    """Return the recipe that the options name."""
    recipe = RECIPES[options.recipe]
    if not options.mirror:
        return recipe
    return replace(recipe, vary=lambda pixels, generator: recipe.vary(mirrored(pixels, generator), generator))


def learned_times(labelled: LabelledFolder, cines: Sequence[LabelledCine]) -> LearnedTimes | None:
    """Return the median interval of frames and length of cines; None: none says when its frames were taken."""
    steps = [(labelled.folder.entry(cine.image_id).frame_time_ms, cine.frame_count) for cine in cines]
    known = np.array([(step, step * (count - 1)) for step, count in steps if step and count > 1])
    return LearnedTimes(*np.median(known, axis=0).tolist()) if len(known) else None


@dataclass(frozen=True)
class ClipChoice:
    """Which clips are prepared of a cine, by the function by which predictions choose theirs.

    ``counts`` : so many clips spread over the cine, then so many spread anew, and so on.
    """

    config: ViewConfig
    times: LearnedTimes | None
    counts: tuple[int, ...]

    def of(self, cine: Cine) -> NDArray[np.int64]:
        """Return (sum of ``counts``, T) 0-based frame indices."""
        return np.concatenate([choose_clips(self.config, self.times, cine, count) for count in self.counts])

    @property
    def facts(self) -> str:
        """What tells this choice from others."""
        return f"{self.config.sampling}-{self.config.frames_per_clip}-{self.counts}-{self.times}"

    def prepare(
        self,
        labelled: LabelledFolder,
        cines: Sequence[LabelledCine],
        cache_dir: Path | None,
        progress: Progress | None = None,
    ) -> PreparedFrames:
        """Return the frames of the clips of each cine, one clip after another; its times are read with its pixels."""
        size = self.config.input_size_px

        def prepare(cine: Cine, labels: LabelledCine, frame_indices: tuple[int, ...]) -> tuple[Tensor, NDArray[Any]]:
            chosen, place = np.unique(self.of(cine), return_inverse=True)
            pixels, targets = prepare_whole(size)(cine, labels, tuple(chosen.tolist()))
            return pixels[torch.from_numpy(place.ravel())], targets[place.ravel()]

        name = f"views-{size}-{self.facts}"
        choice = [(cine, ()) for cine in cines]
        return prepare_frames(labelled, choice, prepare, name=name, cache_dir=cache_dir, progress=progress)


@dataclass(frozen=True)
class ClipTable:
    """Clips of prepared frames: ``frames`` (N, T) rows of ``pixels``, ``labels`` (N,), ``cine`` (N,), clips by part."""

    pixels: Tensor
    frames: Tensor
    labels: Tensor
    cine: Tensor
    parts: Mapping[str, Tensor]

    @classmethod
    def of(
        cls, prepared: PreparedFrames, length: int, labels: Tensor, parts: Mapping[str, Sequence[LabelledCine]]
    ) -> ClipTable:
        """Return the clips of ``length`` neighbouring rows; ``labels`` by cine."""
        frames = torch.arange(len(prepared.pixels)).reshape(-1, length)
        cine = prepared.cine[::length]
        members = {
            part: torch.where(torch.isin(cine, prepared.cine[prepared.of(cines)]))[0] for part, cines in parts.items()
        }
        return cls(prepared.pixels, frames, labels[cine], cine, members)

    def draw(self, stage: str, batch_size: int, generator: torch.Generator) -> list[Tensor]:
        """Return an epoch's batches: every clip for its frames, or one clip of every cine; rarer views more often."""
        clips = self.parts["train"]
        if stage == "clips":
            clips = clips[torch.randperm(len(clips), generator=generator)]
            _, first = np.unique(self.cine[clips].numpy(), return_index=True)
            clips = clips[torch.from_numpy(first)]
            batch_size = max(batch_size // 2, 2)
        return balanced_batches(clips, self.labels[clips], batch_size, generator)


@torch.no_grad()
def clip_logits(
    model: ViewClassifier, table: ClipTable, chosen: Tensor, stage: str = "clips", *, batch_size: int = 16
) -> FloatArray:
    """Return (N, K) view logits of the clips ``chosen``; stage "frames": log of the mean over single frames."""
    device = model.frame_head.weight.device
    model.eval()
    rows = []
    for first in range(0, len(chosen), batch_size):
        inputs = normalise(table.pixels[table.frames[chosen[first : first + batch_size]]].to(device))
        with lower_precision(device):
            if stage == "clips":
                rows.append(model(inputs).float())
            else:
                logits = model.frame_logits(inputs.flatten(0, 1)).float()
                mean = logits.softmax(dim=1).reshape(*inputs.shape[:2], -1).mean(dim=1)
                rows.append(mean.clamp_min(1e-12).log())
    each: FloatArray = torch.cat(rows).double().cpu().numpy()
    return each


def cine_logits(
    model: ViewClassifier, table: ClipTable, part: str, stage: str
) -> tuple[list[FloatArray], NDArray[np.int_], NDArray[np.int_]]:
    """Return the logits of the clips of each cine, M times (n, K), (M,) true class ids and (M,) cine indices."""
    chosen = table.parts[part]
    each = clip_logits(model, table, chosen, stage)
    cines, place = np.unique(table.cine[chosen].numpy(), return_inverse=True)
    labels = table.labels[chosen].numpy()
    truth = np.array([labels[place == i][0] for i in range(len(cines))])
    return [each[place == i] for i in range(len(cines))], truth, cines


def cine_probabilities(
    model: ViewClassifier, table: ClipTable, part: str, stage: str
) -> tuple[FloatArray, NDArray[np.int_], NDArray[np.int_]]:
    """Return (M, K) mean probabilities over the clips of each cine, (M,) true class ids and (M,) cine indices."""
    logits, truth, cines = cine_logits(model, table, part, stage)
    return np.stack([softmax(clips, axis=1).mean(axis=0) for clips in logits]), truth, cines


FRAME_STAGE = 0.6
"""Part of the epochs, and of the time, given to the first stage."""


def _varied(
    table: ClipTable, rows: Tensor, generator: torch.Generator, device: torch.device, recipe: ViewRecipe
) -> Tensor:
    """Return (B, T, 1, S, S) inputs of the frames ``rows`` (B, T); the frames of a clip are changed alike."""
    return normalise(recipe.vary(table.pixels[rows].to(device).float().div_(255), generator) * 255)


def _frame_loss(
    model: ViewClassifier, table: ClipTable, chosen: Tensor, generator: torch.Generator, recipe: ViewRecipe
) -> Tensor:
    """Return the loss of one random frame of each clip."""
    device = model.frame_head.weight.device
    place = torch.randint(table.frames.shape[1], (len(chosen), 1), generator=generator)
    inputs = _varied(table, table.frames[chosen].gather(1, place), generator, device, recipe)[:, 0]
    with lower_precision(device):
        logits = model.frame_logits(inputs.contiguous(memory_format=torch.channels_last))
    return cross_entropy(logits.float(), table.labels[chosen].to(device), label_smoothing=recipe.smoothing)


def _clip_loss(
    model: ViewClassifier, table: ClipTable, chosen: Tensor, generator: torch.Generator, recipe: ViewRecipe
) -> Tensor:
    """Return the loss of whole clips."""
    device = model.frame_head.weight.device
    inputs = _varied(table, table.frames[chosen], generator, device, recipe)
    truth = table.labels[chosen].to(device)
    with lower_precision(device):
        features = model.clip_features(inputs)
        logits = model.clip_logits(features)
        # keeps the classifier of single frames, which answers for stills, in step with the encoder, and not vice versa
        frame_logits = model.frame_head(features.detach()).flatten(0, 1)
    every_truth = truth.repeat_interleave(inputs.shape[1])
    of_frames = cross_entropy(frame_logits.float(), every_truth, label_smoothing=recipe.smoothing)
    return cross_entropy(logits.float(), truth, label_smoothing=recipe.smoothing) + of_frames


def _validate(model: ViewClassifier, table: ClipTable, stage: str) -> float:
    """Return balanced accuracy less a tenth of the log loss, by cine."""
    probabilities, truth, _ = cine_probabilities(model, table, "validation", stage)
    right = probabilities.argmax(axis=1) == truth
    recalls = [right[truth == k].mean() for k in np.unique(truth)]
    log_loss = -np.log(np.maximum(probabilities[np.arange(len(truth)), truth], 1e-6)).mean()
    return float(np.mean(recalls) - 0.1 * log_loss)


@dataclass(frozen=True)
class Stage:
    """One part of the training: ``name`` frames or clips, ``epochs`` of the ``total``, after ``done`` of them."""

    name: str
    epochs: int
    learning_rate: float
    done: int
    total: int


def stages_of(options: ViewOptions, temporal: str, *, is_going_on: bool) -> tuple[Stage, ...]:
    """Return the stages of a training; one that goes on from a published classifier has the frames behind it.

    Means over frames have nothing to learn from clips.
    """
    recipe = view_recipe(options)
    epochs = max(options.epochs or recipe.epochs, 2)
    rate = options.learning_rate or recipe.learning_rate
    if temporal == "mean":
        return (Stage("frames", epochs, rate, 0, epochs),)
    if is_going_on:
        return (Stage("clips", epochs, rate * recipe.clip_rate, 0, epochs),)
    first = min(max(round(epochs * FRAME_STAGE), 1), epochs - 1)
    return (
        Stage("frames", first, rate, 0, epochs),
        Stage("clips", epochs - first, rate * recipe.clip_rate, first, epochs),
    )


def learn_stage(
    model: ViewClassifier,
    table: ClipTable,
    options: ViewOptions,
    stage: Stage,
    *,
    kept: tuple[Path, str] | None = None,
    on_epoch: OnEpoch | None = None,
) -> Learned:
    """Train ``model`` in place for one stage, which has its part of ``options.max_minutes``.

    ``kept`` : the file of the state, in which a stage puts its own name, and its key; None: none is kept.
    """
    share = stage.epochs / stage.total
    recipe = view_recipe(options)
    loss = _frame_loss if stage.name == "frames" else _clip_loss
    return run_epochs(
        model,
        Recipe(
            epochs=stage.epochs,
            learning_rate=stage.learning_rate,
            weight_decay=recipe.weight_decay,
            warm_up=recipe.warm_up,
            clip_norm=recipe.clip_norm,
            max_minutes=None if options.max_minutes is None else options.max_minutes * share,
            patience=options.patience or None,
        ),
        batches=lambda g: table.draw(stage.name, options.batch_size or recipe.batch_size, g),
        loss=lambda m, chosen, g: loss(m, table, chosen, g, recipe),
        validate=lambda m: _validate(m, table, stage.name),
        seed=options.seed + stage.done,
        on_epoch=_counted(on_epoch, stage),
        should_stop=options.should_stop,
        state_path=kept[0].with_stem(f"{kept[0].stem}-{stage.name}") if kept else None,
        state_key=kept[1] if kept else "",
        log_dir=options.log_dir and options.log_dir / VIEW_CLASSIFIER / stage.name,
    )


def learn_views(
    model: ViewClassifier,
    table: ClipTable,
    options: ViewOptions,
    *,
    is_going_on: bool = False,
    kept: tuple[Path, str] | None = None,
    on_epoch: OnEpoch | None = None,
) -> Learned:
    """Train ``model`` in place through all its stages; return the weights of the last, the epochs and time of all."""
    outcomes = [
        learn_stage(model, table, options, stage, kept=kept, on_epoch=on_epoch)
        for stage in stages_of(options, model.config.temporal, is_going_on=is_going_on)
    ]
    epochs, wall_time_s = sum(o.epochs for o in outcomes), sum(o.wall_time_s for o in outcomes)
    return dataclasses.replace(outcomes[-1], epochs=epochs, wall_time_s=wall_time_s)


def _counted(on_epoch: OnEpoch | None, stage: Stage) -> OnEpoch | None:
    """Return ``on_epoch`` that counts the epochs of all stages; the time left includes the later ones'."""
    if on_epoch is None:
        return None

    def report(status: EpochStatus) -> None:
        later = stage.total - stage.done - status.total_epochs
        eta = status.eta_s * (1 + later / max(status.total_epochs - status.epoch, 1)) if status.eta_s else 0.0
        note = f"stage: {stage.name}"
        epoch = stage.done + status.epoch
        on_epoch(dataclasses.replace(status, epoch=epoch, total_epochs=stage.total, eta_s=eta, note=note))

    return report
