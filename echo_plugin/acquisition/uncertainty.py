# SPDX-License-Identifier: Apache-2.0
"""How uncertain a detector is of frames and cines: entropy of calibrated scores and disagreement between augmentations.

In the manner of PPAL (Yang et al., CVPR 2024, arXiv 2211.11612): the entropy of every class is weighted by how
difficult the class is for this model. Boxes that move between neighbouring frames or in a mirrored picture count
besides, since entropy does not see a sure box in two places. What was found in each augmentation is kept rather than
one number, so that a better calibration needs no model to run again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from echo_plugin.anatomy import DETECTED_SEPTA, View
from echo_plugin.answer.predict import BATCH_FRAMES, EchoPipeline
from echo_plugin.answer.preprocess import normalise, to_model_input
from echo_plugin.answer.runtime import PublishedNetwork, Runtime
from echo_plugin.cine import Cine
from echo_plugin.geometry import box_iou
from echo_plugin.model_card import ModelCard
from echo_plugin.models.checkpoint import SEPTAL_DETECTOR, VIEW_CLASSIFIER, build_detector
from echo_plugin.models.septal_detector import SeptalDetector

FRAMES_SCORED = 6
"""Frames of a cine, evenly spread; a shorter cine has fewer."""

AUGMENTATIONS = ("as it is", "the frame beside it", "mirrored and brighter")
"""A septum that is surely seen stays where it is in all of them."""

SCORES_SHAPE = (FRAMES_SCORED, len(AUGMENTATIONS), len(DETECTED_SEPTA))
OVERLAPS_SHAPE = (FRAMES_SCORED, len(AUGMENTATIONS) - 1, len(DETECTED_SEPTA))
Array = NDArray[Any]


@dataclass(frozen=True)
class CineScores:
    """What the models found in one cine: how uncertain they are, and what the cine is like.

    ``frame_indices`` : (FRAMES_SCORED,) 0-based; -1: the cine is shorter.
    ``scores`` : (FRAMES_SCORED, augmentations, septa) score of the best box, 0: no box; NaN: no such picture.
    ``overlaps`` : (FRAMES_SCORED, augmentations - 1, septa) IoU of the best box with that of the frame as it is; NaN:
    one has no box.
    ``embedding`` : (D,) unit length, of the detector's last features.
    ``view, view_probability`` : None: no view classifier is published.
    """

    frame_indices: Array
    scores: Array
    overlaps: Array
    embedding: Array
    view: View | None = None
    view_probability: float | None = None

    def __post_init__(self) -> None:
        shapes = (self.frame_indices.shape, self.scores.shape, self.overlaps.shape, self.embedding.ndim)
        if shapes != ((FRAMES_SCORED,), SCORES_SHAPE, OVERLAPS_SHAPE, 1):
            accepted = f"{(FRAMES_SCORED,)}, {SCORES_SHAPE}, {OVERLAPS_SHAPE}, 1 axis are accepted"
            msg = f"Scores of a cine have shapes {shapes}; {accepted}."
            raise ValueError(msg)


def frames_to_score(frame_count: int) -> Array:
    """Return (FRAMES_SCORED,) frame indices evenly spread, each from the middle of its part; -1 where there are fewer.

    >>> frames_to_score(60).tolist(), frames_to_score(2).tolist()
    ([5, 15, 25, 35, 45, 55], [0, 1, -1, -1, -1, -1])
    """
    count = min(frame_count, FRAMES_SCORED)
    chosen = np.full(FRAMES_SCORED, -1, dtype=np.int64)
    chosen[:count] = ((np.arange(count) + 0.5) * frame_count / count).astype(np.int64)
    return chosen


ALPHA, BETA = 0.3, 0.2  # as PPAL sets them
FEWEST_PAIRS = 40
FEWEST_OF_EACH = 8
"""So many judged boxes, right and wrong, are needed before scores are calibrated by them."""

FRAMES_TO_DRAW = 3


@dataclass(frozen=True)
class Calibration:
    """From a detector's score to how likely the box is right: a logistic in the logit of the score (Platt).

    ``operating_score`` : the score that means one half. ``slope`` : 1 leaves the scores' own odds.
    ``difficulties`` : (septa,) 0..1, one less the mean of score and overlap with the true box. ``fitted_to`` : how many
    judged boxes; 0: there were too few, the operating score is all there is.
    """

    operating_score: float = 0.5
    slope: float = 1.0
    difficulties: tuple[float, ...] = (0.0,) * len(DETECTED_SEPTA)
    fitted_to: int = 0

    def probabilities(self, scores: Array) -> Array:
        """Return how likely boxes of these scores are right; 0 for score 0, NaN stays NaN."""
        with np.errstate(over="ignore"):
            odds = np.exp(-self.slope * (_logit(scores) - _logit(np.asarray(self.operating_score))))
        return np.where(scores == 0, 0.0, 1.0 / (1.0 + odds))

    @cached_property
    def weights(self) -> Array:
        """(septa,) weights as in PPAL: between 1 and 1 + BETA, more for a class that is difficult."""
        gamma = np.exp(1.0 / ALPHA) - 1.0
        return 1.0 + ALPHA * BETA * np.log(1.0 + gamma * np.asarray(self.difficulties))


def calibrate(operating_score: float | None, matches: Sequence[Array]) -> Calibration:
    """Return the calibration of a detector.

    Parameters
    ----------
    operating_score
        None: not known, 0.5.
    matches
        By cine that it did not learn from, (M, 3) septa: which, score of the best box of that septum (0: none), IoU
        with the true one (NaN: there is none, the box is a false alarm). With few of them the operating score is all
        there is.
    """
    middle = 0.5 if operating_score is None else operating_score
    every = np.concatenate([np.zeros((0, 3)), *matches])
    difficulties = tuple(_difficulty(every[every[:, 0] == septum]) for septum in range(len(DETECTED_SEPTA)))
    found = every[every[:, 1] > 0]
    is_right = found[:, 2] >= 0.5  # a false alarm, NaN, is not
    if len(found) < FEWEST_PAIRS or min(is_right.sum(), (~is_right).sum()) < FEWEST_OF_EACH:
        return Calibration(middle, difficulties=difficulties)
    from sklearn.linear_model import LogisticRegression

    fit = LogisticRegression().fit(_logit(found[:, 1])[:, None], is_right)
    slope, intercept = float(fit.coef_[0, 0]), float(fit.intercept_[0])
    if slope <= 0:  # surer is not better here: nothing to calibrate by
        return Calibration(middle, difficulties=difficulties)
    middle = 1.0 / (1.0 + np.exp(intercept / slope))
    return Calibration(float(np.clip(middle, 1e-4, 1 - 1e-4)), slope, difficulties, len(found))


def _difficulty(matches: Array) -> float:
    true = matches[np.isfinite(matches[:, 2])]  # how well septa that are there are found
    return float(1.0 - (true[:, 1] * true[:, 2]).mean()) if len(true) else 0.0


def _logit(scores: Array) -> Array:
    clipped = np.clip(scores, 1e-6, 1 - 1e-6)
    return np.log(clipped / (1.0 - clipped))


def binary_entropy(probabilities: Array) -> Array:
    """Return the entropy in bits of a yes that has these probabilities; 0 at 0 and 1, 1 at one half."""
    p = np.clip(probabilities, 1e-12, 1 - 1e-12)
    return -(p * np.log2(p) + (1 - p) * np.log2(1 - p))


def frame_uncertainties(scores: Array, overlaps: Array, calibration: Calibration) -> Array:
    """Return (..., frames) 0..1 for ``scores`` and ``overlaps`` as `CineScores` has them.

    Each septum adds the entropy of its mean probability, and the part of its box that lies elsewhere in another
    augmentation as far as there is a box. NaN: the cine has no such frame.
    """
    p = calibration.probabilities(scores)
    probability = _mean_of_known(p, axis=-2)
    moved = np.nan_to_num(1.0 - _mean_of_known(overlaps, axis=-2))
    uncertainty = (binary_entropy(probability) + probability * moved) / 2.0
    weights = calibration.weights
    return (uncertainty * weights).sum(axis=-1) / weights.sum()


def cine_uncertainties(frames: Array) -> Array:
    """Return (...,) the mean of the most uncertain frames of (..., frames): those a person would draw."""
    worst = -np.sort(-np.where(np.isnan(frames), -np.inf, frames), axis=-1)[..., :FRAMES_TO_DRAW]
    return _mean_of_known(np.where(np.isinf(worst), np.nan, worst), axis=-1)


def frames_to_draw(frame_indices: Array, frames: Array) -> tuple[int, ...]:
    """Return the frame indices of the most uncertain of the scored frames, ascending."""
    known = np.flatnonzero((frame_indices >= 0) & np.isfinite(frames))
    worst = known[np.argsort(-frames[known], kind="stable")[:FRAMES_TO_DRAW]]
    return tuple(sorted(frame_indices[worst].tolist()))


def _mean_of_known(values: Array, axis: int) -> Array:
    known = np.isfinite(values)
    count = np.where(known.any(axis=axis), known.sum(axis=axis), np.nan)
    return np.where(known, values, 0.0).sum(axis=axis) / count


BRIGHTER = 1.25
"""Gain of the third augmentation; the detector learned from pictures changed more than that."""


class CineScorer:
    """The published detector and view classifier, run on one cine at a time."""

    def __init__(self, models: Path, *, device: str = "auto") -> None:
        self.models = models
        self._runtime = Runtime.on(device)
        self._detector = PublishedNetwork(models, SEPTAL_DETECTOR, build_detector, self._runtime)
        self._pipeline = EchoPipeline(models, device=device)

    def score(self, cine: Cine) -> CineScores:
        """Return what the models find in one cine.

        Raises
        ------
        ModelNotFoundError, ModelMismatchError
            If no usable detector is published.
        UnreadableCineError
            If the cine cannot be decoded.
        """
        frames = frames_to_score(cine.frame_count)
        with self._detector.lock, torch.inference_mode():
            card, detector = self._detector.get()
            scores, overlaps, embedding = self._augmented(cine, frames[frames >= 0], card, detector)
        found = CineScores(frames, scores, overlaps, embedding)
        if VIEW_CLASSIFIER in self._pipeline.cards() and (view := self._pipeline.predict(cine, tasks=("view",)).view):
            found = replace(found, view=view.view, view_probability=view.probability)
        return found

    def _augmented(
        self, cine: Cine, frames: Array, card: ModelCard, detector: SeptalDetector
    ) -> tuple[Array, Array, Array]:
        """Return scores, overlaps and embedding of `CineScores`."""
        count, size = len(frames), card.input_size_px
        beside = np.where(frames + 1 < cine.frame_count, frames + 1, np.maximum(frames - 1, 0))
        wanted, positions = np.unique(np.concatenate([frames, beside]), return_inverse=True)
        pixels, _ = to_model_input(cine, wanted.tolist(), size, device=self._runtime.device)
        first, second = (pixels[torch.as_tensor(part)] for part in np.split(positions.reshape(-1), 2))
        third = (first.flip(-1).float() * BRIGHTER).clamp(0, 255).to(torch.uint8)
        best, features = self._detect(detector, torch.cat([first, second, third]))
        best = best.reshape(len(AUGMENTATIONS), count, len(DETECTED_SEPTA), 5)
        best[2, :, :, [0, 2]] = size - best[2, :, :, [2, 0]]
        scores, overlaps = np.full(SCORES_SHAPE, np.nan), np.full(OVERLAPS_SHAPE, np.nan)
        scores[:count] = best[..., 4].transpose(1, 0, 2)
        if cine.frame_count == 1:
            scores[:, 1] = np.nan  # there is no frame beside it
        for other in range(1, len(AUGMENTATIONS)):
            for frame, septum in np.argwhere((best[0, ..., 4] > 0) & (best[other, ..., 4] > 0)):
                if np.isfinite(scores[frame, other, septum]):
                    pair = best[0, frame, septum, :4], best[other, frame, septum, :4]
                    overlaps[frame, other - 1, septum] = box_iou(*pair)[0, 0]
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
