# SPDX-License-Identifier: Apache-2.0
"""The residual network of face recognition (Deng 2019, arXiv 1801.07698, sec. 3.2.2; Duta 2020, arXiv 2004.04989).

Parameters are named as in published ArcFace checkpoints (conv1, bn1, prelu, layer1..4, bn2, fc, features), so that
those load as they are. Made for 112 px; other inputs are pooled to the 7 x 7 cells that the last layer reads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

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
