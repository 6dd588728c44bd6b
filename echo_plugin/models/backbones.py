# SPDX-License-Identifier: Apache-2.0
"""The network bodies of the defect embedder, for one grey channel; what they can begin with is in ``body_weights``.

That of face recognition has its parameters named as in published ArcFace checkpoints (conv1, bn1, prelu, layer1..4,
bn2, fc, features), so that those load as they are. Made for 112 px; other inputs are pooled to the 7 x 7 cells that the
last layer reads. `standardise`, the first step of every network, gives each frame the same contrast.

References
----------
Deng 2019 (arXiv 1801.07698), sec. 3.2.2; Duta 2020 (arXiv 2004.04989)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from echo_plugin.errors import ModelNotFoundError
from echo_plugin.models.lean_torchvision import densenet121, resnet18, resnet50

CELLS = 7
DEPTHS = {"iresnet50": (3, 4, 14, 3)}
WIDTHS = (64, 128, 256, 512)


class FaceBlock(nn.Module):
    """Batch norm, 3 x 3, batch norm, PReLU, 3 x 3 with the stride, batch norm; added to the (projected) input."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.prelu = nn.PReLU(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or width_in != width:
            self.downsample = nn.Sequential(
                nn.Conv2d(width_in, width, 1, stride, bias=False),
                nn.BatchNorm2d(width),
            )

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x)))))
        out: Tensor = self.bn3(inner) + self.downsample(x)
        return out


class FaceResNet(nn.Module):
    """(N, 3, S, S) pictures -> (N, 512) embeddings that are not yet of unit length."""

    def __init__(self, depths: tuple[int, ...], embedding_size: int = 512) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.prelu = nn.PReLU(WIDTHS[0])
        width_in = WIDTHS[0]
        for number, (width, depth) in enumerate(zip(WIDTHS, depths, strict=True), start=1):
            blocks = [FaceBlock(width_in, width, 2), *(FaceBlock(width, width, 1) for _ in range(depth - 1))]
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
            width_in = width
        self.bn2 = nn.BatchNorm2d(width_in)
        self.fc = nn.Linear(width_in * CELLS * CELLS, embedding_size)
        self.features = nn.BatchNorm1d(embedding_size)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.prelu(self.bn1(self.conv1(x)))
        for number in range(1, len(WIDTHS) + 1):
            x = self.get_submodule(f"layer{number}")(x)
        cells = nn.functional.adaptive_avg_pool2d(self.bn2(x), CELLS)  # the identity at 112 px
        out: Tensor = self.features(self.fc(torch.flatten(cells, 1)))
        return out


def iresnet50(*, weights: None = None) -> FaceResNet:
    """Return the 50-layer network with random weights."""
    return FaceResNet(DEPTHS["iresnet50"])


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


LEAST_DEVIATION = 0.05
"""Of an input of ``preprocess.normalise``; a frame with less is nearly empty, and its noise is not blown up."""


def standardise(frames: Tensor) -> Tensor:
    """Return (..., 1, S, S) frames, each shifted and scaled to mean 0 and deviation 1 over its pixels."""
    exact = frames.float()
    deviation, mean = torch.std_mean(exact, dim=(-3, -2, -1), keepdim=True, correction=0)
    return ((exact - mean) / deviation.clamp_min(LEAST_DEVIATION)).to(frames.dtype)
