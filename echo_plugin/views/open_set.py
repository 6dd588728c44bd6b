# SPDX-License-Identifier: Apache-2.0
"""Whether a cine shows a standard view at all: how unsure the view classifier is, against a limit set on validation.

Two measures, larger for stranger cines: the entropy of the mean probabilities over the clips, as a part of the greatest
possible, and the energy, the mean of -logsumexp(logits) (Liu 2020, "Energy-based out-of-distribution detection"). The
one that better tells the wrong answers of the validation patients from the right ones is used; the limit keeps 95 % of
their right ones. Both are in the model's card; a card without them says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from echo_plugin.geometry import FloatArray
from echo_plugin.model_card import ModelCard

SCORES = ("entropy", "energy")
KEPT_SHARE = 0.95


@dataclass(frozen=True)
class OpenSetRule:
    """``score`` : entropy or energy. A cine above ``threshold`` shows no standard view."""

    score: str
    threshold: float

    def __post_init__(self) -> None:
        if self.score not in SCORES or not np.isfinite(self.threshold):
            words = ", ".join(SCORES)
            msg = f"Open-set rule is {self.score!r} above {self.threshold}; {words} and a finite number are accepted."
            raise ValueError(msg)

    def is_standard(self, logits: FloatArray) -> bool:
        """Whether the (M, K) logits of a cine's clips are those of a standard view."""
        return cine_scores(logits)[self.score] <= self.threshold


def cine_scores(logits: FloatArray) -> dict[str, float]:
    """Return both measures of a cine from the (M, K) logits of its clips, K >= 2."""
    top = logits.max(axis=1, keepdims=True)
    total = np.exp(logits - top).sum(axis=1, keepdims=True)
    mean = (np.exp(logits - top) / total).mean(axis=0)
    entropy = -(mean * np.log(np.maximum(mean, 1e-12))).sum() / np.log(logits.shape[1])
    return {"entropy": float(entropy), "energy": float(-(top + np.log(total)).mean())}


def separation(scores: FloatArray, is_strange: NDArray[np.bool_]) -> float:
    """Return the share of (strange, ordinary) pairs in the right order, ties a half; NaN if either is missing."""
    strange, ordinary = scores[is_strange], scores[~is_strange]
    if not len(strange) or not len(ordinary):
        return float("nan")
    return float((np.sign(strange[:, None] - ordinary[None]) / 2 + 0.5).mean())


def choose_rule(scores: list[dict[str, float]], is_right: NDArray[np.bool_]) -> OpenSetRule | None:
    """Return the rule of a model by its validation cines; None where it answered none of them rightly."""
    if not is_right.any():
        return None
    by_name = {name: np.array([cine[name] for cine in scores]) for name in SCORES}
    better = max(SCORES, key=lambda name: np.nan_to_num(separation(by_name[name], ~is_right), nan=0.0))
    return OpenSetRule(better, float(np.quantile(by_name[better][is_right], KEPT_SHARE)))


def rule_to_config(rule: OpenSetRule | None) -> dict[str, str | float]:
    """Return what a card's config says of the rule; {}: there is none."""
    return {} if rule is None else {"open_set_score": rule.score, "open_set_threshold": rule.threshold}


def rule_of(card: ModelCard) -> OpenSetRule | None:
    """Return the rule of a card; None: it has none."""
    score, threshold = card.config.get("open_set_score"), card.config.get("open_set_threshold")
    if not isinstance(score, str) or not isinstance(threshold, int | float):
        return None
    return OpenSetRule(score, float(threshold))
