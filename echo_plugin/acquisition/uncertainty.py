# SPDX-License-Identifier: Apache-2.0
"""How uncertain a detector is of frames and cines: entropy of calibrated scores and disagreement between looks.

In the manner of PPAL (Yang et al., CVPR 2024, arXiv 2211.11612): the entropy of every class is weighted by how
difficult the class is for this model. Boxes that move between neighbouring frames or in a mirrored
picture count besides, since entropy does not see a sure box in two places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from echo_plugin.acquisition.evidence import Array
from echo_plugin.anatomy import DETECTED_SEPTA

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


def pooled(judged: Sequence[Array]) -> Array:
    """Return (M, 3) of all cines together, for `calibrate`."""
    return np.concatenate(judged) if judged else np.zeros((0, 3))


def calibrate(middle: float | None, judged: Array) -> Calibration:
    """Return the calibration of a detector.

    Parameters
    ----------
    middle
        Its operating score; None: not said, 0.5.
    judged
        (M, 3) septa of cines it did not learn from: which, score of the best box of that septum (0: none), IoU with
        the true one (NaN: there is none, the box is a false alarm). With few of them the operating score is all there
        is.
    """
    middle = 0.5 if middle is None else middle
    judged = np.asarray(judged, dtype=np.float64).reshape(-1, 3)
    difficulties = tuple(_difficulty(judged[judged[:, 0] == septum]) for septum in range(len(DETECTED_SEPTA)))
    found = judged[judged[:, 1] > 0]
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


def _difficulty(judged: Array) -> float:
    true = judged[np.isfinite(judged[:, 2])]  # how well septa that are there are found
    return float(1.0 - (true[:, 1] * true[:, 2]).mean()) if len(true) else 0.0


def _logit(scores: Array) -> Array:
    clipped = np.clip(scores, 1e-6, 1 - 1e-6)
    return np.log(clipped / (1.0 - clipped))


def binary_entropy(probabilities: Array) -> Array:
    """Return the entropy in bits of a yes that has these probabilities; 0 at 0 and 1, 1 at one half."""
    p = np.clip(probabilities, 1e-12, 1 - 1e-12)
    return -(p * np.log2(p) + (1 - p) * np.log2(1 - p))


def frame_uncertainties(scores: Array, overlaps: Array, calibration: Calibration) -> Array:
    """Return (..., frames) 0..1 for (..., frames, looks, septa) scores and (..., frames, looks - 1, septa) overlaps.

    Each septum adds the entropy of its mean probability, and the part of its box that lies elsewhere in another look as
    far as there is a box. NaN: a frame that was not looked at.
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
    """Return the frame indices of the most uncertain of the frames looked at, ascending."""
    known = np.flatnonzero((frame_indices >= 0) & np.isfinite(frames))
    worst = known[np.argsort(-frames[known], kind="stable")[:FRAMES_TO_DRAW]]
    return tuple(sorted(int(frame_indices[place]) for place in worst))


def _mean_of_known(values: Array, axis: int) -> Array:
    known = np.isfinite(values)
    count = np.where(known.any(axis=axis), known.sum(axis=axis), np.nan)
    return np.where(known, values, 0.0).sum(axis=axis) / count
