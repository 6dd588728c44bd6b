# SPDX-License-Identifier: Apache-2.0
"""Whether a cine shows a standard view at all: three measures of strangeness, and a limit set on validation patients.

Larger for stranger cines: the entropy of the mean probabilities over the clips, as a part of the greatest possible; the
energy, the mean of -logsumexp over the logits of the standard views (Liu 2020, "Energy-based out-of-distribution
detection"); and, of a model that learned OTHER, the mean probability of it. OTHER is many things, of which a training
sees a few: a plane between two views is often called one of them, yet with less energy behind it than the view itself.
The measure that best tells the validation patients' cines of OTHER from the right answers is used, or their wrong
answers where none is OTHER; the limit keeps 95 % of the right ones. Both are in the model's card; a card without them
says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from echo_plugin.anatomy import View
from echo_plugin.geometry import FloatArray
from echo_plugin.model_card import ModelCard

SCORES = ("entropy", "energy", "other")
KEPT_SHARE = 0.95


@dataclass(frozen=True)
class OpenSetRule:
    """``score`` : entropy, energy or other. A cine above ``threshold`` shows no standard view."""

    score: str
    threshold: float

    def __post_init__(self) -> None:
        if self.score not in SCORES or not np.isfinite(self.threshold):
            words = ", ".join(SCORES)
            msg = f"Open-set rule is {self.score!r} above {self.threshold}; {words} and a finite number are accepted."
            raise ValueError(msg)

    def is_standard(self, logits: FloatArray, classes: Sequence[str]) -> bool:
        """Whether the (M, K) logits of a cine's clips are those of a standard view."""
        return cine_scores(logits, classes)[self.score] <= self.threshold


def cine_scores(logits: FloatArray, classes: Sequence[str]) -> dict[str, float]:
    """Return the measures of a cine from the (M, K) logits of its clips, K >= 2; "other" only if K has OTHER."""
    is_other = np.array([name == View.OTHER.value for name in classes])
    mean = np.exp(logits - _log_sum(logits)).mean(axis=0)
    entropy = -(mean * np.log(np.maximum(mean, 1e-12))).sum() / np.log(logits.shape[1])
    scores = {"entropy": float(entropy), "energy": float(-_log_sum(logits[:, ~is_other]).mean())}
    return scores | ({"other": float(mean[is_other][0])} if is_other.any() else {})


def _log_sum(logits: FloatArray) -> FloatArray:
    """Return (M, 1) logsumexp of the rows."""
    top = logits.max(axis=1, keepdims=True)
    total: FloatArray = top + np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
    return total


def separation(scores: FloatArray, is_strange: NDArray[np.bool_]) -> float:
    """Return the share of (strange, ordinary) pairs in the right order, ties a half; NaN if either is missing."""
    strange, ordinary = scores[is_strange], scores[~is_strange]
    if not len(strange) or not len(ordinary):
        return float("nan")
    return float((np.sign(strange[:, None] - ordinary[None]) / 2 + 0.5).mean())


def choose_rule(
    scores: Sequence[Mapping[str, float]], is_right: NDArray[np.bool_], is_other: NDArray[np.bool_]
) -> OpenSetRule | None:
    """Return the rule of a model by its validation cines; None where it answered no standard view rightly.

    ``is_right`` : the answer is the view of the cine. ``is_other`` : the cine shows no standard view.
    """
    ordinary = is_right & ~is_other
    if not ordinary.any():
        return None
    kept = ordinary | (is_other if is_other.any() else ~is_right)
    by_name = {name: np.array([cine[name] for cine in scores]) for name in SCORES if name in scores[0]}
    better = max(by_name, key=lambda name: np.nan_to_num(separation(by_name[name][kept], ~ordinary[kept]), nan=0.0))
    return OpenSetRule(better, float(np.quantile(by_name[better][ordinary], KEPT_SHARE)))


def rule_to_config(rule: OpenSetRule | None) -> dict[str, str | float]:
    """Return what a card's config says of the rule; {}: there is none."""
    return {} if rule is None else {"open_set_score": rule.score, "open_set_threshold": rule.threshold}


def rule_of(card: ModelCard) -> OpenSetRule | None:
    """Return the rule of a card; None: it has none."""
    score, threshold = card.config.get("open_set_score"), card.config.get("open_set_threshold")
    if not isinstance(score, str) or not isinstance(threshold, int | float):
        return None
    return OpenSetRule(score, float(threshold))
