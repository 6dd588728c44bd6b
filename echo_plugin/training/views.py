# SPDX-License-Identifier: Apache-2.0
"""Training the view classifier in the two stages of the neonatal-view paper: single frames first, then clips."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from echo_plugin.anatomy import PAEDIATRIC, View
from echo_plugin.metrics import Cohort, classification_metrics
from echo_plugin.model_card import Metric, ModelCard
from echo_plugin.models.checkpoint import VIEW_CLASSIFIER, publish
from echo_plugin.models.view_classifier import ViewClassifier, ViewConfig, sample_clips
from echo_plugin.preprocess import normalise
from echo_plugin.runtime import choose_device
from echo_plugin.training.appearance import change_appearance
from echo_plugin.training.augment import VIEW_MOTION, random_affines, warp
from echo_plugin.training.clips import ClipTable, cine_probabilities
from echo_plugin.training.datasets import LabelledCine, Progress, open_labelled_folder
from echo_plugin.training.loop import Learned, Recipe, lower_precision, place, run_epochs
from echo_plugin.training.options import EpochStatus, OnEpoch, TrainOptions
from echo_plugin.training.prepared_frames import prepare_frames, prepare_whole
from echo_plugin.training.provenance import build_card, cines_in, load_start, split_for, words_for_test

logger = logging.getLogger(__name__)

EPOCHS, BATCH_SIZE, LEARNING_RATE, CLIPS_PER_CINE = 40, 32, 1e-3, 4
FRAME_STAGE = 0.6
"""Part of the epochs, and of the time, given to the first stage."""
SMOOTHING = 0.05
"""Of the labels: neighbouring views shade into one another."""
PLAIN = 0.1
"""Part of the training clips whose look is left as it is."""


def train_views(
    studies: Path,
    models: Path,
    options: TrainOptions,
    on_epoch: OnEpoch | None = None,
    progress: Progress | None = None,
    vocabulary: tuple[View, ...] = PAEDIATRIC,
) -> ModelCard:
    """Train the view classifier on the cines of ``studies`` whose view is labelled and in ``vocabulary``; publish it.

    Raises
    ------
    TrainingDataError
        If fewer than three patients have such a cine, or a part of the split has none.
    """
    torch.manual_seed(options.seed)
    labelled = open_labelled_folder(studies)
    cines = [cine for cine in labelled.cines if cine.annotation.view in vocabulary]
    defaults = ViewConfig(classes=len(vocabulary))
    config = dataclasses.replace(
        defaults,
        backbone=options.backbone or defaults.backbone,
        input_size_px=options.image_size or defaults.input_size_px,
        temporal=options.temporal or defaults.temporal,
        is_standardised=True,
        stem_dropout=0.1,  # the paper's 0.5 is for its 60 epochs of 800 clips and hundreds of epochs' worth of rotation
    )
    model = ViewClassifier(config)
    start = load_start(model, VIEW_CLASSIFIER, models, options)
    split = split_for(cines, labelled.defects, start, models, options.seed)
    parts = {part: cines_in(part, split, cines, "a view") for part in ("train", "validation", "test")}
    clips = options.frames_per_cine or CLIPS_PER_CINE
    frames = prepare_frames(
        labelled,
        [(cine, tuple(sample_clips(config, cine.frame_count, clips).ravel().tolist())) for cine in cines],
        prepare_whole(config.input_size_px),
        name=f"views-{config.input_size_px}",
        cache_dir=options.cache_dir,
        progress=progress,
    )
    parts = frames.readable(parts)
    place(model, choose_device(options.device))
    labels = torch.tensor([vocabulary.index(cine.annotation.view) for cine in cines if cine.annotation.view])
    table = ClipTable.of(frames, config.frames_per_clip, labels, parts)
    learned = _two_stages(model, table, options, on_epoch, is_going_on=start.card is not None)
    classes = tuple(view.value for view in vocabulary)
    metrics = _measure(model, table, cines, classes, words_for_test(labelled), options.seed)
    card = build_card(
        name=VIEW_CLASSIFIER,
        task="view",
        architecture=f"{config.backbone}, {config.temporal} of {config.frames_per_clip} {config.sampling} frames",
        classes=classes,
        config=dataclasses.asdict(config)
        | {
            "majority_id": _majority(table, len(classes)),
            "validation_measure": learned.best_metric,
            "epochs": learned.epochs,
        },
        labelled=labelled,
        cines=cines,
        split=split,
        learned=learned,
        metrics=metrics,
        options=options,
        start=start,
    )
    return publish(models, learned.state, card, storage_dtype=torch.float16)


def _augmented(table: ClipTable, rows: Tensor, generator: torch.Generator, device: torch.device) -> Tensor:
    """Return (B, T, 1, S, S) inputs of the frames ``rows`` (B, T); the frames of a clip are changed alike."""
    pixels = table.pixels[rows].to(device).float().div_(255)
    is_plain = (torch.rand(len(rows), generator=generator) < PLAIN).to(device)[:, None, None, None]
    pixels = torch.where(is_plain, pixels, change_appearance(pixels, generator))
    size = pixels.shape[-1]
    return normalise(warp(pixels, random_affines(len(rows), size, VIEW_MOTION, generator), size) * 255)


def _frame_loss(model: nn.Module, table: ClipTable, chosen: Tensor, generator: torch.Generator) -> Tensor:
    """Return the loss of one random frame of each clip."""
    assert isinstance(model, ViewClassifier)
    device = model.frame_head.weight.device
    place = torch.randint(table.frames.shape[1], (len(chosen), 1), generator=generator)
    inputs = _augmented(table, table.frames[chosen].gather(1, place), generator, device)[:, 0]
    with lower_precision(device):
        logits = model.frame_logits(inputs.contiguous(memory_format=torch.channels_last))
    return cross_entropy(logits.float(), table.labels[chosen].to(device), label_smoothing=SMOOTHING)


def _clip_loss(model: nn.Module, table: ClipTable, chosen: Tensor, generator: torch.Generator) -> Tensor:
    """Return the loss of whole clips."""
    assert isinstance(model, ViewClassifier)
    device = model.frame_head.weight.device
    inputs = _augmented(table, table.frames[chosen], generator, device)
    with lower_precision(device):
        logits = model(inputs)
    return cross_entropy(logits.float(), table.labels[chosen].to(device), label_smoothing=SMOOTHING)


def _validate(model: nn.Module, table: ClipTable, stage: str) -> float:
    """Return balanced accuracy less a tenth of the log loss, by cine."""
    assert isinstance(model, ViewClassifier)
    probabilities, truth, _ = cine_probabilities(model, table, "validation", stage)
    right = probabilities.argmax(axis=1) == truth
    recalls = [right[truth == k].mean() for k in np.unique(truth)]
    log_loss = -np.log(np.maximum(probabilities[np.arange(len(truth)), truth], 1e-6)).mean()
    return float(np.mean(recalls) - 0.1 * log_loss)


def _measure(
    model: ViewClassifier,
    table: ClipTable,
    cines: Sequence[LabelledCine],
    classes: Sequence[str],
    words: str,
    seed: int,
) -> dict[str, Metric]:
    """Return the figures on test patients; ``cines`` are those that ``table.cine`` counts."""
    probabilities, truth, members = cine_probabilities(model, table, "test", "clips")
    majority = _majority(table, len(classes))
    cohort = Cohort(tuple(cines[i].patient_id for i in members), words, seed)
    return classification_metrics(cohort, truth, probabilities, classes=classes, majority_id=majority)


def _majority(table: ClipTable, classes: int) -> int:
    return int(torch.bincount(table.labels[table.parts["train"]], minlength=classes).argmax())


def _counted(on_epoch: OnEpoch | None, done: int, total: int, stage: str) -> OnEpoch | None:
    """Return ``on_epoch`` that counts the epochs of both stages; the time left includes the later stage's."""
    if on_epoch is None:
        return None

    def report(status: EpochStatus) -> None:
        later = total - done - status.total_epochs
        eta = status.eta_s * (1 + later / max(status.total_epochs - status.epoch, 1)) if status.eta_s else 0.0
        on_epoch(
            dataclasses.replace(
                status, epoch=done + status.epoch, total_epochs=total, eta_s=eta, note=f"stage: {stage}"
            )
        )

    return report


