# SPDX-License-Identifier: Apache-2.0
"""The weights that a training begins with: its own published ones, another model's encoder, a file, or none."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from echo_plugin.errors import ModelMismatchError, ModelNotFoundError
from echo_plugin.model_card import ModelCard
from echo_plugin.models.body_weights import load_body, read_weights
from echo_plugin.models.checkpoint import (
    MASKED_AUTOENCODER,
    VIEW_CLASSIFIER,
    load_published,
    load_state,
)
from echo_plugin.models.defect_embedder import DefectEmbedder
from echo_plugin.models.septal_detector import SeptalDetector
from echo_plugin.models.vit_checkpoint import LICENCE, load_vit, say_licence
from echo_plugin.preprocess import GREY_MEAN, GREY_STD
from echo_plugin.training.one_at_a_time import only_training
from echo_plugin.training.options import TrainOptions
from echo_plugin.training.pretrained import body_of, imagenet_weights, load_encoder
from echo_plugin.training.start_classes import with_centres_of
from echo_plugin.training.start_network import EARLIEST, recipe_names_network, with_network_of_start

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


@contextmanager
def begun_training(options: TrainOptions, name: str, models: Path) -> Iterator[TrainOptions]:
    """Keep other trainings of model ``name`` from ``models`` meanwhile; yield `with_network_of_start`.

    Raises
    ------
    TrainingUnderWayError
        If another training of it runs.
    ModelMismatchError
        If the options ask for another network than the published one.
    """
    with only_training(models, name):
        yield with_network_of_start(options, name, models)


def load_start(model: nn.Module, name: str, models: Path, options: TrainOptions, classes: Sequence[str] = ()) -> Start:
    """Load the starting weights into ``model``, where the options want some.

    Without a published model of its own a training starts from random weights, and so does a recipe with a network of
    its own that the published one does not fit. Other weights that do not fit, or that were asked for by name and are
    absent, are an error: publishing would throw away what a model has learned.

    ``classes`` : of a defect embedder, whose centres are found by name, or of a view classifier, which must be those of
    its weights; (): whatever they are.
    """
    if options.start == "scratch":
        return Start()
    if options.start == "imagenet":
        state, source = imagenet_weights(str(getattr(model.config, "backbone", "")))
        load_body(body_of(model), state, source)
        return Start(body=source)
    folder = options.starter or models
    if options.start == "views" and name != VIEW_CLASSIFIER:
        return _start_from(folder / VIEW_CLASSIFIER, model, name)
    if options.start == "mae" and name != MASKED_AUTOENCODER:
        try:
            return _start_from(folder / MASKED_AUTOENCODER, model, name)
        except ModelNotFoundError as exc:
            msg = f"{exc} Make it: monailabel-echo train mae --images DIR --models {models}"
            raise ModelNotFoundError(msg) from exc
    if options.start not in ("starter", "views", "mae"):
        return _start_from_file(Path(options.start), model, name, classes)
    try:
        return _start_from(folder / name, model, name, classes)
    except ModelNotFoundError:
        logger.info("No %s in %s to go on from: training starts from random weights", name, folder)
    except ModelMismatchError as exc:
        if not recipe_names_network(options, name):
            raise
        logger.warning("Training starts from random weights, not from the published ones: %s", exc)
    return Start()


def _start_from(published: Path, model: nn.Module, name: str, classes: Sequence[str] = ()) -> Start:
    """Load a published model, or the encoder of a view classifier into a network of another name."""
    card, state = load_published(published.parent, published.name)
    if card.name == MASKED_AUTOENCODER and name != MASKED_AUTOENCODER:
        load_vit(_vit_of(model, f"Model {card.name}"), state, f"Model {card.name}", GREY)
        _see_as(model, card)
    elif card.name == VIEW_CLASSIFIER and name != VIEW_CLASSIFIER:
        load_encoder(model, state, card)
    else:
        _require_same_views(classes, card)
        fitting = with_centres_of(model, classes, state, card) if isinstance(model, DefectEmbedder) else state
        load_state(model, fitting, card)
        _see_as(model, card)
    logger.info("Training goes on from %s %s (%s)", card.name, card.version, card.trained_on)
    return Start(card, state)


def _see_as(model: nn.Module, card: ModelCard) -> None:
    """Let the network see its input as the weights of ``card`` were taught to.

    Raises
    ------
    ModelMismatchError
        If they were taught on other crops or clips, or with another head: that would be another network, even where
        its weights have the same shapes.
    """
    for key in ("head", "cropping", "temporal", "sampling", "frames_per_clip", "chunks"):
        wanted = getattr(model.config, key, None)
        taught = card.config.get(key, EARLIEST.get(key, wanted))
        if wanted is not None and taught != wanted:
            msg = f"Model {card.name}: its {key} is {taught!r}, not {wanted!r}; train from other weights."
            raise ModelMismatchError(msg)
    contrast = bool(card.config.get("is_standardised", False))
    seen: dict[str, Any] = {"is_standardised": contrast}
    if card.name == VIEW_CLASSIFIER:
        seen["border"] = card.config.get("border", 0.0)
    model.config = dataclasses.replace(model.config, **seen)  # type: ignore[type-var]
    if isinstance(model, SeptalDetector):
        model.backbone.is_standardised = contrast


def _require_same_views(classes: Sequence[str], card: ModelCard) -> None:
    """Raise unless the views that a published classifier tells apart are ``classes``, in that order; (): any are.

    Of another vocabulary with as many views the weights would fit, and every view be called by another's name.
    """
    if card.name == VIEW_CLASSIFIER and tuple(classes) not in ((), card.classes):
        msg = (
            f"Model {card.name} {card.version} tells apart {', '.join(card.classes)}, not {', '.join(classes)}; name"
            " its --vocabulary to go on with it, or begin another with --from scratch."
        )
        raise ModelMismatchError(msg)


def _start_from_file(path: Path, model: nn.Module, name: str, classes: Sequence[str]) -> Start:
    if path.suffix == ".safetensors":  # published: its card, beside it, says whom it learned from
        return _start_from(path.with_suffix(""), model, name, classes)
    state, source = read_weights(path)
    if "cls_token" not in state:
        load_body(body_of(model), state, source)
        return Start(body=source)
    load_vit(_vit_of(model, source), state, source, GREY)
    say_licence(source)
    model.config = dataclasses.replace(model.config, is_standardised=False)  # type: ignore[type-var]
    return Start(body=source, body_licence=LICENCE)


def _vit_of(model: nn.Module, source: str) -> nn.Module:
    """Return the vision transformer in ``model``, or refuse the weights of one."""
    body = body_of(model)
    if hasattr(body, "patch_embed"):
        return body
    msg = f"{source} is of a vision transformer; train with the --backbone vit_... that it was made for."
    raise ModelMismatchError(msg)
