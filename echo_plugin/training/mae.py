# SPDX-License-Identifier: Apache-2.0
"""Training the masked autoencoder on ultrasound without labels; its encoder is where other trainings may begin.

What it sees and draws is shown as pictures for a person to judge.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from echo_plugin.answer.preprocess import normalise
from echo_plugin.answer.runtime import choose_device
from echo_plugin.cine import ByteArray
from echo_plugin.durable import write_atomically
from echo_plugin.errors import TrainingDataError
from echo_plugin.measure.classes import Cohort
from echo_plugin.model_card import Metric, ModelCard, Training
from echo_plugin.models.checkpoint import MASKED_AUTOENCODER
from echo_plugin.models.masked_autoencoder import Drawn, MaskedAutoencoder, from_patches, to_patches
from echo_plugin.network_config import MaeConfig
from echo_plugin.progress import Progress
from echo_plugin.training.augment import Motion, random_affines, warp
from echo_plugin.training.datasets import digest_of
from echo_plugin.training.loop import FOLDER, Learned, Recipe, lower_precision, run_epochs, shuffled_batches, state_path
from echo_plugin.training.mae_frames import (
    UnlabelledCine,
    UnlabelledFrames,
    cines_key,
    decode_frames,
    find_unlabelled,
    parts_given,
    parts_of,
    provenance_of,
)
from echo_plugin.training.options import EpochStatus, MaeOptions, OnEpoch
from echo_plugin.training.processes import first_process_first, is_first
from echo_plugin.training.provenance import cohort_of, known_parts, nameless_limits, next_version, publish_learned
from echo_plugin.training.splits import Split, split_by_patient
from echo_plugin.training.start import Start, begun_training, load_start

MOST_FRAMES = 2048
MEASURED_BATCH_SIZE = 64


@torch.no_grad()
def errors_of_frames(
    model: MaskedAutoencoder, frames: UnlabelledFrames, items: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the (N,) errors of the hidden patches of the frames ``items``, and those of the mean of the seen patches.

    ``noise`` : (N, L), chooses what is hidden.
    """
    device = model.mask_token.device
    model.eval()
    errors, plain = [torch.zeros(0)], [torch.zeros(0)]
    for chosen, drawn_noise in zip(
        torch.split(items, MEASURED_BATCH_SIZE), torch.split(noise, MEASURED_BATCH_SIZE), strict=True
    ):
        inputs = normalise(frames.pixels[chosen].to(device))
        with lower_precision(device):
            drawn = model(inputs, drawn_noise.to(device))
        errors.append(model.errors(inputs, drawn).cpu())
        plain.append(model.errors(inputs, mean_of_seen(model.targets(inputs), drawn.mask)).cpu())
    return torch.cat(errors), torch.cat(plain)


def mean_of_seen(targets: Tensor, mask: Tensor) -> Drawn:
    """Return every patch as the mean of those of its frame that are seen: ``targets`` (N, L, V), ``mask`` (N, L)."""
    seen = (1 - mask)[:, :, None]
    mean = (targets * seen).sum(dim=1, keepdim=True) / seen.sum(dim=1, keepdim=True)
    return Drawn(mean.expand_as(targets), mask)


