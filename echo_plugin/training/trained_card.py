# SPDX-License-Identifier: Apache-2.0
"""The card of a model that has been trained, and publishing both; who is in which part is in ``provenance``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch

from echo_plugin.errors import ModelMismatchError, ModelNotFoundError
from echo_plugin.model_card import Metric, ModelCard, TrainingData
from echo_plugin.models.card_file import STARTERS, load_card
from echo_plugin.models.checkpoint import publish
from echo_plugin.runtime import TRAIN_COMMANDS
from echo_plugin.training.datasets import LabelledFolder, cines_digest
from echo_plugin.training.loop import Learned
from echo_plugin.training.nameless_files import FILES_KEY, NAMELESS_LIMITS
from echo_plugin.training.options import TrainOptions
from echo_plugin.training.phantom_folder import phantom_command
from echo_plugin.training.processes import agreed, is_first
from echo_plugin.training.provenance import Origin, fingerprints
from echo_plugin.training.splits import Split
from echo_plugin.training.start_weights import Start
from echo_plugin.training.state import forget_states

PHANTOM_LIMITS = (
    "Trained on phantoms only: synthetic children imaged by a convolution model."
    " Figures are figures on phantoms and say nothing about patients."
)
UNMEASURED_LIMITS = " Its metrics are missing: no annotated patient was left to measure with."
GREY_LIMITS = " Frames are made grey before the network sees them: of colour Doppler it sees the brightness alone."
FEW_LIMITS = "Learned from the annotations of one study folder; not tested on other hospitals or machines."


def build_card(
    origin: Origin,
    learned: Learned,
    options: TrainOptions,
    models: Path,
    *,
    name: str,
    task: str,
    architecture: str,
    classes: tuple[str, ...],
    config: Mapping[str, float | int | str | bool | list[float] | list[int]],
    metrics: Mapping[str, Metric],
) -> ModelCard:
    """Return the card of a model of labelled cines to be published to ``models``; ``config`` has ``input_size_px``."""
    labelled, split, start = origin.labelled, origin.split, origin.start
    data = training_data(labelled.provenance, len(origin.cines), cines_digest(origin.cines), split, start)
    size, seen = config["input_size_px"], fingerprints(split, start, data.digest)
    return ModelCard(
        name=name,
        version=next_version(start, name, models),
        task=task,
        architecture=architecture,
        classes=classes,
        input_size_px=int(size) if isinstance(size, int | float) else 0,
        config={
            **{k: v for k, v in config.items() if v == v},
            **seen,
            "split_digest": split.digest,
        },
        training_data=data,
        metrics={key: metric for key, metric in metrics.items() if math.isfinite(metric.value)},
        command=_commands(name, labelled, options, learned),
        wall_time_s=round(learned.wall_time_s, 1),
        seed=options.seed,
        licence=start.licence,
        limits=(PHANTOM_LIMITS if labelled.is_phantom else FEW_LIMITS)
        + GREY_LIMITS
        + ("" if metrics else UNMEASURED_LIMITS)
        + (NAMELESS_LIMITS if FILES_KEY in seen else ""),
    )


def training_data(provenance: str, cines: int, digest: str, split: Split, start: Start) -> TrainingData:
    """Return what a card says of so many ``cines``: their provenance, with that of the start, and who is on them."""
    return TrainingData(provenance + start.words, sum(split.sizes.values()), cines, digest, split.sizes)


def _commands(name: str, labelled: LabelledFolder, options: TrainOptions, learned: Learned) -> str:
    """Return the commands that repeat a training: that of the phantoms, if it had them alone, and its own."""
    train = options.command
    if not train:
        train = f"monailabel-echo train {TRAIN_COMMANDS[name]} --studies DIR --models DIR"
        train += f" --epochs {learned.epochs} --seed {options.seed}"
    made = phantom_command(labelled.folder.root) if labelled.is_phantom else None
    return f"{made} && {train}" if made else train


def next_version(start: Start, name: str, models: Path) -> str:
    """Return the version of a model that went on from ``start`` and is published to ``models``.

    It is above that of ``start``, of what is published there, and of the starter weights: a training from other
    weights would otherwise publish, under the same name, a number that there has been.
    """
    cards = [start.card] if start.card is not None and start.card.name == name else []
    for folder in (models, STARTERS):
        with suppress(ModelNotFoundError, ModelMismatchError):
            cards.append(load_card(folder, name))
    named = [card.version for card in cards if not card.version.isdecimal()]
    return f"{named[0]}+1" if named else str(max((int(card.version) for card in cards), default=0) + 1)


def publish_learned(models: Path, learned: Learned, card: ModelCard) -> ModelCard:
    """Publish what was learned, from the first process; there is nothing left to go on with then."""
    if is_first():
        card = publish(models, learned.state, card, storage_dtype=torch.float16)
        forget_states(models, card.name)
    return agreed(card)
