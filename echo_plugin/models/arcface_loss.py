# SPDX-License-Identifier: Apache-2.0
"""ArcFace (Deng 2019, arXiv 1801.07698): pytorch-metric-learning's loss with gradients that stay finite.

Apart from ``defect_embedder`` because only training needs it and its library takes seconds to import.
"""

from __future__ import annotations

import math

from pytorch_metric_learning.losses import ArcFaceLoss
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
