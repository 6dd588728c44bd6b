# SPDX-License-Identifier: Apache-2.0
"""The defect network: a crop around the septa -> a unit embedding -> angles to the class centres.

ResNet and ArcFace head as in the ASD/VSD paper; the centres are part of the module, so they are published with it.
Class ids follow ``anatomy.DEFECTS``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from echo_plugin.anatomy import DEFECTS
from echo_plugin.models.lean_torchvision import resnet18, resnet50

RESNETS = {"resnet18": resnet18, "resnet50": resnet50}


@dataclass(frozen=True)
class EmbedderConfig:
    """The numbers that rebuild a defect embedder; a model card repeats them."""

    backbone: str = "resnet18"
    input_size_px: int = 160
    embedding_size: int = 512
    classes: int = len(DEFECTS)
    scale: float = 16.0
    """s of ArcFace. The paper's 64 was made for thousands of identities; three classes saturate its softmax."""
    margin_rad: float = 0.3
    """m of ArcFace, rad; the paper has 0.5."""
    temperature: float = 1.0
    """Divides the scaled cosines before the softmax; fitted on validation patients."""
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.backbone not in RESNETS:
            msg = f"Embedder backbone {self.backbone!r} is unknown; {sorted(RESNETS)} are accepted."
            raise ValueError(msg)
        if not (self.scale > 0 and self.temperature > 0 and 0 <= self.margin_rad < 1.6):
            msg = (
                f"Embedder has scale {self.scale}, temperature {self.temperature} and margin_rad {self.margin_rad};"
                " positive scale and temperature and a margin of 0 to 1.6 rad are accepted."
            )
            raise ValueError(msg)


class DefectEmbedder(nn.Module):
    """Embeddings of (N, 1, S, S) crops from ``preprocess.normalise``, and their comparison with the class centres."""

    def __init__(self, config: EmbedderConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = RESNETS[config.backbone](weights=None)
        self.backbone.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
        nn.init.kaiming_normal_(self.backbone.conv1.weight, mode="fan_out", nonlinearity="relu")
        width = self.backbone.fc.in_features
        self.backbone.fc = nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.project = nn.Linear(width, config.embedding_size)
        # after the projection: keeps embeddings of a small training set from collapsing on one another
        self.norm = nn.BatchNorm1d(config.embedding_size)
        self.centres = nn.Parameter(torch.randn(config.embedding_size, config.classes) * 0.01)  # (D, K)

    def forward(self, crops: Tensor) -> Tensor:
        """Return the (N, D) unit embeddings of (N, 1, S, S) crops."""
        return normalize(self.norm(self.project(self.dropout(self.backbone(crops)))).float(), dim=1)

    def loss(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the mean ArcFace loss of (N, D) embeddings against (N,) int64 class ids."""
        from echo_plugin.models.arcface_loss import FiniteArcFaceLoss

        arcface = FiniteArcFaceLoss(self.centres, margin_rad=self.config.margin_rad, scale=self.config.scale)
        loss: Tensor = arcface(embeddings, labels)
        return loss

    def cosines(self, embeddings: Tensor) -> Tensor:
        """Return the (N, K) cosines between embeddings (N, D) of any length and the class centres."""
        return normalize(embeddings.float(), dim=1) @ normalize(self.centres.float(), dim=0)

    def angles(self, embeddings: Tensor) -> Tensor:
        """Return the (N, K) angles to the class centres, rad, 0..pi."""
        return self.cosines(embeddings).clamp(-1.0, 1.0).acos()

    def probabilities(self, embeddings: Tensor) -> Tensor:
        """Return the (N, K) class probabilities: softmax of cosines times scale over temperature."""
        return (self.cosines(embeddings) * (self.config.scale / self.config.temperature)).softmax(dim=1)
