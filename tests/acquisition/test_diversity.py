# SPDX-License-Identifier: Apache-2.0
"""What the strategy ``diversity`` shows one after another is the k-centre choice of scikit-activeml."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from echo_plugin.acquisition.pool import Cover, Pool, distances_to_nearest, gather_labels, list_cines, no_scores
from echo_plugin.acquisition.strategies import Situation, most_unlike
from echo_plugin.anatomy import View
from echo_plugin.annotations import Annotation
from echo_plugin.io.label_summaries import summarise
from echo_plugin.io.study_index import CineEntry


def unit(seed: int, count: int, width: int = 8) -> np.ndarray:
    points = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return points / np.linalg.norm(points, axis=1, keepdims=True)


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
        shown.append(most_unlike(pool, Situation(waiting, np.array(shown, dtype=np.int64))).place)
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


def test_a_kept_cover_says_what_a_new_one_would_whatever_was_covered_or_withdrawn():
    points = unit(4, 50)
    cover = Cover(points)

    for covered in ([], [1, 2], [1, 2, 30], [2, 30], [2, 30, 49]):
        places = np.array(covered, dtype=int)
        assert cover.distances(places) == pytest.approx(distances_to_nearest(points, points[places]))


def test_a_kept_cover_follows_embeddings_that_change():
    points = unit(5, 20)
    cover = Cover(points)
    cover.distances(np.array([0, 1]))

    for changed in (7, 1):
        points[changed] = unit(9 + changed, 1)[0]
        cover.embeddings_changed(np.array([changed]))

        assert cover.distances(np.array([0, 1])) == pytest.approx(distances_to_nearest(points, points[:2]), abs=1e-6)
