# SPDX-License-Identifier: Apache-2.0
"""Published models: ``<name>.safetensors`` with ``<name>.json``, its card, swapped so that nobody reads half a publish.

The card is the commit point: it names the SHA-256 of its weights. A publish

1. writes the new weights beside the old ones as ``.<name>.<sha256[:16]>.safetensors`` and syncs them,
2. replaces the card,
3. moves the new weights over ``<name>.safetensors``.

Killed before 2, the old pair is untouched; killed before 3, readers find the weights of step 1.
A reader hashes the very bytes it loads, and reads again when a publish came in between. A card for other classes than
its network's is refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from echo_plugin.anatomy import DETECTED_SEPTA, Defect, View
from echo_plugin.durable import fsync_directory, locked, remove_abandoned, write_atomically
from echo_plugin.errors import ModelMismatchError, ModelNotFoundError
from echo_plugin.model_card import ModelCard, card_to_json, load_card
from echo_plugin.models.body_weights import require_fitting
from echo_plugin.models.defect_embedder import DefectEmbedder
from echo_plugin.models.septal_detector import SeptalDetector
from echo_plugin.models.view_classifier import ViewClassifier
from echo_plugin.network_config import DetectorConfig, EmbedderConfig, ViewConfig

logger = logging.getLogger(__name__)

SEPTAL_DETECTOR = "septal_detector"
DEFECT_EMBEDDER = "defect_embedder"
VIEW_CLASSIFIER = "view_classifier"
MASKED_AUTOENCODER = "masked_autoencoder"

READ_ATTEMPTS = 20
READ_PAUSE_S = 0.05
"""A publish swaps its two files within milliseconds; a reader waits up to a second for it."""


def publish(
    directory: Path,
    model_state: Mapping[str, Tensor],
    card: ModelCard,
    *,
    storage_dtype: torch.dtype | None = None,
) -> ModelCard:
    """Publish weights with their card; readers see the old pair until they see the new one.

    Parameters
    ----------
    directory
        Where models live; created when missing.
    model_state
        ``state_dict()`` of the model, on any device.
    card
        ``sha256`` is filled in here.
    storage_dtype
        Stored type of the floating tensors of two or more axes (float16 halves a file); None: as they are.
        Reading gives float32 either way, so measure what was read.

    Returns
    -------
    ModelCard
        The card as published.
    """
    directory.mkdir(parents=True, exist_ok=True)
    state = {key: _stored(value, storage_dtype) for key, value in model_state.items()}
    content = save_safetensors(state, metadata={"name": card.name, "version": card.version})
    card = dataclasses.replace(card, sha256=hashlib.sha256(content).hexdigest())
    staged = _staged_path(directory, card)
    with locked(directory / ".publishing.lock"):
        # of this model alone: galleries and copies of starters are written here by others at the same time
        remove_abandoned(directory, lambda name: name.lstrip(".").startswith(f"{card.name}."))
        write_atomically(staged, content, mode=0o600)  # learned from patients
        write_atomically(directory / f"{card.name}.json", card_to_json(card).encode(), mode=0o600)  # the commit
        staged.replace(directory / f"{card.name}.safetensors")
        for leftover in directory.glob(f".{card.name}.*"):
            leftover.unlink(missing_ok=True)
        fsync_directory(directory)
    logger.info("Published %s %s (sha256 %s)", card.name, card.version, card.sha256[:12])
    return card


def load_weights(directory: Path, card: ModelCard) -> dict[str, Tensor]:
    """Return the float32 weights that ``card`` names, on the CPU.

    Raises
    ------
    ModelNotFoundError
        If the weights file is missing.
    ModelMismatchError
        If no file has the hash of the card: the weights are damaged, or a newer publish has replaced both.
    """
    found = "no file"
    for path in (directory / f"{card.name}.safetensors", _staged_path(directory, card)):
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            continue
        sha256 = hashlib.sha256(content).hexdigest()
        if sha256 == card.sha256:
            return _read_state(content, path)
        found = f"SHA-256 {sha256[:12]}"
    if found == "no file":
        msg = f"Model {card.name}: its card is in {directory} but its weights {card.name}.safetensors are not."
        raise ModelNotFoundError(msg)
    msg = f"Model {card.name}: weights have {found} but the card says {card.sha256[:12] or 'none'}; publish again."
    raise ModelMismatchError(msg)


def load_published(directory: Path, name: str) -> tuple[ModelCard, dict[str, Tensor]]:
    """Return a card and its own weights, reading again while a publish swaps them.

    Raises
    ------
    ModelNotFoundError, ModelMismatchError
        As `load_card` and `load_weights`, once waiting has not helped.
    """
    card = load_card(directory, name)
    for _ in range(READ_ATTEMPTS):
        try:
            return card, load_weights(directory, card)
        except (ModelMismatchError, ModelNotFoundError):
            time.sleep(READ_PAUSE_S)
            card = load_card(directory, name)
    return card, load_weights(directory, card)


def load_state(model: nn.Module, state: Mapping[str, Tensor], card: ModelCard) -> None:
    """Put the weights into the model, or say which key does not fit.

    Raises
    ------
    ModelMismatchError
        Naming the first key that is missing, unknown or of another shape.
    """
    require_fitting(state, model.state_dict(), source=f"Model {card.name}", network=card.architecture)
    model.load_state_dict(dict(state))


def require_classes(card: ModelCard, classes: tuple[str, ...]) -> None:
    """Raise ModelMismatchError unless the card's classes are ``classes``, in that order."""
    if card.classes != classes:
        msg = f"Model {card.name} tells apart {list(card.classes)}; {list(classes)} in this order is accepted."
        raise ModelMismatchError(msg)