def measure_on_test(
    model: MaskedAutoencoder, frames: UnlabelledFrames, items: Tensor, patients: list[str], *, words: str, seed: int
) -> dict[str, Metric]:
    """Return the error on frames of test patients, by patient, beside that of the mean patch; {}: there are none.

    ``patients`` : (N,) of the frames ``items``.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(items), generator=generator)[:MOST_FRAMES]
    if not len(chosen):
        return {}
    noise = torch.rand(len(chosen), model.decoder_pos_embed.shape[1] - 1, generator=generator)
    errors, plain = errors_of_frames(model, frames, items[chosen], noise)
    cohort = Cohort(tuple(patients[place] for place in chosen.tolist()), words, seed)
    baseline = cohort.mean(plain.double().numpy()).value
    return {"reconstruction_error": cohort.mean(errors.double().numpy(), baseline)}


HIDDEN_GREY = 0.5
_GAP_PX = 4


@torch.no_grad()
def reconstruction_panels(model: MaskedAutoencoder, frames: Tensor, noise: Tensor) -> ByteArray:
    """Return (N, S, 3 * S + gaps) uint8: each frame, what was seen of it, and the hidden patches drawn in.

    ``frames`` : (N, 1, S, S) from ``preprocess.normalise``; ``noise`` (N, L) chooses what is hidden.
    """
    model.eval()
    drawn, mask = model(frames, noise)
    true = to_patches(model.seen(frames), model.patch_px)
    if model.config.is_patch_normalised:
        drawn = drawn * (true.var(dim=2, keepdim=True) + 1e-6).sqrt() + true.mean(dim=2, keepdim=True)
    low, high = true.amin(dim=(1, 2), keepdim=True), true.amax(dim=(1, 2), keepdim=True)
    hidden = mask[:, :, None].bool()
    patches = [(rows - low) / (high - low).clamp_min(1e-6) for rows in (true, drawn)]
    seen = torch.where(hidden, torch.full_like(true, HIDDEN_GREY), patches[0])
    joined = torch.where(hidden, patches[1], patches[0])
    squares = [from_patches(rows, model.patch_px)[:, 0] for rows in (patches[0], seen, joined)]
    gap = torch.ones(len(frames), frames.shape[2], _GAP_PX, device=frames.device)
    row = torch.cat([squares[0], gap, squares[1], gap, squares[2]], dim=2)
    panels: ByteArray = (row.clamp(0, 1) * 255).round().byte().cpu().numpy()
    return panels


def write_reconstructions(model: MaskedAutoencoder, frames: Tensor, noise: Tensor, png: Path, columns: int = 2) -> None:
    """Write the panels of `reconstruction_panels` below and beside one another to a PNG, whole or not at all.

    They are patients' frames: the file is the user's alone to read.
    """
    panels = reconstruction_panels(model, frames, noise)
    N, H, W = panels.shape
    rows = -(-N // columns)
    sheet = np.full((rows * (H + _GAP_PX), columns * (W + 3 * _GAP_PX)), 255, np.uint8)
    for index, panel in enumerate(panels):
        top, left = index // columns * (H + _GAP_PX), index % columns * (W + 3 * _GAP_PX)
        sheet[top : top + H, left : left + W] = panel
    content = io.BytesIO()
    Image.fromarray(sheet).save(content, "PNG")
    png.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(png, content.getvalue(), mode=0o600)


EPOCHS, BATCH_SIZE, LEARNING_RATE = 100, 64, 1e-3
FRAMES_PER_CINE = 16
MOTION = Motion(rotation_deg=45.0, scale=0.35, stretch=0.1, shift=0.12, mirror=0.5)
"""Of every frame in every epoch: nothing here depends on the side."""
MOST_VALIDATION_FRAMES = 256
PICTURES = 8
LIMITS = (
    "Draws hidden patches of frames; it answers no question about a heart. Its encoder is a beginning for other"
    " trainings and is to be measured there."
)

DEFAULT_BACKBONE, DEFAULT_SIZE_PX = "vit_tiny_patch16", 224
DECODERS = {"vit_base_patch16": (512, 8, 16), "vit_small_patch16": (256, 4, 8), "vit_micro_patch8": (64, 1, 4)}
"""Width, depth and heads of the decoder by encoder; the first is the authors'."""
LIGHT_DECODER = (128, 2, 4)
"""Of the other encoders."""


def mae_config(options: MaeOptions) -> MaeConfig:
    """Return the network that the options ask for, with a decoder as light as its encoder."""
    backbone = options.backbone or DEFAULT_BACKBONE
    width, depth, heads = DECODERS.get(backbone, LIGHT_DECODER)
    return MaeConfig(
        backbone=backbone,
        input_size_px=options.image_size or DEFAULT_SIZE_PX,
        mask_ratio=options.mask_ratio,
        is_patch_normalised=options.is_patch_normalised,
        decoder_width=width,
        decoder_depth=depth,
        decoder_heads=heads,
    )


def train_mae(
    images: Sequence[Path],
    models: Path,
    options: MaeOptions,
    on_epoch: OnEpoch | None = None,
    progress: Progress | None = None,
) -> ModelCard:
    """Train on every frame below ``images`` and publish; pictures of what it draws go to ``models``/reconstructions.

    Raises
    ------
    TrainingDataError, FileNotFoundError
        If there is nothing to learn from.
    TrainingUnderWayError
        If the autoencoder of that folder is being trained already.
    """
    cines = find_unlabelled(images, options.frames_per_cine or FRAMES_PER_CINE, without=models)
    provenance = provenance_of(cines, images)
    with begun_training(options, MASKED_AUTOENCODER, models) as options:
        return _train(cines, provenance, models, options, on_epoch=on_epoch, progress=progress)


def _train(
    cines: Sequence[UnlabelledCine],
    provenance: str,
    models: Path,
    options: MaeOptions,
    *,
    on_epoch: OnEpoch | None,
    progress: Progress | None,
) -> ModelCard:
    torch.manual_seed(options.seed)
    config = mae_config(options)
    model = MaskedAutoencoder(config)
    start = load_start(model, MASKED_AUTOENCODER, models, options)
    split = _split(cines, start, models, options.seed)
    frames, parts = _prepared(cines, split, config.input_size_px, options.cache_dir or models / FOLDER, progress)
    model.to(choose_device(options.device))
    key = digest_of([cines_key(cines), split.digest, options.batch_size, repr(config)])
    learned = learn_mae(
        model,
        frames,
        parts,
        options,
        state_key=key,
        models=models,
        on_epoch=on_epoch,
    )
    patients = [cines[cine].patient_id for cine in frames.cine[parts["test"]].tolist()]
    words = f"test patients ({provenance})"
    metrics = measure_on_test(model, frames, parts["test"], patients, words=words, seed=options.seed)
    del frames  # its file is deleted with the state: Windows keeps a file that is mapped
    card = ModelCard(
        name=MASKED_AUTOENCODER,
        version=next_version(start, MASKED_AUTOENCODER, models),
        task="pretraining",
        architecture=f"masked autoencoder, {config.backbone}",
        classes=("pixels",),
        network=model.config,
        cohort=cohort_of(
            provenance,
            len(cines),
            cines_key(cines),
            split,
            start,
            files_without_patient=sum(cine.is_nameless for cine in cines),
        ),
        metrics=metrics,
        training=Training(
            command=options.command,
            wall_time_s=round(learned.wall_time_s, 1),
            seed=options.seed,
            epochs=learned.epochs,
            validation={} if math.isnan(learned.best_metric) else {"error": -learned.best_metric},
        ),
        licence=start.licence,
        limits=LIMITS + nameless_limits(start, has_nameless=any(cine.is_nameless for cine in cines)),
    )
    return publish_learned(models, learned, card)


