# SPDX-License-Identifier: Apache-2.0
"""How far cines are from those that are labelled, for the greedy k-centre choice of core-set learning.

Sener and Savarese, ICLR 2018, arXiv 1708.00489, algorithm 1: the next is the one farthest from everything covered
(``strategies.most_unlike``).
"""

from __future__ import annotations

import numpy as np

from echo_plugin.acquisition.evidence import Array

_BLOCK = 512  # covered cines at a time: (N, _BLOCK) products


def distances_to_nearest(embeddings: Array, covered: Array) -> Array:
    """Return (N,) Euclidean distances of (N, D) unit embeddings to the nearest of (M, D); infinite where M is 0."""
    nearest = np.full(len(embeddings), -np.inf, dtype=np.float32)
    for start in range(0, len(covered), _BLOCK):
        nearest = np.maximum(nearest, (embeddings @ covered[start : start + _BLOCK].T).max(axis=1))
    return np.sqrt(np.maximum(2.0 - 2.0 * nearest, 0.0))


class Cover:
    """How far every cine is from what is covered, kept up to date: covering one more costs one product with a vector.

    ``embeddings`` : (N, D) float32, unit length.
    """

    def __init__(self, embeddings: Array) -> None:
        self._embeddings = embeddings
        self._covered: set[int] = set()
        self._distances = np.full(len(embeddings), np.inf, dtype=np.float32)

    def embeddings_changed(self, places: Array) -> None:
        """Take note that the embeddings at these places are others now."""
        if self._covered & set(places.tolist()):
            self._forget()
        elif self._covered:
            covered = self._embeddings[sorted(self._covered)]
            self._distances[places] = distances_to_nearest(self._embeddings[places], covered)

    def _forget(self) -> None:
        self._covered = set()
        self._distances = np.full(len(self._embeddings), np.inf, dtype=np.float32)

    def distances(self, covered: Array) -> Array:
        """Return (N,) distances to the nearest of the places ``covered``; infinite where there is none."""
        wanted = set(covered.tolist())
        if not self._covered <= wanted:  # a label was withdrawn
            self._forget()
        new = sorted(wanted - self._covered)
        if new:
            nearer = distances_to_nearest(self._embeddings, self._embeddings[new])
            self._distances = np.minimum(self._distances, nearer)
            self._covered = wanted
        return self._distances
