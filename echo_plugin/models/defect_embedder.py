# SPDX-License-Identifier: Apache-2.0
"""The defect network: a crop around a septum -> an embedding -> angles to the class centres.

ResNet and ArcFace head as in the ASD/VSD paper; the centres are part of the module, so they are published with it.
Class ids follow the classes of the model's card. How embeddings become an answer is in ``answer.defect_rule``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from echo_plugin.models.backbones import build_body, standardise
from echo_plugin.network_config import EmbedderConfig


class DefectEmbedder(nn.Module):
    """Embeddings of (N, 1, S, S) crops from ``preprocess.normalise``, and their comparison with the class centres.

    Embeddings have unit length, but for the head "softmax", whose logits need their length.
    """

    def __init__(self, config: EmbedderConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone, width = build_body(config.backbone)
        self.dropout = nn.Dropout(config.dropout)
        if width is None and config.embedding_size != 512:
            msg = f"Embedder backbone {config.backbone!r} gives embeddings of 512, not {config.embedding_size}."
            raise ValueError(msg)
        self.project = nn.Identity() if width is None else nn.Linear(width, config.embedding_size)
        # after the projection: keeps embeddings of a small training set from collapsing on one another
        self.norm = nn.Identity() if width is None else nn.BatchNorm1d(config.embedding_size)
        columns = config.classes * config.sub_centres
        self.centres = nn.Parameter(torch.randn(config.embedding_size, columns) * 0.01)  # (D, K * sub-centres)
        if config.head == "softmax":
            self.bias = nn.Parameter(torch.zeros(config.classes))

    def forward(self, crops: Tensor) -> Tensor:
        """Return the (N, D) embeddings of (N, 1, S, S) crops."""
        return self.embed_features(self.features(crops))

    def embed_features(self, features: Tensor) -> Tensor:
        """Return the (N, D) embeddings of what the backbone gave."""
        raw: Tensor = self.norm(self.project(self.dropout(features))).float()
        return raw if self.config.head == "softmax" else normalize(raw, dim=1)

    def features(self, crops: Tensor) -> Tensor:
        """Return what the backbone gives of (N, 1, S, S) crops."""
        found: Tensor = self.backbone(standardise(crops) if self.config.is_standardised else crops)
        return found

    def loss(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of (N, D) embeddings against (N,) int64 class ids."""
        if self.config.head == "softmax":
            return cross_entropy(self.logits(embeddings), labels)
        from echo_plugin.models.margin_losses import FiniteArcFaceLoss, FiniteSubCenterLoss, SharedCosFaceLoss

        scale, margin, loss = self.config.scale, self.config.margin_rad, None
        if self.config.head == "cosface":
            loss = SharedCosFaceLoss(self.centres, margin=margin, scale=scale)
        elif self.config.head == "subcenter":
            loss = FiniteSubCenterLoss(
                self.centres, margin_rad=margin, scale=scale, sub_centres=self.config.sub_centres
            )
        else:
            loss = FiniteArcFaceLoss(self.centres, margin_rad=margin, scale=scale)
        value: Tensor = loss(embeddings, labels)
        return value

    def cosines(self, embeddings: Tensor) -> Tensor:
        """Return the (N, K) cosines between embeddings (N, D) of any length and the (nearest) class centres."""
        each = normalize(embeddings.float(), dim=1) @ normalize(self.centres.float(), dim=0)
        return each.reshape(len(each), self.config.classes, self.config.sub_centres).amax(dim=2)

    def angles(self, embeddings: Tensor) -> Tensor:
        """Return the (N, K) angles to the class centres, rad, 0..pi."""
        return self.cosines(embeddings).clamp(-1.0, 1.0).acos()

    def logits(self, embeddings: Tensor) -> Tensor:
        """Return the (N, K) logits: scaled cosines, or the linear layer of the head "softmax"."""
        if self.config.head == "softmax":
            return embeddings.float() @ self.centres.float() + self.bias.float()
        return self.cosines(embeddings) * self.config.scale

    def renew_head(self) -> None:
        """Begin anew what follows the backbone, with random weights."""
        if isinstance(self.project, nn.Linear):
            self.project.reset_parameters()
        if isinstance(self.norm, nn.BatchNorm1d):
            self.norm.reset_parameters()
        nn.init.normal_(self.centres, std=0.01)
        if self.config.head == "softmax":
            nn.init.zeros_(self.bias)
