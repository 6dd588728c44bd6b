# SPDX-License-Identifier: Apache-2.0
"""The network bodies of the defect embedder, for one grey channel, and the published weights they can begin with.

Weights made for three colours fit: what a grey picture gives, copied to three channels, is the sum of the first
convolution's kernels over its channels. Nothing is downloaded here.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from echo_plugin.errors import ModelMismatchError, ModelNotFoundError
from echo_plugin.models.iresnet import iresnet50
from echo_plugin.models.lean_torchvision import densenet121, resnet18, resnet50
from echo_plugin.models.state_keys import require_fitting

FACE_FILE = "iresnet50_arcface.pth"
"""Name under which --from face looks for a published ArcFace checkpoint, beside torchvision's own weights."""

UNREADABLE = (
    SafetensorError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    RuntimeError,
    ValueError,
    EOFError,
    LookupError,
)
"""What torch and safetensors raise on bytes that are no weights."""


@dataclass(frozen=True)
class Body:
    """How one body is made for grey pictures.

    ``first`` : name of the first convolution. ``head`` : name of the classifier that is taken off; None: its output is
    the embedding itself.
    """

    make: Callable[..., nn.Module]
    first: str
    head: str | None


BODIES = {
    "resnet18": Body(resnet18, "conv1", "fc"),
    "resnet50": Body(resnet50, "conv1", "fc"),
    "iresnet50": Body(iresnet50, "conv1", None),
    "densenet121": Body(densenet121, "features.conv0", "classifier"),
}


def build_body(name: str) -> tuple[nn.Module, int | None]:
    """Return a body for (N, 1, S, S) with random weights, and the width of its output; None: it is the embedding."""
    body = BODIES[name]
    network = body.make(weights=None)
    colour = network.get_submodule(body.first)
    assert isinstance(colour, nn.Conv2d)
    grey = nn.Conv2d(1, colour.out_channels, colour.kernel_size, colour.stride, colour.padding, bias=False)  # type: ignore[arg-type]
    nn.init.kaiming_normal_(grey.weight, mode="fan_out", nonlinearity="relu")
    network.set_submodule(body.first, grey)
    if body.head is None:
        return network, None
    head = network.get_submodule(body.head)
    assert isinstance(head, nn.Linear)
    network.set_submodule(body.head, nn.Identity())
    return network, head.in_features


def load_body(network: nn.Module, name: str, state: Mapping[str, Tensor], source: str) -> None:
    """Load the weights of a whole published network into a grey body; its classifier is passed over.

    Raises
    ------
    ModelMismatchError
        Naming the first key that is missing, of another shape, or unknown.
    """
    body = BODIES[name]
    given = {key: value for key, value in state.items() if not (body.head and key.startswith(f"{body.head}."))}
    first = f"{body.first}.weight"
    if first in given and given[first].ndim == 4 and given[first].shape[1] == 3:
        given[first] = given[first].sum(dim=1, keepdim=True)
    expected = network.state_dict()
    for key, value in expected.items():
        if key.endswith("num_batches_tracked"):  # older checkpoints lack them and nothing here reads them
            given.setdefault(key, value)
    require_fitting(given, expected, source=source, network=name)
    floating = {key: value.float() for key, value in given.items() if value.is_floating_point()}
    network.load_state_dict(floating, strict=False)  # but the counters of batches


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file or of a torch checkpoint; code in a checkpoint is never run.

    Raises
    ------
    ModelNotFoundError
        If there is no such file.
    ModelMismatchError
        If it is not a file of weights.
    """
    if not path.is_file():
        msg = f"Weights file {path} does not exist; name a .safetensors file or a torch checkpoint."
        raise ModelNotFoundError(msg)
    try:
        is_safe = path.suffix == ".safetensors"
        content: Any = load_file(path) if is_safe else torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as exc:
        msg = f"Weights file {path} is not valid: {str(exc).splitlines()[0] if str(exc) else type(exc).__name__}."
        raise ModelMismatchError(msg) from exc
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        msg = f"Weights file {path} holds no dictionary of named tensors; a state_dict is accepted."
        raise ModelMismatchError(msg)
    return {_modern_name(key): value for key, value in content.items()}


def _modern_name(key: str) -> str:
    """Return the name without the wrapper of parallel training; torchvision's old DenseNet names as the new ones."""
    key = key.removeprefix("module.")
    return re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.((?:[12])\.)", r"\1\2", key)


def face_file(name: str) -> Path:
    """Return the file of face-recognition weights.

    Raises
    ------
    ModelNotFoundError
        If the body is not iresnet50, or the file is not there.
    """
    if name != "iresnet50":
        msg = f"There are no face-recognition weights of {name}; train with --backbone iresnet50."
        raise ModelNotFoundError(msg)
    path = downloads() / FACE_FILE
    if not path.is_file():
        msg = (
            f"Face-recognition weights are not on this machine; put an iresnet50 checkpoint of insightface's"
            f" arcface_torch (backbone.pth) at {path}, or name the file with --from."
        )
        raise ModelNotFoundError(msg)
    return path


def downloads() -> Path:
    """Return the folder in which torch keeps downloaded weights (TORCH_HOME moves it)."""
    return Path(torch.hub.get_dir()) / "checkpoints"