def _prepared(
    cines: Sequence[UnlabelledCine], split: Split, size_px: int, directory: Path, progress: Progress | None
) -> tuple[UnlabelledFrames, dict[str, Tensor]]:
    """Return the frames of all cines, and which of them are in each part.

    Raises
    ------
    TrainingDataError
        If none is there to learn from.
    """
    with first_process_first():
        frames = decode_frames(cines, size_px, directory, MASKED_AUTOENCODER, progress)
    parts = {part: frames.of(members) for part, members in parts_of(cines, split).items()}
    if not len(parts["train"]):
        msg = f"None of the {len(cines)} cines is there to learn from; the others' patients are kept for measuring."
        raise TrainingDataError(msg)
    return frames, parts


def learn_mae(
    model: MaskedAutoencoder,
    frames: UnlabelledFrames,
    parts: dict[str, Tensor],
    options: MaeOptions,
    *,
    state_key: str,
    models: Path,
    on_epoch: OnEpoch | None,
) -> Learned:
    """Train ``model`` in place; what is measured is the error of hidden patches of validation frames, negative."""
    generator = torch.Generator().manual_seed(options.seed)
    chosen = parts["validation"][torch.randperm(len(parts["validation"]), generator=generator)][:MOST_VALIDATION_FRAMES]
    shown = (chosen if len(chosen) else parts["train"])[:PICTURES]
    noise = torch.rand(max(len(chosen), len(shown)), model.decoder_pos_embed.shape[1] - 1, generator=generator)

    def validate(averaged: MaskedAutoencoder) -> float:
        errors, _ = errors_of_frames(averaged, frames, chosen, noise[: len(chosen)])
        return -float(errors.mean())

    def report(status: EpochStatus) -> None:
        is_due = status.epoch % options.pictures_every == 0 or status.epoch == status.total_epochs
        if is_first() and is_due and not status.is_resumed:
            inputs = normalise(frames.pixels[shown].to(model.mask_token.device))
            png = models / "reconstructions" / f"epoch_{status.epoch:04d}.png"
            write_reconstructions(model, inputs, noise[: len(shown)].to(inputs.device), png)
        if on_epoch is not None:
            on_epoch(status)

    return run_epochs(
        model,
        _optimisation(options),
        batches=lambda g: shuffled_batches(parts["train"], options.batch_size or BATCH_SIZE, g),
        loss=lambda m, items, g: _loss(m, frames, items, g),
        validate=validate if len(chosen) else None,
        seed=options.seed,
        on_epoch=report,
        should_stop=options.should_stop,
        state_path=state_path(models, MASKED_AUTOENCODER),
        state_key=state_key,
        log_dir=options.log_dir and options.log_dir / MASKED_AUTOENCODER,
    )


def _optimisation(options: MaeOptions) -> Recipe:
    """Return the numbers of the optimisation, with what the options choose."""
    return Recipe(
        epochs=options.epochs or EPOCHS,
        learning_rate=options.learning_rate or LEARNING_RATE,
        weight_decay=0.05,
        warm_up=0.1,
        clip_norm=1.0,
        max_minutes=options.max_minutes,
        patience=options.patience or None,
    )


def _loss(model: MaskedAutoencoder, frames: UnlabelledFrames, chosen: Tensor, generator: torch.Generator) -> Tensor:
    device = model.mask_token.device
    pixels = frames.pixels[chosen].to(device).float()[:, None]
    size = pixels.shape[-1]
    inputs = normalise(warp(pixels, random_affines(len(chosen), size, MOTION, generator), size)[:, 0])
    noise = torch.rand(len(chosen), model.decoder_pos_embed.shape[1] - 1, generator=generator).to(device)
    with lower_precision(device):
        drawn = model(inputs, noise)
    return model.loss(inputs, drawn)


def _split(cines: Sequence[UnlabelledCine], start: Start, models: Path, seed: int) -> Split:
    """Return the split of the patients; whom a model or a data set has in a part stays there."""
    patients = sorted({cine.patient_id for cine in cines})
    fixed = parts_given(cines)
    known = known_parts(patients, fixed, start, models)
    return split_by_patient(dict.fromkeys(patients), seed=seed, fixed=fixed, known=known, may_be_unmeasured=True)
