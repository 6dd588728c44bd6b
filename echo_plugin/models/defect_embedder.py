# SPDX-License-Identifier: Apache-2.0
"""The defect network: a crop around a septum -> an embedding -> angles to the class centres.

ResNet and ArcFace head as in the ASD/VSD paper; the centres are part of the module, so they are published with it.
Class ids follow the classes of the model's card.

ArcFace, SubCenter ArcFace and CosFace of pytorch-metric-learning, with gradients that stay finite.

ArcFace: Deng 2019, arXiv 1801.07698; SubCenter: Deng 2020, ECCV; CosFace: Wang 2018, arXiv 1801.09414.
Apart from ``defect_embedder`` because only training needs it and its library takes seconds to import.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from pytorch_metric_learning.losses import ArcFaceLoss, CosFaceLoss, SubCenterArcFaceLoss
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from echo_plugin.anatomy import DEFECTS
from echo_plugin.models.backbones import BODIES, build_body, standardise

HEADS = ("arcface", "subcenter", "cosface", "softmax")
LATER = {"may_be_absent": True}
"""Of fields that cards of earlier versions lack: their default is what those versions did."""


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
    """m of ArcFace, rad; the paper has 0.5. With the head "cosface" it is taken off the cosine."""
    temperature: float = 1.0
    """Divides the logits before the softmax; fitted on validation patients."""
    dropout: float = 0.0
    head: str = field(default="arcface", metadata=LATER)
    sub_centres: int = field(default=1, metadata=LATER)
    """Centres of each class; more than one with the head "subcenter"."""
    normal_id: int = field(default=0, metadata=LATER)
    """The class that is no defect."""
    is_standardised: bool = field(default=False, metadata=LATER)
    """Whether every crop is first brought to the same contrast."""
    cropping: str = field(default="union", metadata=LATER)
    """What was embedded, as ``septal_crops`` cuts it."""
    frame_focus: float = field(default=0.0, metadata=LATER)
    """How much the frames of a wall that look like a defect count more than its others; 0: detection scores alone."""
    focus: float = field(default=0.0, metadata=LATER)
    """How much a wall that looks like a defect counts more than the other wall of the same cine."""
    patient_temperature: float = field(default=1.0, metadata=LATER)
    """Divides what each wall says of a patient: its walls are not independent of one another."""
    evidence_bias: tuple[float, ...] = field(default=(), metadata=LATER)
    """Added, by class, to what each wall says of a patient; (): nothing."""
    shown_share: tuple[float, ...] = field(default=(), metadata=LATER)
    """By class, how often a wall that can show the defect of a patient does; (): always."""

    def __post_init__(self) -> None:
        for name in ("evidence_bias", "shown_share"):  # cards bring lists
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        lengths = {len(values) for values in (self.evidence_bias, self.shown_share) if values}
        if lengths - {self.classes} or not all(0 < share <= 1 for share in self.shown_share):
            msg = (
                f"Embedder has {self.classes} classes, evidence_bias {self.evidence_bias} and shown_share"
                f" {self.shown_share}; one number for each class, shares above 0 up to 1, are accepted."
            )
            raise ValueError(msg)
        if self.backbone not in BODIES:
            msg = f"Embedder backbone {self.backbone!r} is unknown; {sorted(BODIES)} are accepted."
            raise ValueError(msg)
        if self.head not in HEADS:
            msg = f"Embedder head {self.head!r} is unknown; {list(HEADS)} are accepted."
            raise ValueError(msg)
        temperatures = min(self.temperature, self.patient_temperature)
        if not (self.scale > 0 and temperatures > 0 and 0 <= self.margin_rad < 1.6):
            msg = (
                f"Embedder has scale {self.scale}, temperature {temperatures} and margin_rad {self.margin_rad};"
                " positive scale and temperature and a margin of 0 to 1.6 rad are accepted."
            )
            raise ValueError(msg)
        if not 0 <= self.normal_id < self.classes or (self.sub_centres > 1) != (self.head == "subcenter"):
            msg = (
                f"Embedder has {self.classes} classes, normal_id {self.normal_id}, head {self.head!r} and"
                f" {self.sub_centres} sub-centres; a normal_id below the classes and several sub-centres with the head"
                " 'subcenter' alone are accepted."
            )
            raise ValueError(msg)


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

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the (N, K) class probabilities: softmax of the logits over the temperature."""
        return (logits / self.config.temperature).softmax(dim=1)

    def evidence(self, walls: Tensor, shown: Tensor) -> Tensor:
        """Return (M, K) how much likelier each wall looks so in a patient with class k than in a normal heart, log.

        Most planes miss a small hole, so that a wall that looks normal hardly speaks against it, and one with a hole
        speaks for it: with v = ``shown_share`` and r the likelihood ratio of the picture it is log(1 - v + v r).
        ``walls`` (M, D) from `pool_walls`; ``shown`` (M, K) bool, what each can show: of the rest it says 0.
        """
        logits = self.logits(walls).double()
        bias = logits.new_tensor(self.config.evidence_bias or 0.0)
        share = logits.new_tensor(self.config.shown_share or 1.0)
        ratio = (logits - logits[:, [self.config.normal_id]]) / self.config.patient_temperature + bias
        said = torch.logaddexp((1 - share).clamp_min(1e-12).log().expand_as(ratio), share.log() + ratio)
        is_about = shown.to(said.device).clone()
        is_about[:, self.config.normal_id] = False
        return said.masked_fill(~is_about, 0.0)

    def signature(self, probabilities: Tensor) -> Tensor:
        """Return (N, D) unit vectors of (N, K) class probabilities: cosines say how likely two cines have one defect.

        The directions of the class centres, made orthogonal, weighted by the class probabilities. In the embeddings
        themselves machine, view and patient outweigh the defect: their cosines tell it far worse (see the README).
        """
        axes = torch.linalg.qr(self.centres.float().reshape(len(self.centres), self.config.classes, -1)[:, :, 0])[0]
        return normalize(probabilities @ axes.T, dim=1)

    def attention(self, logits: Tensor, weights: Tensor, shown: Tensor, focus: float) -> Tensor:
        """Return (N,) how much each of (N, K) logits counts, in all 1: weight times exp(focus * looks).

        ``looks`` : the logit of the best defect that it can show, ``shown`` (N, K) bool, less that of Normal, or of
        the defect that it cannot show yet looks like. One that can show no defect counts only where none can.
        """
        defects = shown.to(logits.device).clone()
        defects[:, self.config.normal_id] = False
        can_have = defects.any(dim=1)
        best, other = (logits.masked_fill(gone, -torch.inf).amax(dim=1) for gone in (~defects, defects))
        looks = torch.where(can_have, best - other, 0.0)
        counts = weights.to(looks).clamp_min(1e-6).log() + focus * looks
        return counts.masked_fill(~can_have & can_have.any(), -torch.inf).softmax(dim=0)

    def pool(self, embeddings: Tensor, weights: Tensor, shown: Tensor, focus: float) -> Tensor:
        """Return (1, D) one embedding of (N, D): their mean by `attention`.

        A defect is seen on some frames and on one wall; the mean by ``weights`` (``focus`` 0) drowns it in what is
        normal.
        """
        each = self.attention(self.logits(embeddings), weights, shown, focus)[:, None] * embeddings.float()
        pooled = each.sum(dim=0, keepdim=True)
        return pooled if self.config.head == "softmax" else normalize(pooled, dim=1)

    def pool_walls(
        self, embeddings: Tensor, weights: Tensor, shown: Tensor, walls: Sequence[object]
    ) -> tuple[Tensor, Tensor]:
        """Return (M, D) one embedding for each wall of a cine from its frames, and (M, K) what each can show.

        ``walls`` (N,) : what tells the wall of each crop from others.
        """
        pooled, first = [], []
        for wall in dict.fromkeys(walls):
            rows = [i for i, other in enumerate(walls) if other == wall]
            pooled.append(self.pool(embeddings[rows], weights[rows], shown[rows], self.config.frame_focus))
            first.append(rows[0])
        return torch.cat(pooled), shown[first]

    def pool_cine(self, walls: Tensor, shown: Tensor) -> tuple[Tensor, Tensor]:
        """Return (1, D) the embedding of a cine from its (M, D) walls, and (1, K) its logits.

        By what it cannot show, ``shown`` (M, K) bool, a wall says no more than by Normal: the rest is taken off.
        """
        logits = self.logits(walls)
        attention = self.attention(logits, torch.ones(len(walls)), shown, self.config.focus)[:, None]
        pooled = (attention * walls.float()).sum(dim=0, keepdim=True)
        length = pooled.new_ones(1, 1) if self.config.head == "softmax" else pooled.norm(dim=1, keepdim=True)
        excess = (logits - logits[:, [self.config.normal_id]]).clamp_min(0).masked_fill(shown.to(logits.device), 0)
        embedding = pooled / length.clamp_min(1e-12)
        return embedding, self.logits(embedding) - (attention * excess).sum(dim=0) / length.clamp_min(1e-12)

    def renew_head(self) -> None:
        """Begin anew what follows the backbone, with random weights."""
        if isinstance(self.project, nn.Linear):
            self.project.reset_parameters()
        if isinstance(self.norm, nn.BatchNorm1d):
            self.norm.reset_parameters()
        nn.init.normal_(self.centres, std=0.01)
        if self.config.head == "softmax":
            nn.init.zeros_(self.bias)


