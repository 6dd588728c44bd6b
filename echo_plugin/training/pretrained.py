# SPDX-License-Identifier: Apache-2.0
"""Weights to begin with: ImageNet's, and a view classifier's encoder; files are read in ``models.body_weights``."""

from __future__ import annotations

import contextlib
import pickle
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from echo_plugin.errors import ModelMismatchError, ModelNotFoundError
from echo_plugin.model_card import ModelCard
from echo_plugin.models.state_keys import require_fitting
from echo_plugin.models.view_classifier import ViewClassifier


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
