# SPDX-License-Identifier: Apache-2.0
"""Weights that others learned as the body of one of our networks: ImageNet's, a file of torchvision's, a view encoder.

Our networks see one grey channel; the first convolution of a colour network answers a grey picture with the sum of its
weights over the channels, so that sum takes its place.
"""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from echo_plugin.errors import ModelMismatchError, ModelNotFoundError
from echo_plugin.model_card import ModelCard

BODIES = ("backbone.body.", "backbone.")
"""Where our networks hold what torchvision made, by the beginning of its parameters' names."""

LEFT_OUT = re.compile(r"(features\.)?(fc|classifier|16)\.")
"""What a torchvision network has behind its last map of features: its classifier, MobileNet's widest layer."""


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


def file_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    """Return the weights of a torchvision network from its file, and what they are called; no code in it is run.

    Raises
    ------
    ModelNotFoundError
        If there is no such file.
    ModelMismatchError
        If the file holds anything but weights by name.
    """
    try:
        content = path.read_bytes()
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as exc:
        msg = f"Weights file {path} does not exist; name a torchvision network's .pth or a published .safetensors."
        raise ModelNotFoundError(msg) from exc
    except (pickle.UnpicklingError, RuntimeError, EOFError) as exc:
        msg = f"Weights file {path.name} cannot be read: it must hold weights by name and nothing else."
        raise ModelMismatchError(msg) from exc
    if isinstance(state, Mapping) and isinstance(state.get("model"), Mapping):  # a masked autoencoder's wrapper
        state = state["model"]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        msg = f"Weights file {path.name} does not hold weights by name; a torchvision network's state is accepted."
        raise ModelMismatchError(msg)
    return dict(state), f"{path.name} (sha256 {hashlib.sha256(content).hexdigest()[:12]})"


def load_body(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load the weights of a torchvision network into the body of ``model``; the rest stays as it is.

    Raises
    ------
    ModelMismatchError
        Naming the first weight that is missing, unknown or of another shape.
    """
    own = model.state_dict()
    prefix = next((beginning for beginning in BODIES if any(key.startswith(beginning) for key in own)), "encoder.")
    given = {key.removeprefix("features."): value for key, value in state.items() if not LEFT_OUT.match(key)}
    loaded = {}
    for key, value in own.items():
        name = key.removeprefix(prefix)
        if not key.startswith(prefix) or LEFT_OUT.match(name):
            continue
        if name not in given:
            if name.endswith("num_batches_tracked"):  # old files lack the count, which nothing here reads
                continue
            msg = f"Weights of {source} lack {name!r}, which the backbone has; use its backbone."
            raise ModelMismatchError(msg)
        found = given[name]
        if found.ndim == 4 and found.shape[1] == 3 and value.shape[1] == 1:
            found = found.sum(dim=1, keepdim=True)
        if found.shape != value.shape:
            msg = (
                f"Weights of {source}: {name!r} is {tuple(given[name].shape)}, the backbone takes"
                f" {tuple(value.shape)}; use its backbone."
            )
            raise ModelMismatchError(msg)
        loaded[key] = found.float() if found.is_floating_point() else found
    for name in given:
        if f"{prefix}{name}" not in own:
            msg = f"Weights of {source} have {name!r}, which the backbone lacks; use its backbone."
            raise ModelMismatchError(msg)
    model.load_state_dict(loaded, strict=False)


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
