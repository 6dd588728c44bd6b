# SPDX-License-Identifier: Apache-2.0
"""The view of one cine, by the mean over its clips, which clips those are, and whether it shows a standard view at all.

A single frame is answered by the classifier of single frames.

Three measures of strangeness, larger for stranger cines: the entropy of the mean probabilities over the clips, as a
part of the greatest possible; the energy, the mean of -logsumexp over the logits of the standard views (Liu 2020,
"Energy-based out-of-distribution detection"); and, of a model that learned OTHER, the mean probability of it. OTHER is
many things, of which a training sees a few: a plane between two views is often called one of them, yet with less energy
behind it than the view itself. The measure that best tells the validation patients' cines of OTHER from the right
answers is used, or their wrong answers where none is OTHER; the limit keeps 95 % of the right ones.

A classifier that learned from neighbouring frames 40 ms apart has learned how far a valve moves in 40 ms. Where the
card says at which interval it learned, and the cine says when its frames were taken, clips keep that interval, whatever
the frame rate; else they are taken by frame number. Of a long cine one beat in the middle is looked at, all of it where
the heart rate is not known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from echo_plugin.anatomy import View
from echo_plugin.annotations import ViewPrediction
from echo_plugin.cine import Cine
from echo_plugin.geometry import FloatArray
from echo_plugin.model_card import LearnedTimes, ModelCard, OpenSetRule, ViewDecision
from echo_plugin.models.view_classifier import ViewClassifier, sample_clips
from echo_plugin.network_config import ViewConfig

KEPT_SHARE = 0.95


def is_standard_view(rule: OpenSetRule, logits: FloatArray, classes: Sequence[str]) -> bool:
    """Whether the (M, K) logits of a cine's clips are those of a standard view."""
    return cine_scores(logits, classes)[rule.score] <= rule.threshold


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
    by_name = {name: np.array([cine[name] for cine in scores]) for name in OpenSetRule.SCORES if name in scores[0]}
    better = max(by_name, key=lambda name: np.nan_to_num(separation(by_name[name][kept], ~ordinary[kept]), nan=0.0))
    return OpenSetRule(better, float(np.quantile(by_name[better][ordinary], KEPT_SHARE)))


def answer_view(
    classifier: ViewClassifier, card: ModelCard, clips: Tensor, frame_indices: Sequence[int], *, is_still: bool
) -> ViewPrediction:
    """Return the view that the clips show.

    ``clips`` : (M, T, 1, S, S) floats, as the classifier takes them. ``frame_indices`` : the 0-based frames that they
    are made of. ``is_still`` : the cine has one frame.
    """
    logits = classifier.frame_logits(clips[:1, 0]) if is_still else classifier(clips)
    probabilities = logits.softmax(dim=1).mean(dim=0).tolist()
    named = {View(name): p for name, p in zip(card.classes, probabilities, strict=True)}
    view = max(named, key=lambda name: named[name])
    rule = card.decision_as(ViewDecision).open_set
    is_standard = None
    if rule is not None and not is_still:  # its limit is of clips
        numbers = logits.double().cpu().numpy().astype(np.float64)
        is_standard = view is not View.OTHER and is_standard_view(rule, numbers, card.classes)
    return ViewPrediction(view, named, tuple(frame_indices), is_still=is_still, is_standard=is_standard)


MS_PER_MINUTE = 60_000.0


def choose_clips(config: ViewConfig, times: LearnedTimes | None, cine: Cine, clips: int) -> NDArray[np.int64]:
    """Return (clips, T) 0-based frame indices; each clip ascends.

    ``times`` : those that the classifier learned, or is to learn, at; None: of no cine they are known.
    """
    if times is None or cine.frame_times_ms is None or cine.frame_count < 2:
        return sample_clips(config, cine.frame_count, clips)
    beat = None if cine.heart_rate_bpm is None else MS_PER_MINUTE / cine.heart_rate_bpm
    wanted = clip_times_ms(
        config,
        cine.frame_times_ms,
        clips,
        step_ms=times.step_ms,
        span_ms=times.span_ms,
        beat_ms=beat,
    )
    return nearest_frames(cine.frame_times_ms, wanted)


def clip_times_ms(
    config: ViewConfig,
    times_ms: NDArray[np.float64],
    clips: int,
    *,
    step_ms: float,
    span_ms: float,
    beat_ms: float | None,
) -> NDArray[np.float64]:
    """Return (clips, T) times of frames to take from a cine of at least two frames, within its times.

    Consecutive: T frames ``step_ms`` apart, the clips spread over the beat. Spaced: T frames spread over ``span_ms``,
    the clips between one another.
    """
    T, first, last = config.frames_per_clip, float(times_ms[0]), float(times_ms[-1])
    middle = (first + last) / 2
    if config.sampling == "spaced":
        span = min(last - first, span_ms)
        places = (np.arange(T)[None] + (np.arange(clips)[:, None] + 0.5) / clips) / T
        return middle + (places - 0.5) * span
    step = max(step_ms, float(np.median(np.diff(times_ms))))
    extent = (T - 1) * step
    beat = min(last - first, last - first if beat_ms is None else beat_ms)
    centres = middle + ((np.arange(clips) + 0.5) / clips - 0.5) * beat
    starts = np.clip(centres - extent / 2, first, max(last - extent, first))
    wanted: NDArray[np.float64] = np.minimum(starts[:, None] + step * np.arange(T), last)
    return wanted


def nearest_frames(times_ms: NDArray[np.float64], wanted_ms: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the index of the frame nearest to each wanted time, the earlier of two as near."""
    after = np.clip(np.searchsorted(times_ms, wanted_ms), 1, len(times_ms) - 1)
    is_earlier = wanted_ms - times_ms[after - 1] <= times_ms[after] - wanted_ms
    nearest: NDArray[np.int64] = (after - is_earlier).astype(np.int64)
    return nearest