def _two_stages(
    model: ViewClassifier,
    table: ClipTable,
    options: TrainOptions,
    on_epoch: OnEpoch | None,
    *,
    is_going_on: bool,
) -> Learned:
    """Train the frame classifier, then everything on clips; each stage has its part of the epochs and of the time.

    A classifier that goes on from a published one has its frame stage behind it.
    """
    epochs = max(options.epochs or EPOCHS, 2)
    first = min(max(round(epochs * FRAME_STAGE), 1), epochs - 1)

    def run(stage: str, stage_epochs: int, rate: float, done: int) -> Learned:
        share = stage_epochs / epochs
        loss = _frame_loss if stage == "frames" else _clip_loss
        return run_epochs(
            model,
            Recipe(
                epochs=stage_epochs,
                learning_rate=rate,
                weight_decay=0.05,
                max_minutes=None if options.max_minutes is None else options.max_minutes * share,
            ),
            batches=lambda g: table.draw(stage, options.batch_size or BATCH_SIZE, g),
            loss=lambda m, chosen, g: loss(m, table, chosen, g),
            validate=lambda m: _validate(m, table, stage),
            seed=options.seed + done,
            on_epoch=_counted(on_epoch, done, epochs, stage),
            should_stop=options.should_stop,
            state_path=options.cache_dir / f"{VIEW_CLASSIFIER}.last.safetensors" if options.cache_dir else None,
        )

    rate = options.learning_rate or LEARNING_RATE
    if model.config.temporal == "mean":  # has nothing to learn in the second stage
        return run("frames", epochs, rate, 0)
    if is_going_on:
        return run("clips", epochs, rate / 3, 0)
    frame_stage = run("frames", first, rate, 0)
    clip_stage = run("clips", epochs - first, rate / 3, first)
    wall_time_s = frame_stage.wall_time_s + clip_stage.wall_time_s
    return dataclasses.replace(clip_stage, epochs=frame_stage.epochs + clip_stage.epochs, wall_time_s=wall_time_s)
