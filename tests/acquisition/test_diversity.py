# SPDX-License-Identifier: Apache-2.0
"""What the strategy ``diversity`` shows one after another is the k-centre choice of scikit-activeml."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from echo_plugin.acquisition.pool import (
    CoreSetDistances,
    Pool,
    distances_to_nearest,
    gather_labels,
    list_cines,
    no_scores,
)
from echo_plugin.acquisition.strategies import Situation, most_unlike
from echo_plugin.anatomy import View
from echo_plugin.annotations import Annotation
from echo_plugin.io.label_summaries import summarise
from echo_plugin.io.study_index import CineEntry


def unit(seed: int, count: int, width: int = 8) -> np.ndarray:
    points = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return points / np.linalg.norm(points, axis=1, keepdims=True)


SQUARE_TO = 4 * 8 * np.finfo(np.float32).eps
"""To this the squares 2 - 2 cos of float32 distances are right, whatever the order of the 8 products is; near 0 the
distances themselves are so to its root only."""


def shown_in_turn(points: np.ndarray, labelled: int, count: int) -> list[int]:
    """Return the places chosen one after another where the first ``labelled`` points have labels."""
    names = [f"c{n:02d}" for n in range(len(points))]
    cines = list_cines([CineEntry(name, None, patient_id=name, frames=1) for name in names])
    scores = no_scores(*points.shape)
    scores.embeddings[:], scores.is_scored[:], scores.uncertainty[:] = points, True, 0.5
    labels = gather_labels(cines, {name: summarise(Annotation(name, view=View.A4C)) for name in names[:labelled]})
    pool, shown = Pool(cines, scores, labels), []
    for _ in range(count):
        waiting = np.setdiff1d(np.arange(labelled, len(points)), shown)
        shown.append(most_unlike(pool, Situation(waiting, np.array(shown, dtype=np.int64))).index)
    return shown


@pytest.mark.parametrize("seed", range(5))
def test_the_choice_is_that_of_scikit_activeml(seed):
    from skactiveml.pool import CoreSet

    points = unit(seed, 60)
    labels = np.full(60, np.nan)
    labels[:7] = 0

    theirs = CoreSet(random_state=0).query(points, labels, batch_size=12)

    assert shown_in_turn(points, 7, 12) == theirs.tolist()


def test_distances_are_euclidean_and_infinite_to_nothing():
    points, covered = unit(1, 30), unit(2, 700)

    assert distances_to_nearest(points, covered) == pytest.approx(cdist(points, covered).min(axis=1), abs=1e-3)
    assert np.isinf(distances_to_nearest(points, points[:0])).all()


def test_with_nothing_covered_the_first_is_the_most_typical_and_all_come_in_turn():
    points = unit(3, 40)

    chosen = shown_in_turn(points, 0, 40)

    assert chosen[0] == int(cdist(points, points.mean(axis=0, keepdims=True), "cosine")[:, 0].argmin())
    assert sorted(chosen) == list(range(40))


def test_kept_distances_are_those_worked_out_anew_whatever_centres_came_or_went():
    points = unit(4, 50)
    kept = CoreSetDistances(points)

    for centres in ([], [1, 2], [1, 2, 30], [2, 30], [2, 30, 49]):
        rows = np.array(centres, dtype=int)
        expected = np.square(distances_to_nearest(points, points[rows]))
        assert np.square(kept.to_nearest(rows)) == pytest.approx(expected, rel=0, abs=SQUARE_TO)


def test_kept_distances_follow_embeddings_that_change():
    points = unit(5, 20)
    kept = CoreSetDistances(points)
    kept.to_nearest(np.array([0, 1]))

    for changed in (7, 1):
        points[changed] = unit(9 + changed, 1)[0]
        kept.embeddings_changed(np.array([changed]))

        expected = np.square(distances_to_nearest(points, points[:2]))
        assert np.square(kept.to_nearest(np.array([0, 1]))) == pytest.approx(expected, rel=0, abs=SQUARE_TO)
