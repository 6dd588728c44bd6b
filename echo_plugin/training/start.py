# SPDX-License-Identifier: Apache-2.0
"""The weights that a training begins with: its own published ones, another model's encoder, a file, or none.

The network of the published model that a training goes on from decides what the options leave open. Of a defect
embedder the classes that it knows stay where they are, others are added behind them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import pickle
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from echo_plugin.anatomy import vocabulary_name
from echo_plugin.answer.preprocess import GREY_MEAN, GREY_STD
from echo_plugin.durable import locked
from echo_plugin.errors import EchoError, ModelMismatchError, ModelNotFoundError
from echo_plugin.model_card import ModelCard, load_card
from echo_plugin.models.body_weights import load_body, read_weights, require_fitting
from echo_plugin.models.checkpoint import (
    DEFECT_EMBEDDER,
    MASKED_AUTOENCODER,
    SEPTAL_DETECTOR,
    VIEW_CLASSIFIER,
    load_published,
    load_state,
)
from echo_plugin.models.defect_embedder import DefectEmbedder
from echo_plugin.models.septal_detector import SeptalDetector
from echo_plugin.models.view_classifier import ViewClassifier
from echo_plugin.models.vit import LICENCE, load_vit, say_licence
from echo_plugin.network_config import ViewConfig
from echo_plugin.training.loop import lock_path
from echo_plugin.training.options import TrainOptions
from echo_plugin.training.processes import broadcast, is_first

Options = TypeVar("Options", bound=TrainOptions)

OF_CLASSES = ("centres", "bias")
"""Weights of the embedder with something for each class in their last dimension."""


def known_classes(models: Path, options: TrainOptions) -> tuple[str, ...]:
    """Return the classes of the defect embedder that a training to ``models`` goes on from; (): from none.

    A recipe with a network of its own may begin anew instead: it learns what is labelled.
    """
    if options.start.endswith(".safetensors"):
        path = Path(options.start).with_suffix("")
    elif options.start == "starter" and options.recipe == "ours":
        path = (options.starter or models) / DEFECT_EMBEDDER
    else:
        return ()
    try:
        card = load_card(path.parent, path.name)
    except ModelNotFoundError:
        return ()
    return card.classes if card.name == DEFECT_EMBEDDER else ()


def with_centres_of(
    model: DefectEmbedder, classes: Sequence[str], state: Mapping[str, Tensor], card: ModelCard
) -> Mapping[str, Tensor]:
    """Return the weights of ``card`` with a centre for each of ``classes``: its own of those it knows, or the model's.

    ``classes`` : of the model, in the order of its ids; (): those of the card. Weights of another head stay as they
    are, and will not fit.
    """
    if tuple(classes) in ((), card.classes):
        return state
    known = [name for name in classes if name in card.classes]
    here, there = ([list(names).index(name) for name in known] for names in (classes, card.classes))
    new, gone = (sorted(set(one) - set(other)) for one, other in ((classes, card.classes), (card.classes, classes)))
    logger.warning("%s: %s are learned anew, %s no longer, %s go on", card.name, new, gone, known)
    found, own = dict(state), model.state_dict()
    for name in OF_CLASSES:
        if name in own and name in state and state[name].shape[-1] == len(card.classes) * model.config.sub_centres:
            mine = own[name].reshape(-1, len(classes), model.config.sub_centres).clone()
            theirs = state[name].reshape(-1, len(card.classes), model.config.sub_centres)
            if len(mine) == len(theirs):
                mine[:, here] = theirs[:, there].to(mine)
                found[name] = mine.reshape(own[name].shape)
    return found


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


def with_network_of_start(options: Options, name: str, models: Path) -> Options:
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
            backbone=options.backbone or card.network.backbone,
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


def _as_taught(options: Options, card: ModelCard, folder: Path) -> Options:
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
    taught = {key: getattr(card.network, key) for key in ASKED_BY if hasattr(card.network, key)}
    if taught.get("temporal") == "mean" and taught["frames_per_clip"] == 1:
        taught["temporal"] = "image"
    vocabulary = vocabulary_name(card.classes)
    return taught | ({"vocabulary": vocabulary} if vocabulary else {})


def imagenet_weights(backbone: str) -> tuple[dict[str, Tensor], str]:
    """Return torchvision's ImageNet weights of a backbone, fetched unless they are at hand, and what they are called.

    Raises
    ------
    ModelNotFoundError
        If torchvision has none, or they are not at hand and cannot be fetched; the message says where to put the file.
    """
    from torchvision.models import get_model_weights

    try:
        weights = get_model_weights(backbone).DEFAULT
    except ValueError as exc:
        msg = f"torchvision has no ImageNet weights for backbone {backbone!r}; start from scratch or name a file."
        raise ModelNotFoundError(msg) from exc
    try:
        with contextlib.redirect_stdout(sys.stderr):  # it announces its download there; stdout is for results
            state = weights.get_state_dict(progress=sys.stderr.isatty(), check_hash=True, weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as exc:
        place = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
        msg = (
            f"ImageNet weights of {backbone} are not at {place} and cannot be fetched"
            f" ({str(exc).splitlines()[0]}): put the file there, or start from scratch."
        )
        raise ModelNotFoundError(msg) from exc
    return state, f"ImageNet ({weights})"


def body_of(model: nn.Module) -> nn.Module:
    """Return the part of one of our networks that others publish too."""
    backbone = getattr(model, "backbone" if hasattr(model, "backbone") else "encoder")
    body: nn.Module = getattr(backbone, "body", backbone)
    return body


def load_encoder(model: nn.Module, state: Mapping[str, Tensor], card: ModelCard) -> None:
    """Load the convolutions and norms of a view classifier's frame encoder into the body of another network.

    Raises
    ------
    ModelMismatchError
        If the body is of another architecture; the message names the first parameter that the encoder lacks.
    """
    own = model.state_dict()
    bodies = [key for key in own if re.match(r"backbone\.(body\.)?(conv1|bn1|layer\d)\.", key)]
    encoder = {key: state.get(key.replace("backbone.body.", "backbone.")) for key in bodies}
    for key, value in encoder.items():
        if value is None or value.shape != own[key].shape:
            msg = f"Model {card.name}: its encoder has no {key} of shape {tuple(own[key].shape)}; use its backbone."
            raise ModelMismatchError(msg)
    if not bodies:
        msg = f"Model {card.name}: its encoder fits no part of this network; use its backbone."
        raise ModelMismatchError(msg)
    model.load_state_dict({key: value for key, value in encoder.items() if value is not None}, strict=False)


def load_view_encoder(model: ViewClassifier, state: Mapping[str, Tensor], card: ModelCard) -> None:
    """Load all of a view classifier's frame encoder into another view classifier; its heads stay as they are.

    Raises
    ------
    ModelMismatchError
        If the encoders are of different architectures; the message names the first parameter that does not fit.
    """
    parts = [{k: v for k, v in each.items() if k.startswith("backbone.")} for each in (state, model.state_dict())]
    require_fitting(*parts, source=f"Model {card.name}", network="the encoder", hint="; use its backbone")
    model.load_state_dict(parts[0], strict=False)


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
        """What they are called; "": there are none."""
        if self.card is not None:
            return f"{self.card.name} {self.card.version}"
        return f"the body of {self.body}" if self.body else ""

    def rate_for(self, name: str) -> float:
        """Return the part of the usual learning rate at which model ``name`` goes on: a fifth where it has learned.

        At the full rate a few labelled patients would undo what the published weights know before they teach anything.
        """
        return 0.2 if self.card is not None and self.card.name == name else 1.0


@contextmanager
def begun_training(options: Options, name: str, models: Path) -> Iterator[Options]:
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


class TrainingUnderWayError(EchoError):
    """Raised when the model is being trained by somebody else; wait for that training, or stop it."""


@contextmanager
def only_training(models: Path, name: str) -> Iterator[None]:
    """Keep other trainings of model ``name`` from the folder ``models`` meanwhile, whoever starts them.

    They share the state that a killed training goes on from; the first to publish would delete the other's. Of
    processes that train together the first holds the lock for all.

    Raises
    ------
    TrainingUnderWayError
        If another training holds it.
    """
    path, is_free = lock_path(models, name), True
    with ExitStack() as held:
        if is_first():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                held.enter_context(locked(path, timeout_s=0))
            except TimeoutError:
                is_free = False
        if not broadcast(is_free):
            msg = f"Model {name} in {models} is being trained already; wait for that training, or stop it."
            raise TrainingUnderWayError(msg)
        yield


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
        taught = getattr(card.network, key, wanted)
        if wanted is not None and taught != wanted:
            msg = f"Model {card.name}: its {key} is {taught!r}, not {wanted!r}; train from other weights."
            raise ModelMismatchError(msg)
    contrast = card.network.is_standardised
    seen: dict[str, Any] = {"is_standardised": contrast}
    if isinstance(card.network, ViewConfig):
        seen["border"] = card.network.border
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
