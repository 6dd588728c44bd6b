# SPDX-License-Identifier: Apache-2.0
"""How well embeddings tell "same defect" from "other defect", and find cases of the same defect.

Pairs are of different patients only: a network that recognises a patient, whose two cines have one defect, would
otherwise look as if it knew defects. A pair is accepted (called the same defect) when its similarity reaches the
threshold. FAR: accepted part of the pairs of two defects; TAR: accepted part of the pairs of one defect; FRR = 1 - TAR;
EER: where FAR and FRR are equal. Intervals: bootstrap over patients (see ``measure.classes``),
a pair weighing the product of how often its two patients were drawn.

References
----------
P@1 and mAP@R as in Musgrave et al., A Metric Learning Reality Check (arXiv 2003.08505), section 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echo_plugin.geometry import FloatArray
from echo_plugin.measure.classes import Cohort, Ids
from echo_plugin.model_card import Metric

MOST_BINS = 4096
"""Similarities are told apart this finely in the resamples; the values themselves are exact."""
FAR_TARGETS = (1e-2, 1e-3)

Places = NDArray[np.intp]


@dataclass(frozen=True)
class CasePairs:
    """M pairs of cases of different patients.

    ``first, second`` : (M,) places of the cases. ``similarity`` : (M,) cosines. ``is_same`` : (M,) whether the two have
    one defect. ``patients`` : (N,) the patient of each case.
    """

    first: Places
    second: Places
    similarity: FloatArray
    is_same: NDArray[np.bool_]
    patients: tuple[str, ...] = field(repr=False)

    def __post_init__(self) -> None:
        owners = np.unique(np.array(self.patients, dtype=object).astype(str), return_inverse=True)[1]
        clashes = int((owners[self.first] == owners[self.second]).sum())
        if clashes:
            msg = (
                f"{clashes} of {len(self.first)} pairs are of one patient with itself;"
                " pairs of different patients are accepted."
            )
            raise ValueError(msg)

    @property
    def can_be_measured(self) -> bool:
        """Whether there are pairs of one defect and pairs of two."""
        return bool(self.is_same.any() and not self.is_same.all())


@dataclass(frozen=True)
class OperatingPoint:
    """When two cases count as one defect: from ``threshold`` on; ``far, frr`` are the errors made there.

    Measured on ``pairs`` pairs of ``patients`` patients, who are ``measured_on``.
    """

    threshold: float
    far: float
    frr: float
    patients: int
    pairs: int
    measured_on: str


def cross_patient_pairs(embeddings: FloatArray, class_ids: Ids, patients: Sequence[str]) -> CasePairs:
    """Return every pair of (N, D) unit embeddings whose patients differ."""
    classes = np.asarray(class_ids)
    owners = np.unique(np.asarray(patients, dtype=str), return_inverse=True)[1].reshape(-1)
    first, second = np.triu_indices(len(classes), k=1)
    keep = owners[first] != owners[second]
    first, second = first[keep], second[keep]
    similarity = (embeddings @ embeddings.T)[first, second].astype(np.float64)
    return CasePairs(first, second, similarity, classes[first] == classes[second], tuple(patients))


def acceptance_curve(similarity: FloatArray, is_same: NDArray[np.bool_]) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return (thresholds, FAR, TAR) as the threshold falls over the distinct similarities; begins with infinity, 0, 0.

    FAR or TAR is NaN where there is no pair of its kind.
    """
    levels, place = np.unique(similarity, return_inverse=True)
    counts = [np.bincount(place[kind], minlength=len(levels))[::-1] for kind in (~is_same, is_same)]
    far, tar = (_shares(part) for part in counts)
    return np.concatenate([[np.inf], levels[::-1]]), far, tar


def _shares(counts: NDArray[Any]) -> FloatArray:
    total = counts.sum()
    shares: FloatArray = np.concatenate([[0.0], np.cumsum(counts)])
    return shares / total if total > 0 else np.full_like(shares, np.nan)


def area_under(far: FloatArray, tar: FloatArray) -> float:
    """Return the area under the curve (trapezes: pairs of equal similarity count a half)."""
    return float(((tar[1:] + tar[:-1]) / 2 * np.diff(far)).sum())


def equal_error_rate(far: FloatArray, tar: FloatArray) -> float:
    """Return where FAR equals FRR on the straight lines between the points of the curve; NaN: a kind is missing."""
    gap = far - (1.0 - tar)  # ascends from -1 to 1
    if not np.isfinite(gap).all():
        return float("nan")
    after = int(np.argmax(gap >= 0))
    if after == 0 or gap[after] == gap[after - 1]:
        return float(far[after])
    step = -gap[after - 1] / (gap[after] - gap[after - 1])
    return float(far[after - 1] + step * (far[after] - far[after - 1]))


def tar_at(far: FloatArray, tar: FloatArray, most: float) -> float:
    """Return the highest TAR of the points whose FAR is at most ``most``; NaN: a kind of pair is missing."""
    allowed = tar[far <= most]
    return float(allowed.max()) if len(allowed) and np.isfinite(allowed).all() else float("nan")


def operating_point(pairs: CasePairs, measured_on: str) -> OperatingPoint:
    """Return the threshold at which FAR and FRR are closest, with both.

    Raises
    ------
    ValueError
        If there are no pairs of one defect, or none of two.
    """
    if not pairs.can_be_measured:
        msg = f"{len(pairs.first)} pairs are all of one kind; pairs of one defect and of two are needed."
        raise ValueError(msg)
    thresholds, far, tar = acceptance_curve(pairs.similarity, pairs.is_same)
    best = int(np.argmin(np.abs(far[1:] - (1 - tar[1:])))) + 1
    count = len({pairs.patients[i] for i in np.union1d(pairs.first, pairs.second)})
    return OperatingPoint(
        float(thresholds[best]), float(far[best]), float(1 - tar[best]), count, len(pairs.first), measured_on
    )


