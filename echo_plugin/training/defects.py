# SPDX-License-Identifier: Apache-2.0
"""Training the defect embedder: ArcFace on crops round the septa, one answer per cine, calibrated on validation."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from echo_plugin.anatomy import DEFECTS
from echo_plugin.geometry import FloatArray
from echo_plugin.metrics import Cohort, classification_metrics
from echo_plugin.model_card import Metric, ModelCard
from echo_plugin.models.checkpoint import DEFECT_EMBEDDER, publish
from echo_plugin.models.defect_embedder import DefectEmbedder, EmbedderConfig
from echo_plugin.preprocess import normalise
from echo_plugin.runtime import choose_device
from echo_plugin.training.appearance import change_appearance
from echo_plugin.training.augment import CROP_MOTION, centre_affines, compose, random_affines, warp
from echo_plugin.training.datasets import LabelledCine, Progress, crop_frames, open_labelled_folder
from echo_plugin.training.loop import Recipe, balanced_batches, lower_precision, place, run_epochs
from echo_plugin.training.options import OnEpoch, TrainOptions
from echo_plugin.training.prepared_frames import PreparedFrames, prepare_crops, prepare_frames
from echo_plugin.training.provenance import build_card, cines_in, load_start, split_for, words_for_test

logger = logging.getLogger(__name__)

EPOCHS, BATCH_SIZE, LEARNING_RATE, FRAMES_PER_CINE = 30, 32, 5e-4, 8
ROOM = 1.35
"""Crops are kept this much wider than predictions see them: room to move in. Detected boxes are off by as much."""
PLAIN = 0.1
"""Part of the training crops whose look is left as it is."""


def train_defects(
    studies: Path,
    models: Path,
    options: TrainOptions,
    on_epoch: OnEpoch | None = None,
    progress: Progress | None = None,
) -> ModelCard:
    """Train the defect embedder on the cines of ``studies`` that have a defect label and septal boxes, and publish it.

    Raises
    ------
    TrainingDataError
        If fewer than three patients have both, or a part of the split has none.
    """
    torch.manual_seed(options.seed)
    labelled = open_labelled_folder(studies)
    most = options.frames_per_cine or FRAMES_PER_CINE
    cines = [cine for cine in labelled.cines if cine.annotation.defect and crop_frames(cine, most)]
    defaults = EmbedderConfig()
    config = EmbedderConfig(
        backbone=options.backbone or defaults.backbone,
        input_size_px=options.image_size or defaults.input_size_px,
        scale=options.scale or defaults.scale,
        margin_rad=defaults.margin_rad if options.margin_rad is None else options.margin_rad,
    )
    model = DefectEmbedder(config)
    start = load_start(model, DEFECT_EMBEDDER, models, options)
    split = split_for(cines, labelled.defects, start, models, options.seed)
    parts = {part: cines_in(part, split, cines, "a defect and boxes") for part in ("train", "validation", "test")}
    wide = 2 * round(config.input_size_px * ROOM / 2)
    crops = prepare_frames(
        labelled,
        [(cine, crop_frames(cine, most)) for cine in cines],
        prepare_crops(wide, wide / config.input_size_px),
        name=f"defects-{wide}",
        cache_dir=options.cache_dir,
        progress=progress,
    )
    parts = crops.readable(parts)
    place(model, choose_device(options.device))
    items = {part: crops.of(members) for part, members in parts.items()}
    labels = _labels(cines)[crops.cine]
    learned = run_epochs(
        model,
        Recipe(
            epochs=options.epochs or EPOCHS,
            learning_rate=options.learning_rate or LEARNING_RATE * start.rate_for(DEFECT_EMBEDDER),
            weight_decay=0.05,
            max_minutes=options.max_minutes,
        ),
        batches=lambda g: balanced_batches(
            items["train"], labels[items["train"]], options.batch_size or BATCH_SIZE, g, power=1.0
        ),
        loss=lambda m, chosen, g: _loss(m, crops.pixels[chosen], labels[chosen], g),
        validate=lambda m: _validate(m, crops, parts["validation"]),
        seed=options.seed,
        on_epoch=on_epoch,
        should_stop=options.should_stop,
        state_path=options.cache_dir / f"{DEFECT_EMBEDDER}.last.safetensors" if options.cache_dir else None,
    )
    embeddings = cine_embeddings(model, crops, parts["validation"])
    config = dataclasses.replace(config, temperature=_temperature(model, embeddings, parts["validation"]))
    model.config = config
    majority = int(torch.bincount(_labels(parts["train"]), minlength=len(DEFECTS)).argmax())
    metrics = _measure(model, crops, parts["test"], majority, words_for_test(labelled), options.seed)
    card = build_card(
        name=DEFECT_EMBEDDER,
        task="classification",
        architecture=f"{config.backbone}, {config.embedding_size}-d embedding, ArcFace",
        classes=tuple(defect.value for defect in DEFECTS),
        config=dataclasses.asdict(config)
        | {"majority_id": majority, "validation_measure": learned.best_metric, "epochs": learned.epochs},
        labelled=labelled,
        cines=cines,
        split=split,
        learned=learned,
        metrics=metrics,
        options=options,
        start=start,
    )
    return publish(models, learned.state, card, storage_dtype=torch.float16)


def _labels(cines: Sequence[LabelledCine]) -> Tensor:
    return torch.tensor([DEFECTS.index(c.annotation.defect) for c in cines if c.annotation.defect is not None])


def _loss(model: nn.Module, wide: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Return the ArcFace loss of wide crops (N, S', S') uint8, each moved and cut at random."""
    assert isinstance(model, DefectEmbedder)
    device = model.centres.device
    size, wide_size = model.config.input_size_px, wide.shape[-1]
    pixels = wide.to(device).float().div_(255)[:, None]
    moves = random_affines(len(wide), wide_size, CROP_MOTION, generator)
    pixels = warp(pixels, compose(centre_affines(len(wide), wide_size, size), moves), size)
    is_plain = (torch.rand(len(wide), generator=generator) < PLAIN).to(device)[:, None, None, None]
    pixels = torch.where(is_plain, pixels, change_appearance(pixels, generator))
    inputs = normalise(pixels[:, 0] * 255).contiguous(memory_format=torch.channels_last)
    with lower_precision(device):
        embeddings = model(inputs)
    return model.loss(embeddings.float(), labels.to(device))


