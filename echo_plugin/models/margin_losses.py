# SPDX-License-Identifier: Apache-2.0
"""ArcFace, SubCenter ArcFace and CosFace of pytorch-metric-learning, with gradients that stay finite.

ArcFace: Deng 2019, arXiv 1801.07698; SubCenter: Deng 2020, ECCV; CosFace: Wang 2018, arXiv 1801.09414.
Apart from ``defect_embedder`` because only training needs it and its library takes seconds to import.
"""

from __future__ import annotations

import math

from pytorch_metric_learning.losses import ArcFaceLoss, CosFaceLoss, SubCenterArcFaceLoss
from torch import Tensor, nn

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
