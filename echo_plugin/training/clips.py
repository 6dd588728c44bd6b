# SPDX-License-Identifier: Apache-2.0
"""Clips of prepared frames for the view classifier: which rows make one, which belong to whom, what the model says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from torch import Tensor

from echo_plugin.geometry import FloatArray
from echo_plugin.models.view_classifier import ViewClassifier
from echo_plugin.preprocess import normalise
from echo_plugin.training.datasets import LabelledCine
from echo_plugin.training.loop import balanced_batches, lower_precision
from echo_plugin.training.prepared_frames import PreparedFrames


@dataclass(frozen=True)
class ClipTable:
    """Clips of prepared frames: ``frames`` (N, T) rows of ``pixels``, ``labels`` (N,), ``cine`` (N,), clips by part."""

    pixels: Tensor
    frames: Tensor
    labels: Tensor
    cine: Tensor
    parts: Mapping[str, Tensor]

    @classmethod
    def of(
        cls, prepared: PreparedFrames, length: int, labels: Tensor, parts: Mapping[str, Sequence[LabelledCine]]
    ) -> ClipTable:
        """Return the clips of ``length`` neighbouring rows; ``labels`` by cine."""
        frames = torch.arange(len(prepared.pixels)).reshape(-1, length)
        cine = prepared.cine[::length]
        members = {
            part: torch.where(torch.isin(cine, prepared.cine[prepared.of(cines)]))[0] for part, cines in parts.items()
        }
        return cls(prepared.pixels, frames, labels[cine], cine, members)

    def draw(self, stage: str, batch_size: int, generator: torch.Generator) -> list[Tensor]:
        """Return an epoch's batches: every clip for its frames, or one clip of every cine; rarer views more often."""
        clips = self.parts["train"]
        if stage == "clips":
            clips = clips[torch.randperm(len(clips), generator=generator)]
            _, first = np.unique(self.cine[clips].numpy(), return_index=True)
            clips = clips[torch.from_numpy(first)]
            batch_size = max(batch_size // 2, 2)
        return balanced_batches(clips, self.labels[clips], batch_size, generator)


@torch.no_grad()
def clip_logits(
    model: ViewClassifier, table: ClipTable, chosen: Tensor, stage: str = "clips", *, batch_size: int = 16
) -> FloatArray:
    """Return (N, K) view logits of the clips ``chosen``; stage "frames": log of the mean over single frames."""
    device = model.frame_head.weight.device
    model.eval()
    rows = []
    for first in range(0, len(chosen), batch_size):
        inputs = normalise(table.pixels[table.frames[chosen[first : first + batch_size]]].to(device))
        with lower_precision(device):
            if stage == "clips":
                rows.append(model(inputs).float())
            else:
                logits = model.frame_logits(inputs.flatten(0, 1)).float()
                mean = logits.softmax(dim=1).reshape(*inputs.shape[:2], -1).mean(dim=1)
                rows.append(mean.clamp_min(1e-12).log())
    each: FloatArray = torch.cat(rows).double().cpu().numpy()
    return each


def cine_logits(
    model: ViewClassifier, table: ClipTable, part: str, stage: str
) -> tuple[list[FloatArray], NDArray[np.int_], NDArray[np.int_]]:
    """Return the logits of the clips of each cine, M times (n, K), (M,) true class ids and (M,) cine indices."""
    chosen = table.parts[part]
    each = clip_logits(model, table, chosen, stage)
    cines, place = np.unique(table.cine[chosen].numpy(), return_inverse=True)
    labels = table.labels[chosen].numpy()
    truth = np.array([labels[place == i][0] for i in range(len(cines))])
    return [each[place == i] for i in range(len(cines))], truth, cines


def cine_probabilities(
    model: ViewClassifier, table: ClipTable, part: str, stage: str
) -> tuple[FloatArray, NDArray[np.int_], NDArray[np.int_]]:
    """Return (M, K) mean probabilities over the clips of each cine, (M,) true class ids and (M,) cine indices."""
    logits, truth, cines = cine_logits(model, table, part, stage)
    return np.stack([softmax(clips, axis=1).mean(axis=0) for clips in logits]), truth, cines
