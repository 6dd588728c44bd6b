# SPDX-License-Identifier: Apache-2.0
"""The weights that a training begins with: its own published ones, another model's encoder, a file, or none."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from echo_plugin.errors import ModelMismatchError, ModelNotFoundError
from echo_plugin.model_card import ModelCard
from echo_plugin.models.checkpoint import MASKED_AUTOENCODER, VIEW_CLASSIFIER, load_published, load_state
from echo_plugin.models.septal_detector import SeptalDetector
from echo_plugin.models.vit_checkpoint import LICENCE, load_vit, say_licence
from echo_plugin.preprocess import GREY_MEAN, GREY_STD
from echo_plugin.training.options import TrainOptions
from echo_plugin.training.pretrained import file_weights, imagenet_weights, load_body, load_encoder

logger = logging.getLogger(__name__)

GREY = (GREY_MEAN, GREY_STD)


@dataclass(frozen=True)
class Start:
    """The weights a training goes on from: ``card`` is theirs; None: no model that was published here.

    ``body`` : what weights without a card are called.
    """

    card: ModelCard | None = None
    state: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    body: str = ""
    body_licence: str = ModelCard.licence

    @property
    def licence(self) -> str:
        """The licence of what is trained from here."""
        return self.card.licence if self.card is not None else self.body_licence

    @property
    def words(self) -> str:
        """What is added to the provenance of a training's own data."""
        if self.card is not None:
            return f", going on from {self.card.name} {self.card.version} ({self.card.trained_on})"
        return f", going on from the body of {self.body}" if self.body else ""

    def rate_for(self, name: str) -> float:
        """Return the part of the usual learning rate at which model ``name`` goes on: a fifth where it has learned.

        At the full rate a few labelled patients would undo what the published weights know before they teach anything.
        """
        return 0.2 if self.card is not None and self.card.name == name else 1.0


def load_start(model: nn.Module, name: str, models: Path, options: TrainOptions) -> Start:
    """Load the starting weights into ``model``, where the options want some that fit.

    Without a published model of its own a training starts from random weights; where there is one that does not fit, a
    warning is logged. Weights that were asked for by name and are absent, or do not fit, are an error.
    """
    if options.start == "scratch":
        return Start()
    if options.start == "imagenet":
        state, source = imagenet_weights(str(getattr(model.config, "backbone", "")))
        load_body(model, state, source)
        return Start(body=source)
    folder = options.starter or models
    if options.start == "views" and name != VIEW_CLASSIFIER:
        return _start_from(folder / VIEW_CLASSIFIER, model, name)
    if options.start == "mae" and name != MASKED_AUTOENCODER:
        return _start_from(folder / MASKED_AUTOENCODER, model, name)
    if options.start not in ("starter", "views", "mae"):
        return _start_from_file(Path(options.start), model, name)
    try:
        return _start_from(folder / name, model, name)
    except ModelNotFoundError:
        logger.info("No %s in %s to go on from: training starts from random weights", name, folder)
    except ModelMismatchError as exc:
        logger.warning("Training starts from random weights, not from the published ones: %s", exc)
    return Start()


def _start_from(published: Path, model: nn.Module, name: str) -> Start:
    """Load a published model, or the encoder of a view classifier into a network of another name."""
    card, state = load_published(published.parent, published.name)
    if card.name == MASKED_AUTOENCODER and name != MASKED_AUTOENCODER:
        load_vit(_vit_of(model, f"Model {card.name}"), state, f"Model {card.name}", GREY)
        _see_as(model, card)
    elif card.name == VIEW_CLASSIFIER and name != VIEW_CLASSIFIER:
        load_encoder(model, state, card)
    else:
        load_state(model, state, card)
        _see_as(model, card)
    logger.info("Training goes on from %s %s (%s)", card.name, card.version, card.trained_on)
    return Start(card, state)


def _see_as(model: nn.Module, card: ModelCard) -> None:
    """Let the network see its input as the weights of ``card`` were taught to.

    Raises
    ------
    ModelMismatchError
        If they were taught on other crops or with another head: that would be another network.
    """
    for key, earliest in (("cropping", "union"), ("head", "arcface")):
        taught, wanted = card.config.get(key, earliest), getattr(model.config, key, None)
        if wanted is not None and taught != wanted:
            msg = f"Model {card.name}: its {key} is {taught!r}, not {wanted!r}; train from other weights."
            raise ModelMismatchError(msg)
    contrast = bool(card.config.get("is_standardised", False))
    model.config = dataclasses.replace(model.config, is_standardised=contrast)  # type: ignore[type-var]
    if isinstance(model, SeptalDetector):
        model.backbone.is_standardised = contrast


def _start_from_file(path: Path, model: nn.Module, name: str) -> Start:
    if path.suffix == ".safetensors":  # published: its card, beside it, says whom it learned from
        return _start_from(path.with_suffix(""), model, name)
    state, source = file_weights(path)
    if "cls_token" not in state:
        load_body(model, state, source)
        return Start(body=source)
    load_vit(_vit_of(model, source), state, source, GREY)
    say_licence(source)
    model.config = dataclasses.replace(model.config, is_standardised=False)  # type: ignore[type-var]
    return Start(body=source, body_licence=LICENCE)


def _vit_of(model: nn.Module, source: str) -> nn.Module:
    """Return the vision transformer in ``model``, or refuse the weights of one."""
    for name in ("encoder", "backbone"):
        part = getattr(model, name, None)
        if isinstance(part, nn.Module) and hasattr(part, "patch_embed"):
            return part
    msg = f"{source} is of a vision transformer; train with the --backbone vit_... that it was made for."
    raise ModelMismatchError(msg)
