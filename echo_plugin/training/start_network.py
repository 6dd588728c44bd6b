# SPDX-License-Identifier: Apache-2.0
"""The network of the published model that a training goes on from, which decides what the options leave open."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from echo_plugin.anatomy import vocabulary_name
from echo_plugin.errors import ModelMismatchError, ModelNotFoundError
from echo_plugin.model_card import ModelCard
from echo_plugin.models.card_file import load_card
from echo_plugin.models.checkpoint import DEFECT_EMBEDDER, MASKED_AUTOENCODER, SEPTAL_DETECTOR, VIEW_CLASSIFIER
from echo_plugin.training.options import TrainOptions

EARLIEST = {"head": "arcface", "cropping": "union"}
"""What the card of a defect embedder means that says nothing of these."""

ASKED_BY = {
    "backbone": "--backbone",
    "head": "--head",
    "cropping": "--crops",
    "temporal": "--pooling",
    "sampling": "--sampling",
    "frames_per_clip": "--clip-frames",
    "chunks": "--chunks",
    "vocabulary": "--vocabulary",
}
"""The options that make a network another one; its card says what it is."""


def with_network_of_start(options: TrainOptions, name: str, models: Path) -> TrainOptions:
    """Return the options with what they leave open about the network as the model that they go on from has it.

    Where none is published, or they begin otherwise, they stay as they are. A given size stays too: weights of
    convolutions go on at another. Views that begin with a masked autoencoder take its encoder and its size.

    Raises
    ------
    ModelMismatchError
        If they ask for another network than the published one: it would be thrown away.
    """
    published = _published(options, name, models)
    if published is None:
        return options
    try:
        card = load_card(published.parent, published.name)
    except ModelNotFoundError:
        return options  # loading its weights will say so, if they are needed
    if (card.name, name) == (MASKED_AUTOENCODER, VIEW_CLASSIFIER):
        return dataclasses.replace(
            options,
            backbone=options.backbone or str(card.config["backbone"]),
            image_size=options.image_size or card.input_size_px,
        )
    if card.name != name or recipe_names_network(options, name):
        return options
    return _as_taught(options, card, published.parent)


def recipe_names_network(options: TrainOptions, name: str) -> bool:
    """Whether the recipe that was asked for is of a network of its own, as a paper has it."""
    return options.recipe != "ours" and name != SEPTAL_DETECTOR


def _published(options: TrainOptions, name: str, models: Path) -> Path | None:
    """Return the published model that the options begin with, without its ending; None: they begin otherwise."""
    if options.start.endswith(".safetensors"):
        return Path(options.start).with_suffix("")
    begun = {"starter": name, "views": VIEW_CLASSIFIER, "mae": MASKED_AUTOENCODER}.get(options.start)
    return None if begun is None else (options.starter or models) / begun


def _as_taught(options: TrainOptions, card: ModelCard, folder: Path) -> TrainOptions:
    """Return the options with what they leave open as ``card``, in ``folder``, has it; refuse what they contradict."""
    taught = _network_of(card)
    for key, found in taught.items():
        asked = getattr(options, key)
        if asked is not None and asked != found:
            msg = (
                f"Model {card.name} {card.version} in {folder} has {key} {found!r}, not {asked!r}; leave"
                f" {ASKED_BY[key]} out to go on with it, or begin another with --from scratch."
            )
            raise ModelMismatchError(msg)
    return dataclasses.replace(options, image_size=options.image_size or card.input_size_px, **taught)


def _network_of(card: ModelCard) -> dict[str, Any]:
    """Return the network of a card in the words of the options."""
    config = (EARLIEST if card.name == DEFECT_EMBEDDER else {}) | dict(card.config)
    taught = {key: config[key] for key in ASKED_BY if key in config}
    if taught.get("temporal") == "mean" and config.get("frames_per_clip") == 1:
        taught["temporal"] = "image"
    vocabulary = vocabulary_name(card.classes)
    return taught | ({"vocabulary": vocabulary} if vocabulary else {})
