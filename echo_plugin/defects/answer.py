# SPDX-License-Identifier: Apache-2.0
"""From the septal boxes of a cine to its embedding, and from that to the defect with its evidence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from echo_plugin.anatomy import Defect, Septum
from echo_plugin.annotations import DefectPrediction, SeptalBox, ViewPrediction
from echo_plugin.cine import Cine, UltrasoundRegion
from echo_plugin.defects.abstention import is_suitable, reason_to_abstain
from echo_plugin.defects.septal_crops import SeptalCrop, choose_crops, shown_classes, whole_frames
from echo_plugin.model_card import ModelCard
from echo_plugin.models.defect_embedder import DefectEmbedder
from echo_plugin.preprocess import CONTEXT_MARGIN, best_boxes

DEFECT_FRAMES = 10
"""At most so many frames of a wall are embedded, each the best of its part of the cine: neighbours say the same."""


def crops_of(
    card: ModelCard, cine: Cine, boxes: Sequence[SeptalBox], frames: Sequence[int], region: UltrasoundRegion
) -> list[SeptalCrop]:
    """Return what the embedder of ``card`` looks at; whole frames when no septum was boxed."""
    margin = card.config.get("context_margin", CONTEXT_MARGIN)
    cropping = str(card.config.get("cropping", "union"))  # what cards of earlier versions mean
    crops = choose_crops(
        best_boxes(boxes),
        frames,
        DEFECT_FRAMES,
        cropping=cropping,
        margin=float(margin) if isinstance(margin, int | float) else CONTEXT_MARGIN,
    )
    return crops or whole_frames(cine, region, frames, DEFECT_FRAMES)


def join_crops(
    embedder: DefectEmbedder, card: ModelCard, crops: Sequence[SeptalCrop], each: Tensor, view: ViewPrediction | None
) -> tuple[Tensor, Tensor]:
    """Return (1, D) the embedding of a cine from (N, D) those of its crops, and (K,) what its walls say of a patient.

    Crops are weighed by detection scores. A wall that the view, if it is sure, does not ordinarily image says nothing.
    """
    scores = torch.tensor([crop.score for crop in crops], device=each.device)
    shown = shown_classes(crops, [Defect(name) for name in card.classes]).to(each.device)
    septa = [crop.septum for crop in crops]
    walls, can_show = embedder.pool_walls(each, scores, shown, septa)
    is_imaged = torch.tensor([is_suitable(septum, view) for septum in dict.fromkeys(septa)], device=each.device)
    said = embedder.evidence(walls, can_show & is_imaged[:, None])
    return embedder.pool_cine(walls, can_show), said.sum(dim=0)


def answer(
    embedder: DefectEmbedder,
    card: ModelCard,
    crops: Sequence[SeptalCrop],
    embedding: Tensor,
    view: ViewPrediction | None,
) -> DefectPrediction:
    """Return what the (1, D) embedding of a cine says; ``view`` : None where it was not asked for."""
    classes = [Defect(name) for name in card.classes]
    angles = np.degrees(embedder.angles(embedding)[0].double().cpu().numpy()).tolist()
    named = dict(zip(classes, embedder.probabilities(embedding)[0].tolist(), strict=True))
    is_whole_frame = crops[0].is_whole_frame
    septa = [crop.septum or Septum.UNSPECIFIED for crop in crops]
    return DefectPrediction(
        max(named, key=lambda defect: named[defect]),
        named,
        dict(zip(classes, angles, strict=True)),
        tuple(dict.fromkeys(crop.frame_index for crop in crops)),
        crops=() if is_whole_frame else tuple(crop.box for crop in crops),
        is_whole_frame=is_whole_frame,
        abstained=reason_to_abstain(card.config, min(angles), septa, view, is_whole_frame=is_whole_frame),
    )
