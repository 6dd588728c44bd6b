# SPDX-License-Identifier: Apache-2.0
"""The baseline without a network: histograms of oriented gradients (Dalal 2005) and a support vector machine."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from echo_plugin.geometry import FloatArray
from echo_plugin.training.defect_crops import DefectCrops, middle_of

CELL_PX, BLOCK_CELLS, ORIENTATIONS, SIDE_PX = 16, 2, 9, 128


def hog_features(crops: DefectCrops, items: Tensor) -> FloatArray:
    """Return (n, F) float64 of the crops ``items``, as predictions would cut them, at 128 px."""
    from skimage.feature import hog
    from skimage.transform import resize

    rows = [
        hog(
            resize(crop, (SIDE_PX, SIDE_PX), anti_aliasing=True),  # type: ignore[no-untyped-call]
            orientations=ORIENTATIONS,
            pixels_per_cell=(CELL_PX, CELL_PX),
            cells_per_block=(BLOCK_CELLS, BLOCK_CELLS),
            block_norm="L2-Hys",
        )
        for crop in middle_of(crops, items).numpy()
    ]
    return np.array(rows, dtype=np.float64)


def hog_svm_scores(crops: DefectCrops, learned_from: Tensor, asked: Tensor, seed: int) -> Tensor:
    """Return (n, K) float32: the decision values of the crops ``asked``, one for each class against the others.

    A class of which no crop was learned from has the lowest value of its row.
    """
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    labels = crops.labels[learned_from].numpy()
    machine = make_pipeline(StandardScaler(), LinearSVC(C=1e-3, class_weight="balanced", random_state=seed))
    machine.fit(hog_features(crops, learned_from), labels)
    values = np.asarray(machine.decision_function(hog_features(crops, asked)))
    values = np.stack([-values, values], axis=1) if values.ndim == 1 else values
    scores = np.repeat(values.min(axis=1, keepdims=True), len(crops.classes), axis=1)
    scores[:, np.unique(labels)] = values
    return torch.from_numpy(scores).float()
