# SPDX-License-Identifier: Apache-2.0
"""The network bodies of the defect embedder, for one grey channel; what they can begin with is in ``body_weights``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from echo_plugin.errors import ModelNotFoundError
from echo_plugin.models.iresnet import iresnet50
from echo_plugin.models.lean_torchvision import densenet121, resnet18, resnet50

FACE_FILE = "iresnet50_arcface.pth"
"""Name under which --from face looks for a published ArcFace checkpoint, beside torchvision's own weights."""


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
