# SPDX-License-Identifier: Apache-2.0
"""Clips for the view classifier: which frames are prepared for them, which belong to whom, what the model says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from torch import Tensor

from echo_plugin.cine import Cine
from echo_plugin.geometry import FloatArray
from echo_plugin.models.view_classifier import ViewClassifier, ViewConfig
from echo_plugin.preprocess import normalise
from echo_plugin.progress import Progress
from echo_plugin.training.datasets import LabelledCine, LabelledFolder
from echo_plugin.training.loop import balanced_batches, lower_precision
from echo_plugin.training.prepared_frames import PreparedFrames, prepare_frames, prepare_whole
from echo_plugin.views.sampling import LearnedTimes, choose_clips


def learned_times(labelled: LabelledFolder, cines: Sequence[LabelledCine]) -> LearnedTimes | None:
    """Return the median interval of frames and length of cines; None: none says when its frames were taken."""
    steps = [(labelled.folder.entry(cine.image_id).frame_time_ms, cine.frame_count) for cine in cines]
    known = np.array([(step, step * (count - 1)) for step, count in steps if step and count > 1])
    return LearnedTimes(*np.median(known, axis=0).tolist()) if len(known) else None


@dataclass(frozen=True)
class ClipChoice:
    """Which clips are prepared of a cine, by the function by which predictions choose theirs.

    ``counts`` : so many clips spread over the cine, then so many spread anew, and so on.
    """

    config: ViewConfig
    times: LearnedTimes | None
    counts: tuple[int, ...]

    def of(self, cine: Cine) -> NDArray[np.int64]:
        """Return (sum of ``counts``, T) 0-based frame indices."""
        return np.concatenate([choose_clips(self.config, self.times, cine, count) for count in self.counts])

    @property
    def facts(self) -> str:
        """What tells this choice from others."""
        return f"{self.config.sampling}-{self.config.frames_per_clip}-{self.counts}-{self.times}"

    def prepare(
        self,
        labelled: LabelledFolder,
        cines: Sequence[LabelledCine],
        cache_dir: Path | None,
        progress: Progress | None = None,
    ) -> PreparedFrames:
        """Return the frames of the clips of each cine, one clip after another; its times are read with its pixels."""
        size = self.config.input_size_px

        def prepare(cine: Cine, labels: LabelledCine, frame_indices: tuple[int, ...]) -> tuple[Tensor, NDArray[Any]]:
            chosen, place = np.unique(self.of(cine), return_inverse=True)
            pixels, targets = prepare_whole(size)(cine, labels, tuple(chosen.tolist()))
            return pixels[torch.from_numpy(place.ravel())], targets[place.ravel()]

        name = f"views-{size}-{self.facts}"
        choice = [(cine, ()) for cine in cines]
        return prepare_frames(labelled, choice, prepare, name=name, cache_dir=cache_dir, progress=progress)


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