@torch.no_grad()
def cine_embeddings(
    model: DefectEmbedder, crops: PreparedFrames, cines: Sequence[LabelledCine], *, batch_size: int = 64
) -> Tensor:
    """Return (N, D) the mean embedding of each cine's crops, cut as predictions cut them."""
    device = model.centres.device
    size, wide_size = model.config.input_size_px, crops.pixels.shape[-1]
    edge = (wide_size - size) // 2
    rows = []
    for cine in cines:
        middle = crops.pixels[crops.of([cine])][:, edge : edge + size, edge : edge + size]
        parts = []
        for first in range(0, len(middle), batch_size):
            inputs = normalise(middle[first : first + batch_size].to(device))
            with lower_precision(device):
                parts.append(model.eval()(inputs.contiguous(memory_format=torch.channels_last)).float().cpu())
        rows.append(torch.cat(parts).mean(dim=0))
    return torch.stack(rows)


def _validate(model: nn.Module, crops: PreparedFrames, cines: Sequence[LabelledCine]) -> float:
    """Return balanced accuracy less a tenth of the log loss, which moves where few cines leave the accuracy still."""
    assert isinstance(model, DefectEmbedder)
    truth = _labels(cines)
    probabilities = model.probabilities(cine_embeddings(model, crops, cines).to(model.centres.device)).cpu()
    right = (probabilities.argmax(dim=1) == truth).float()
    recalls = [float(right[truth == k].mean()) for k in range(len(DEFECTS)) if bool((truth == k).any())]
    log_loss = -probabilities[torch.arange(len(truth)), truth].clamp_min(1e-6).log().mean()
    return float(np.mean(recalls)) - 0.1 * float(log_loss)


def _temperature(model: DefectEmbedder, embeddings: Tensor, cines: Sequence[LabelledCine]) -> float:
    with torch.no_grad():
        logits = model.cosines(embeddings.to(model.centres.device)).cpu() * model.config.scale
    return fit_temperature(logits, _labels(cines))


def _measure(
    model: DefectEmbedder, crops: PreparedFrames, cines: Sequence[LabelledCine], majority: int, split: str, seed: int
) -> dict[str, Metric]:
    with torch.no_grad():
        embeddings = cine_embeddings(model, crops, cines).to(model.centres.device)
        probabilities: FloatArray = model.probabilities(embeddings).double().cpu().numpy()
    return classification_metrics(
        Cohort(tuple(cine.patient_id for cine in cines), split, seed),
        _labels(cines).numpy(),
        probabilities,
        classes=[defect.value for defect in DEFECTS],
        majority_id=majority,
    )


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature 0.1..10 that divides (N, K) logits to the smallest log loss on (N,) labels (Guo 2017)."""
    temperatures = torch.logspace(-1, 1, 201, dtype=torch.float64)
    scaled = logits.double()[None] / temperatures[:, None, None]
    losses = -scaled.log_softmax(dim=2)[:, torch.arange(len(labels)), labels].mean(dim=1)
    return float(temperatures[losses.argmin()])
