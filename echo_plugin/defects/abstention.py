# SPDX-License-Identifier: Apache-2.0
"""When not to answer: an embedding far from every class centre, no septum, or a view that does not show the walls.

A cine that the view classifier calls no standard view shows no wall that one could name.

A threshold is an angle in degrees, chosen on validation patients and kept in the model's card; cards without one never
abstain by angle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from echo_plugin.anatomy import SEPTAL_VIEWS, Septum
from echo_plugin.annotations import ViewPrediction
from echo_plugin.geometry import FloatArray

ANGLE_KEY = "abstain_angle_deg"
LEAST_COVERAGE = 0.9
"""Part of the validation cines that must still be answered: a rule that is silent too often helps nobody."""
SURE_VIEW = 0.5
"""Probability of the view classifier from which on its view counts."""


def can_abstain(config: Mapping[str, object]) -> bool:
    """Whether a card is of a version that may give no answer."""
    return isinstance(config.get(ANGLE_KEY), int | float)


def reason_to_abstain(
    config: Mapping[str, object],
    nearest_angle_deg: float,
    septa: Sequence[Septum],
    view: ViewPrediction | None,
    *,
    is_whole_frame: bool,
) -> str | None:
    """Return why a cine gets no answer, as a phrase; None: it gets one.

    Parameters
    ----------
    config
        Of the embedder's card.
    nearest_angle_deg
        Between the embedding and the nearest class centre.
    septa
        The walls that were found; UNSPECIFIED: both in one crop.
    view
        What the view classifier says; None: it was not asked.
    """
    limit = config.get(ANGLE_KEY)
    if not isinstance(limit, int | float):
        return None
    if is_whole_frame:
        return "no septum found"
    if view is not None and view.is_standard is False:
        return view.words
    walls = [None if septum is Septum.UNSPECIFIED else septum for septum in septa]
    if view is not None and not any(is_suitable(wall, view) for wall in walls):
        return f"view {view.view.value} does not show this septum"
    if nearest_angle_deg > limit:
        return f"unlike every class ({nearest_angle_deg:.0f} deg from the nearest)"
    return None


def is_suitable(septum: Septum | None, view: ViewPrediction | None) -> bool:
    """Whether a view ordinarily images that wall (None: any wall); one that is not known, or not sure, may.

    ``view`` : None: it was not asked for.
    """
    if view is None or view.probability < SURE_VIEW:
        return True
    return any(view.view in SEPTAL_VIEWS[wall] for wall in ([septum] if septum else SEPTAL_VIEWS))


def coverage_curve(distances: FloatArray, is_right: NDArray[np.bool_]) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return ascending thresholds (N,), and the coverage and accuracy of answering at or below each of them.

    >>> [v.tolist() for v in coverage_curve(np.array([30.0, 10.0, 20.0]), np.array([False, True, True]))[1:]]
    [[0.3333333333333333, 0.6666666666666666, 1.0], [1.0, 1.0, 0.6666666666666666]]
    """
    order = np.argsort(distances, kind="stable")
    answered = np.arange(1, len(order) + 1)
    return distances[order], answered / len(order), np.cumsum(is_right[order]) / answered


def choose_angle(angles_deg: FloatArray, is_right: NDArray[np.bool_], least_coverage: float = LEAST_COVERAGE) -> float:
    """Return the threshold, deg, of the best accuracy that still answers ``least_coverage``; the largest of equals."""
    thresholds, coverage, accuracy = coverage_curve(angles_deg, is_right)
    allowed = np.flatnonzero(coverage >= least_coverage - 1e-9)
    best = allowed[np.flatnonzero(accuracy[allowed] >= accuracy[allowed].max() - 1e-9)[-1]]
    return 180.0 if best == len(thresholds) - 1 else float((thresholds[best] + thresholds[best + 1]) / 2)
