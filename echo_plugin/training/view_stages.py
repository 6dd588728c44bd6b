# SPDX-License-Identifier: Apache-2.0
"""What the view classifier learns in its two stages: single frames first, then clips. Which data, whose, is elsewhere.

What is random about a picture is drawn once for a clip: its frames are turned by one angle, moved and changed alike,
for a view that shook from frame to frame would have no motion of its own. How, is in ``view_recipes``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from echo_plugin.models.checkpoint import VIEW_CLASSIFIER
from echo_plugin.models.view_classifier import ViewClassifier
from echo_plugin.preprocess import normalise
from echo_plugin.training.clips import ClipTable, cine_probabilities
from echo_plugin.training.loop import Learned, lower_precision, run_epochs
from echo_plugin.training.options import EpochStatus, OnEpoch, TrainOptions
from echo_plugin.training.recipe import Recipe
from echo_plugin.training.view_recipes import ViewRecipe, view_recipe

FRAME_STAGE = 0.6
"""Part of the epochs, and of the time, given to the first stage."""


def _varied(
    table: ClipTable, rows: Tensor, generator: torch.Generator, device: torch.device, recipe: ViewRecipe
) -> Tensor:
    """Return (B, T, 1, S, S) inputs of the frames ``rows`` (B, T); the frames of a clip are changed alike."""
    return normalise(recipe.vary(table.pixels[rows].to(device).float().div_(255), generator) * 255)


def _frame_loss(
    model: nn.Module, table: ClipTable, chosen: Tensor, generator: torch.Generator, recipe: ViewRecipe
) -> Tensor:
    """Return the loss of one random frame of each clip."""
    assert isinstance(model, ViewClassifier)
    device = model.frame_head.weight.device
    place = torch.randint(table.frames.shape[1], (len(chosen), 1), generator=generator)
    inputs = _varied(table, table.frames[chosen].gather(1, place), generator, device, recipe)[:, 0]
    with lower_precision(device):
        logits = model.frame_logits(inputs.contiguous(memory_format=torch.channels_last))
    return cross_entropy(logits.float(), table.labels[chosen].to(device), label_smoothing=recipe.smoothing)


def _clip_loss(
    model: nn.Module, table: ClipTable, chosen: Tensor, generator: torch.Generator, recipe: ViewRecipe
) -> Tensor:
    """Return the loss of whole clips."""
    assert isinstance(model, ViewClassifier)
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


def _validate(model: nn.Module, table: ClipTable, stage: str) -> float:
    """Return balanced accuracy less a tenth of the log loss, by cine."""
    assert isinstance(model, ViewClassifier)
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


def stages_of(options: TrainOptions, temporal: str, *, is_going_on: bool) -> tuple[Stage, ...]:
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
    options: TrainOptions,
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
    options: TrainOptions,
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