def _staged_path(directory: Path, card: ModelCard) -> Path:
    return directory / f".{card.name}.{card.sha256[:16]}.safetensors"


def _stored(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    value = value.detach().cpu()
    if dtype is not None and value.is_floating_point() and value.ndim > 1:
        value = value.to(dtype)
    return value.contiguous().clone()


def _read_state(content: bytes, path: Path) -> dict[str, Tensor]:
    try:
        state = load_safetensors(content)
    except SafetensorError as exc:
        msg = f"Weights file {path.name} is not valid: {exc}."
        raise ModelMismatchError(msg) from exc
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def build_detector(card: ModelCard) -> SeptalDetector:
    """Return the septal detector of a card."""
    require_classes(card, tuple(septum.value for septum in DETECTED_SEPTA))
    with torch.random.fork_rng(devices=()):  # initial weights are thrown away: leave the caller's seed alone
        return SeptalDetector(card.network_as(DetectorConfig))


def build_embedder(card: ModelCard) -> DefectEmbedder:
    """Return the defect embedder of a card; its classes may be any defects that have a name here, and Normal."""
    known = [defect.value for defect in Defect]
    for name in card.classes:
        if name not in known:
            msg = f"Model {card.name} tells apart defect {name!r}; {known} are accepted."
            raise ModelMismatchError(msg)
    config = card.network_as(EmbedderConfig)
    if config.classes != len(card.classes) or Defect.NORMAL.value not in card.classes:
        msg = (
            f"Model {card.name}: its card names {list(card.classes)}, its network has {config.classes} classes;"
            " as many, one of them Normal, are accepted."
        )
        raise ModelMismatchError(msg)
    with torch.random.fork_rng(devices=()):
        return DefectEmbedder(config)


def build_view_classifier(card: ModelCard) -> ViewClassifier:
    """Return the view classifier of a card; its vocabulary may be any of standard views."""
    known = {view.value for view in View}
    for name in card.classes:
        if name not in known:
            msg = f"Model {card.name} tells apart view {name!r}; {sorted(known)} are accepted."
            raise ModelMismatchError(msg)
    config = card.network_as(ViewConfig)
    if config.classes != len(card.classes):
        msg = f"Model {card.name}: its card names {len(card.classes)} views but its network has {config.classes}."
        raise ModelMismatchError(msg)
    with torch.random.fork_rng(devices=()):
        return ViewClassifier(config)
