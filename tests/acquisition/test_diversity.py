# SPDX-License-Identifier: Apache-2.0
"""The k-centre choice equals that of scikit-activeml and of a second derivation."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from echo_plugin.acquisition.diversity import Cover, distances_to_nearest, k_centre_greedy


def unit(seed: int, count: int, width: int = 8) -> np.ndarray:
    points = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return points / np.linalg.norm(points, axis=1, keepdims=True)


@pytest.mark.parametrize("seed", range(5))
def test_the_choice_is_that_of_scikit_activeml(seed):
    from skactiveml.pool import CoreSet

    points = unit(seed, 60)
    labels = np.full(60, np.nan)
    labels[:7] = 0

    theirs = CoreSet(random_state=0).query(points, labels, batch_size=12)

    assert [7 + place for place in k_centre_greedy(points[7:], points[:7], 12)] == theirs.tolist()


def test_distances_are_euclidean_and_infinite_to_nothing():
    points, covered = unit(1, 30), unit(2, 700)

    assert distances_to_nearest(points, covered) == pytest.approx(cdist(points, covered).min(axis=1), abs=1e-3)
    assert np.isinf(distances_to_nearest(points, points[:0])).all()


def test_with_nothing_covered_the_first_is_the_most_typical():
    points = unit(3, 40)

    chosen = k_centre_greedy(points, points[:0], 40)

    assert chosen[0] == int(cdist(points, points.mean(axis=0, keepdims=True), "cosine")[:, 0].argmin())
    assert sorted(chosen) == list(range(40))
    assert k_centre_greedy(points[:0], points, 3) == []


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
