# SPDX-License-Identifier: Apache-2.0
"""The rows most similar to one: by a matrix product, or by faiss, where it is installed, in a large gallery.

Both are exact. faiss (extra "faiss") uses every processor and keeps the best as it goes; up to a hundred thousand cases
it saves nothing (tests/benchmarks/search_gallery.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from echo_plugin.geometry import FloatArray

MOST_BY_PRODUCT = 100_000
"""Of more rows an index is made, if faiss is there."""

Rows = NDArray[np.float32]
Places = NDArray[np.intp]


def large_index(embeddings: Rows) -> Any:
    """Return faiss's exact index of (N, D) rows; None: there are too few for one, or faiss is not installed."""
    if len(embeddings) <= MOST_BY_PRODUCT:
        return None
    try:
        import faiss
    except ImportError:
        return None
    index = faiss.IndexFlatIP(embeddings.shape[1])
    index.add(np.ascontiguousarray(embeddings))
    return index


def ranked(embeddings: Rows, index: Any, query: Rows, count: int, left_out: Places) -> tuple[Places, FloatArray]:
    """Return the places of the up to ``count`` most similar rows, the most similar first, and their similarities.

    ``left_out`` : places that take no part. ``index`` : of `large_index`.
    """
    if index is not None:
        wide = min(count + len(left_out), len(embeddings))
        found, places = (part[0] for part in index.search(query[None], wide))
        keep = ~np.isin(places, left_out)
        return places[keep][:count].astype(np.intp), found[keep][:count].astype(np.float64)
    similarities = embeddings @ query
    similarities[left_out] = -np.inf
    order = best_first(similarities, count)
    return order, similarities[order].astype(np.float64)


def best_first(similarities: Rows, count: int) -> Places:
    """Return the places of the ``count`` highest, highest first and of equals the earlier first; -inf is left out."""
    if count < len(similarities):
        best = np.sort(np.argpartition(-similarities, count)[:count])
    else:
        best = np.arange(len(similarities))
    best = best[np.isfinite(similarities[best])]
    order: Places = best[np.argsort(-similarities[best], kind="stable")]
    return order