COSINE_BOUND = 1.0 - 1e-6
"""acos has an infinite slope at +-1; inside this bound it is below 1000 in single precision."""


class FiniteArcFaceLoss(ArcFaceLoss):
    """Cross-entropy of scaled cosines with an angular margin on the true class.

    Parameters
    ----------
    centres
        (D, K) parameter of the model, shared, not copied: the class centres belong to the published model.
    margin_rad
        Added to the angle to the true centre, rad (the library takes degrees).
    scale
        s of the paper: multiplies all cosines.
    """

    def __init__(self, centres: nn.Parameter, *, margin_rad: float, scale: float) -> None:
        D, K = centres.shape
        super().__init__(num_classes=K, embedding_size=D, margin=math.degrees(margin_rad), scale=scale)
        self.W = centres

    def get_cosine(self, embeddings: Tensor) -> Tensor:
        return super().get_cosine(embeddings).clamp(-COSINE_BOUND, COSINE_BOUND)


class FiniteSubCenterLoss(SubCenterArcFaceLoss):
    """ArcFace with several centres for each class, of which the nearest counts; ``centres`` (D, K * sub_centres)."""

    def __init__(self, centres: nn.Parameter, *, margin_rad: float, scale: float, sub_centres: int) -> None:
        D, columns = centres.shape
        super().__init__(
            num_classes=columns // sub_centres,
            embedding_size=D,
            margin=math.degrees(margin_rad),
            scale=scale,
            sub_centers=sub_centres,
        )
        self.W = centres

    def get_cosine(self, embeddings: Tensor) -> Tensor:
        return super().get_cosine(embeddings).clamp(-COSINE_BOUND, COSINE_BOUND)


class SharedCosFaceLoss(CosFaceLoss):
    """Cross-entropy of scaled cosines, that of the true class less ``margin`` (a cosine, not an angle)."""

    def __init__(self, centres: nn.Parameter, *, margin: float, scale: float) -> None:
        D, K = centres.shape
        super().__init__(num_classes=K, embedding_size=D, margin=margin, scale=scale)
        self.W = centres
