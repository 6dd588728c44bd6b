# SPDX-License-Identifier: Apache-2.0
"""How the embeddings of the crops of a cine become one answer, and evidence on the patient, as a card decides it.

What is embedded, and when not to answer, is in ``defects``; predictions and trainings join crops by the same rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from echo_plugin.model_card import DefectDecision, ModelCard
from echo_plugin.models.defect_embedder import DefectEmbedder


@dataclass(frozen=True)
class DefectRule:
    """A network with its decision; ``normal_id`` : the class that is no defect."""

    embedder: DefectEmbedder
    decision: DefectDecision
    normal_id: int

    @classmethod
    def of(cls, embedder: DefectEmbedder, card: ModelCard) -> DefectRule:
        """Return the rule of a card, whose network is ``embedder``."""
        return cls(embedder, card.decision_as(DefectDecision), card.normal_id)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the (N, K) class probabilities: softmax of the logits over the temperature."""
        return (logits / self.decision.temperature).softmax(dim=1)

    def likelihood_ratios(self, walls: Tensor) -> Tensor:
        """Return (M, K) how much likelier each of (M, D) walls looks so with a class than normal, log, uncalibrated."""
        logits = self.embedder.logits(walls).double()
        return logits - logits[:, [self.normal_id]]

    def is_about(self, shown: Tensor) -> Tensor:
        """Return (M, K) bool: the defects that each wall can show, ``shown`` less Normal."""
        defects = shown.clone()
        defects[:, self.normal_id] = False
        return defects

    def evidence(self, walls: Tensor, shown: Tensor) -> Tensor:
        """Return (M, K) how much likelier each wall looks so in a patient with class k than in a normal heart, log.

        Most planes miss a small hole, so that a wall that looks normal hardly speaks against it, and one with a hole
        speaks for it: with v = ``shown_share`` and r the likelihood ratio of the picture it is log(1 - v + v r).
        ``walls`` (M, D) from `pool_walls`; ``shown`` (M, K) bool, what each can show: of the rest it says 0.
        """
        ratio = self.likelihood_ratios(walls)
        ratio = ratio / self.decision.patient_temperature + ratio.new_tensor(self.decision.evidence_bias or 0.0)
        return share_out(ratio, self.decision.shown_share).masked_fill(~self.is_about(shown.to(ratio.device)), 0.0)

    def signature(self, probabilities: Tensor) -> Tensor:
        """Return (N, D) unit vectors of (N, K) class probabilities: cosines say how likely two cines have one defect.

        The directions of the class centres, made orthogonal, weighted by the class probabilities. In the embeddings
        themselves machine, view and patient outweigh the defect: their cosines tell it far worse.
        """
        centres = self.embedder.centres.float()
        axes = torch.linalg.qr(centres.reshape(len(centres), self.embedder.config.classes, -1)[:, :, 0])[0]
        return normalize(probabilities @ axes.T, dim=1)

    def attention(self, logits: Tensor, weights: Tensor, shown: Tensor, focus: float) -> Tensor:
        """Return (N,) how much each of (N, K) logits counts, in all 1: weight times exp(focus * looks).

        ``looks`` : the logit of the best defect that it can show, ``shown`` (N, K) bool, less that of Normal, or of
        the defect that it cannot show yet looks like. One that can show no defect counts only where none can.
        """
        defects = self.is_about(shown.to(logits.device))
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
        attention = self.attention(self.embedder.logits(embeddings), weights, shown, focus)[:, None]
        pooled = (attention * embeddings.float()).sum(dim=0, keepdim=True)
        return pooled if self.embedder.config.head == "softmax" else normalize(pooled, dim=1)

    def pool_walls(
        self, embeddings: Tensor, weights: Tensor, shown: Tensor, walls: Sequence[object]
    ) -> tuple[Tensor, Tensor]:
        """Return (M, D) one embedding for each wall of a cine from its frames, and (M, K) what each can show.

        ``walls`` (N,) : what tells the wall of each crop from others.
        """
        pooled, first = [], []
        for wall in dict.fromkeys(walls):
            rows = [i for i, other in enumerate(walls) if other == wall]
            pooled.append(self.pool(embeddings[rows], weights[rows], shown[rows], self.decision.frame_focus))
            first.append(rows[0])
        return torch.cat(pooled), shown[first]

    def pool_cine(self, walls: Tensor, shown: Tensor) -> tuple[Tensor, Tensor]:
        """Return (1, D) the embedding of a cine from its (M, D) walls, and (1, K) its logits.

        By what it cannot show, ``shown`` (M, K) bool, a wall says no more than by Normal: the rest is taken off.
        """
        logits = self.embedder.logits(walls)
        attention = self.attention(logits, torch.ones(len(walls)), shown, self.decision.focus)[:, None]
        pooled = (attention * walls.float()).sum(dim=0, keepdim=True)
        is_linear = self.embedder.config.head == "softmax"
        length = pooled.new_ones(1, 1) if is_linear else pooled.norm(dim=1, keepdim=True).clamp_min(1e-12)
        excess = (logits - logits[:, [self.normal_id]]).clamp_min(0).masked_fill(shown.to(logits.device), 0)
        embedding = pooled / length
        return embedding, self.embedder.logits(embedding) - (attention * excess).sum(dim=0) / length


def share_out(ratio: Tensor, shown_share: Sequence[float]) -> Tensor:
    """Return log(1 - v + v r) of (M, K) log ratios, where a class shows in the part v of its patients; (): always."""
    share = ratio.new_tensor(shown_share or 1.0)
    return torch.logaddexp((1 - share).clamp_min(1e-12).log().expand_as(ratio), share.log() + ratio)
