# SPDX-License-Identifier: Apache-2.0
"""A logistic regression on what a frozen encoder says of frames: how much its features hold before any fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from echo_plugin.geometry import FloatArray
from echo_plugin.metrics import Cohort
from echo_plugin.model_card import Metric
from echo_plugin.models.view_classifier import ViewClassifier
from echo_plugin.preprocess import normalise
from echo_plugin.training.clips import ClipTable
from echo_plugin.training.loop import lower_precision


@torch.no_grad()
def encoder_features(model: ViewClassifier, pixels: Tensor, *, batch_size: int = 64) -> FloatArray:
    """Return the (N, D) embeddings of (N, S, S) uint8 frames."""
    device = model.frame_head.weight.device
    model.eval()
    rows = []
    for batch in torch.split(pixels, batch_size):
        with lower_precision(device):
            rows.append(model.features(normalise(batch.to(device))).float().cpu())
    features: FloatArray = torch.cat(rows).double().numpy()
    return features


def probe(features: FloatArray, labels: NDArray[np.int_], others: FloatArray) -> NDArray[np.int_]:
    """Return the (M,) classes of ``others`` (M, D) by a logistic regression of (N, D) features with (N,) labels.

    Features are scaled to unit deviation first; scikit-learn's own regularisation is left as it is.

    Raises
    ------
    ValueError
        If all labels are the same.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(np.unique(labels)) < 2:
        msg = f"A probe learns from {len(labels)} frames of one class only; two classes at least are accepted."
        raise ValueError(msg)
    regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    answers: NDArray[np.int_] = regression.fit(features, labels).predict(others)
    return answers


def probe_of_clips(
    model: ViewClassifier, table: ClipTable, patients: Sequence[str], *, words: str, seed: int
) -> dict[str, Metric]:
    """Return the accuracy of a probe of training patients' frames on test patients', one frame of each clip.

    Beside it stands what the commonest training class scores. ``patients`` : of the cines that ``table.cine`` counts.
    {}: all training frames are of one class.
    """
    train, test = table.parts["train"], table.parts["test"]
    labels, truth = table.labels[train].numpy(), table.labels[test].numpy()
    if len(np.unique(labels)) < 2:
        return {}
    features, others = (encoder_features(model, table.pixels[table.frames[clips, 0]]) for clips in (train, test))
    right = probe(features, labels, others) == truth
    cohort = Cohort(tuple(patients[cine] for cine in table.cine[test].tolist()), words, seed)
    baseline = float((truth == np.bincount(labels).argmax()).mean())
    return {"linear probe accuracy": cohort.mean(right.astype(np.float64), baseline)}