def verification_metrics(pairs: CasePairs, split: str, seed: int = 0) -> dict[str, Metric]:
    """Return verification AUC, EER and TAR at FAR 0.01 and 0.001; the baseline is that of chance. Empty: no pairs."""
    if not pairs.can_be_measured:
        return {}
    cohort = Cohort(pairs.patients, split, seed)
    _, far, tar = acceptance_curve(pairs.similarity, pairs.is_same)
    samples = np.array([_figures(*curve) for curve in _resampled_curves(pairs, cohort)])
    names = ["verification AUC", "verification EER", *(f"TAR at FAR {target:g}" for target in FAR_TARGETS)]
    chance = [0.5, 0.5, *FAR_TARGETS]
    return {
        name: cohort.from_samples(value, samples[:, i], baseline)
        for i, (name, value, baseline) in enumerate(zip(names, _figures(far, tar), chance, strict=True))
    }


def _figures(far: FloatArray, tar: FloatArray) -> list[float]:
    return [area_under(far, tar), equal_error_rate(far, tar), *(tar_at(far, tar, target) for target in FAR_TARGETS)]


def _resampled_curves(pairs: CasePairs, cohort: Cohort) -> list[tuple[FloatArray, FloatArray]]:
    """Return (FAR, TAR) of each resample of the patients, over at most ``MOST_BINS`` thresholds."""
    levels, place = np.unique(pairs.similarity, return_inverse=True)
    if len(levels) > MOST_BINS:
        order = np.argsort(np.argsort(pairs.similarity, kind="stable"), kind="stable")
        place = order * MOST_BINS // len(order)
    bins = int(place.max()) + 1
    curves = []
    # pairs in falling order of similarity, by kind: the owner of each case is all that a resample changes
    owner = cohort.index
    kinds = [(bins - 1 - place[kind], owner[pairs.first[kind]], owner[pairs.second[kind]])
             for kind in (~pairs.is_same, pairs.is_same)]  # fmt: skip
    for drawn in cohort.draws():
        shares = [_shares(np.bincount(at, weights=drawn[a] * drawn[b], minlength=bins)) for at, a, b in kinds]
        curves.append((shares[0], shares[1]))
    return curves


def curve_with_band(pairs: CasePairs, split: str, seed: int = 0, points: int = 201) -> dict[str, FloatArray]:
    """Return ``far`` 0..1 with ``tar`` and its 95 % band ``low, high`` at each, for a plot."""
    grid = np.linspace(0.0, 1.0, points)
    _, far, tar = acceptance_curve(pairs.similarity, pairs.is_same)
    curves = _resampled_curves(pairs, Cohort(pairs.patients, split, seed))
    rows = np.array([np.interp(grid, f, t) for f, t in curves if np.isfinite(f).all() and np.isfinite(t).all()])
    low, high = np.percentile(rows, [2.5, 97.5], axis=0)
    return {"far": grid, "tar": np.interp(grid, far, tar), "low": low, "high": high}


def retrieval_metrics(
    embeddings: FloatArray, class_ids: Ids, patients: Sequence[str], split: str, seed: int = 0
) -> dict[str, Metric]:
    """Return P@1 and mAP@R of searching each case among those of other patients; the baseline is a random order.

    Cases without a case of their defect among the other patients are left out; empty: all are. Resamples draw the
    patients who ask; whom they search among stays.
    """
    rows = retrieval_scores(embeddings, class_ids, patients)
    known = np.isfinite(rows[:, 0])
    if not known.any():
        return {}
    cohort = Cohort(tuple(patients), split, seed).of(known)
    means = rows[known].mean(axis=0)
    return {
        "P@1": cohort.mean(rows[known, 0], float(means[2])),
        "mAP@R": cohort.mean(rows[known, 1], float(means[3])),
    }


def retrieval_scores(embeddings: FloatArray, class_ids: Ids, patients: Sequence[str]) -> FloatArray:
    """Return (N, 4): P@1, mAP@R, and what a random order is expected to get for both; NaN: nothing to find."""
    classes = np.asarray(class_ids)
    owners = np.asarray(patients, dtype=str)
    rows = np.full((len(classes), 4), np.nan)
    for i, own in enumerate(classes):
        others = neighbours(embeddings, owners, i)
        R, M = int((classes[others] == own).sum()), len(others)
        if R == 0:
            continue
        found = (classes[others[:R]] == own).astype(np.float64)
        rank = np.arange(1, R + 1)
        rows[i, 0], rows[i, 1] = found[0], (found * np.cumsum(found) / rank).sum() / R
        # a random place holds one of the R with R/M; before the i-th found one lie (i - 1)(R - 1)/(M - 1) more
        others_before = (rank - 1) * (R - 1) / max(M - 1, 1)
        rows[i, 2], rows[i, 3] = R / M, (R / M * (1 + others_before) / rank).sum() / R
    return rows


def neighbours(embeddings: FloatArray, patients: Sequence[str] | NDArray[np.str_], place: int) -> Places:
    """Return the places of the cases of other patients, the most similar to case ``place`` first."""
    owners = np.asarray(patients, dtype=str)
    others = np.flatnonzero(owners != owners[place])
    ranked: Places = others[np.argsort(-(embeddings[others] @ embeddings[place]), kind="stable")]
    return ranked
