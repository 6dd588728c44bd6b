# SPDX-License-Identifier: Apache-2.0
"""Files of weights that others learned, and how a whole published network becomes the body of one of ours.

Our networks see one grey channel; the first convolution of a colour network answers a grey picture with the sum of its
weights over the channels, so that sum takes its place. Weights fit a network as a whole or not at all. Code in a file
is never run.
"""

from __future__ import annotations

import argparse
import hashlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from echo_plugin.errors import ModelMismatchError, ModelNotFoundError
from echo_plugin.models.backbones import FaceResNet


def require_fitting(
    given: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, source: str, network: str, hint: str = ""
) -> None:
    """Raise unless ``given`` has the names and shapes of ``expected``, and no others.

    Parameters
    ----------
    source, network
        What the weights, and what they are for, are called.
    hint
        What to do, after the reason.

    Raises
    ------
    ModelMismatchError
        Naming the first key that is missing, of another shape, or unknown.
    """
    for key, value in expected.items():
        if key not in given:
            msg = f"{source} lacks {key!r}, which {network} has{hint}."
            raise ModelMismatchError(msg)
        if given[key].shape != value.shape:
            found, wanted = tuple(given[key].shape), tuple(value.shape)
            msg = f"{source} has {key!r} of shape {found}; {network} takes {wanted}{hint}."
            raise ModelMismatchError(msg)
    for key in given:
        if key not in expected:
            msg = f"{source} has {key!r}, which {network} lacks{hint}."
            raise ModelMismatchError(msg)


WRAPPERS = ("state_dict", "model")
"""Under which names checkpoints keep their weights beside the optimiser's and others."""

HEADS = ("fc", "classifier", "16")
"""What a torchvision network has behind its last map of features: its classifier, MobileNet's widest layer."""

UNREADABLE = (
    OSError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    RuntimeError,
    ValueError,
    EOFError,
    LookupError,
    AttributeError,
    TypeError,
)
"""What torch raises on a file that is no checkpoint."""


def read_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of a torch checkpoint by name, and what they are called.

    Raises
    ------
    ModelNotFoundError
        If there is no such file.
    ModelMismatchError
        If it holds anything but weights by name, alone or with what a training keeps beside them.
    """
    if not path.exists():
        msg = f"Weights file {path} does not exist; name a torch checkpoint or a published .safetensors."
        raise ModelNotFoundError(msg)
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:12]
        with torch.serialization.safe_globals([argparse.Namespace]):  # the arguments of the training, in MAE's files
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as exc:
        reason = str(exc).splitlines()[0] if str(exc) else type(exc).__name__
        msg = f"Weights file {path.name} cannot be read as weights by name ({reason}); a torch checkpoint is accepted."
        raise ModelMismatchError(msg) from exc
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        msg = f"Weights file {path.name} holds no dictionary of named tensors; a network's state_dict is accepted."
        raise ModelMismatchError(msg)
    weights = {key.removeprefix("module."): value for key, value in content.items()}  # which parallel training adds
    return weights, f"{path.name} (sha256 {digest})"


def _modern_name(key: str) -> str:
    """Return torchvision's old names in a DenseNet, which its files still have, as the new ones."""
    return re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.((?:[12])\.)", r"\1\2", key)


def load_body(body: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load the weights of a whole published network into a grey body; classifiers, of both, are passed over.

    Raises
    ------
    ModelMismatchError
        Naming the first weight that is missing, of another shape or unknown; nothing is loaded then.
    """
    heads = () if isinstance(body, FaceResNet) else HEADS  # the last layer of a face network is its embedding
    expected = {key: value for key, value in body.state_dict().items() if key.split(".")[0] not in heads}
    given = {}
    for key, value in state.items():
        name = _modern_name(key)
        name = name if name in expected else name.removeprefix("features.")
        if name.split(".")[0] in heads:
            continue
        is_colour = value.ndim == 4 and value.shape[1] == 3 and name in expected and expected[name].shape[1] == 1
        given[name] = value.sum(dim=1, keepdim=True) if is_colour else value
    for key, value in expected.items():
        if key.endswith("num_batches_tracked"):  # older checkpoints lack them and nothing here reads them
            given.setdefault(key, value)
    require_fitting(given, expected, source=source, network="the backbone", hint="; use its backbone")
    loaded = {key: value.float() if value.is_floating_point() else value for key, value in given.items()}
    body.load_state_dict(loaded, strict=False)  # but the classifier
