# SPDX-License-Identifier: Apache-2.0
"""Looking at a cine with the published models: a few frames, each in several ways, for `evidence`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from echo_plugin.acquisition.evidence import LOOKS, OVERLAPS_SHAPE, SCORES_SHAPE, Array, CineEvidence, probe_frames
from echo_plugin.anatomy import DETECTED_SEPTA
from echo_plugin.cine import Cine
from echo_plugin.geometry import box_iou
from echo_plugin.model_card import ModelCard
from echo_plugin.models.checkpoint import SEPTAL_DETECTOR, VIEW_CLASSIFIER
from echo_plugin.models.from_card import build_detector
from echo_plugin.models.septal_detector import SeptalDetector
from echo_plugin.predict import BATCH_FRAMES, EchoPipeline
from echo_plugin.preprocess import normalise, to_model_input
from echo_plugin.runtime import PublishedNetwork, Runtime

BRIGHTER = 1.25
"""Gain of the third look; the detector learned from pictures changed more than that."""


class CineProber:
    """The published detector and view classifier, asked about one cine at a time."""

    def __init__(self, models: Path, *, device: str = "auto") -> None:
        self.models = models
        self._runtime = Runtime.on(device)
        self._detector = PublishedNetwork(models, SEPTAL_DETECTOR, build_detector, self._runtime)
        self._pipeline = EchoPipeline(models, device=device)

    def probe(self, cine: Cine) -> CineEvidence:
        """Return the evidence of one cine.

        Raises
        ------
        ModelNotFoundError, ModelMismatchError
            If no usable detector is published.
        UnreadableCineError
            If the cine cannot be decoded.
        """
        frames = probe_frames(cine.frame_count)
        with self._detector.lock, torch.inference_mode():
            card, detector = self._detector.get()
            scores, overlaps, embedding = self._look(cine, frames[frames >= 0], card, detector)
        view = None
        if VIEW_CLASSIFIER in self._pipeline.cards():
            view = self._pipeline.predict(cine, tasks=("view",)).view
        return CineEvidence(
            frames,
            scores,
            overlaps,
            embedding,
            None if view is None else view.view,
            None if view is None else view.probability,
        )

    def _look(self, cine: Cine, frames: Array, card: ModelCard, detector: SeptalDetector) -> tuple[Array, Array, Array]:
        count, size = len(frames), card.input_size_px
        beside = np.where(frames + 1 < cine.frame_count, frames + 1, np.maximum(frames - 1, 0))
        wanted, places = np.unique(np.concatenate([frames, beside]), return_inverse=True)
        pixels, _ = to_model_input(cine, wanted.tolist(), size, device=self._runtime.device)
        first, second = (pixels[torch.as_tensor(part)] for part in np.split(places.reshape(-1), 2))
        third = (first.flip(-1).float() * BRIGHTER).clamp(0, 255).to(torch.uint8)
        best, features = self._detect(detector, torch.cat([first, second, third]))
        best = best.reshape(len(LOOKS), count, len(DETECTED_SEPTA), 5)
        best[2, :, :, [0, 2]] = size - best[2, :, :, [2, 0]]
        scores, overlaps = np.full(SCORES_SHAPE, np.nan), np.full(OVERLAPS_SHAPE, np.nan)
        scores[:count] = best[..., 4].transpose(1, 0, 2)
        if cine.frame_count == 1:
            scores[:, 1] = np.nan  # there is no frame beside it
        for look in range(1, len(LOOKS)):
            for frame, septum in np.argwhere((best[0, ..., 4] > 0) & (best[look, ..., 4] > 0)):
                if np.isfinite(scores[frame, look, septum]):
                    overlaps[frame, look - 1, septum] = box_iou(
                        best[0, frame, septum, :4], best[look, frame, septum, :4]
                    )[0, 0]
        mean = features[:count].mean(axis=0)
        return scores, overlaps, mean / max(float(np.linalg.norm(mean)), 1e-12)

    def _detect(self, detector: SeptalDetector, pixels: Tensor) -> tuple[Array, Array]:
        """Return (N, septa, 5) the best box and its score, 0 where there is none; (N, D) mean deepest features."""
        best = np.zeros((len(pixels), len(DETECTED_SEPTA), 5))
        features: list[Tensor] = []

        def keep(_module: object, _inputs: object, maps: dict[str, Tensor]) -> None:
            features.append(list(maps.values())[-1].float().mean(dim=(2, 3)).cpu())

        hook = detector.backbone.body.register_forward_hook(keep)
        try:
            size = BATCH_FRAMES[self._runtime.device.type]
            for start in range(0, len(pixels), size):
                answers = detector(normalise(pixels[start : start + size], self._runtime.dtype))
                for row, answer in enumerate(answers, start=start):
                    _keep_best(best[row], answer)
        finally:
            hook.remove()
        return best, torch.cat(features).numpy()


def _keep_best(best: Array, answer: dict[str, Tensor]) -> None:
    """Write the first, that is the best, box of each septum to (septa, 5) ``best``."""
    labels = answer["labels"].cpu().numpy()
    boxes, scores = answer["boxes"].double().cpu().numpy(), answer["scores"].double().cpu().numpy()
    for septum in range(len(best)):
        found = np.flatnonzero(labels == septum)
        if len(found):
            best[septum, :4], best[septum, 4] = boxes[found[0]], scores[found[0]]
