# SPDX-License-Identifier: Apache-2.0
"""How long the exact search of a gallery takes, and faiss's where it is installed; prints milliseconds.

python tests/benchmarks/search_gallery.py [--cases 100000]
"""

import argparse
import time

import numpy as np

from echo_plugin.anatomy import Defect
from echo_plugin.answer.gallery import Gallery, PastCase

QUERIES = 15


def milliseconds(search, queries) -> float:
    """Return the median time of one search; the first, which warms up, does not count."""
    times = []
    for query in queries:
        start = time.perf_counter()
        search(query)
        times.append(1000 * (time.perf_counter() - start))
    return float(np.median(times[1:]))


def main() -> None:
    """Print one line for each way to search."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=512)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((options.cases, options.size), dtype=np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    cases = tuple(PastCase(f"i{n}", f"p{n // 4}", Defect.ASD) for n in range(options.cases))
    gallery = Gallery("", embeddings, cases)
    queries = embeddings[rng.integers(0, options.cases, QUERIES)]
    exact = milliseconds(lambda q: gallery.nearest(q, 5, image_id="x", patient_id="p0"), queries)
    print(f"{options.cases} cases of {options.size} numbers: five nearest other patients in {exact:.1f} ms (exact)")
    product = milliseconds(lambda q: embeddings @ q, queries)
    print(f"of which the matrix product {product:.1f} ms")
    try:
        import faiss
    except ImportError:
        return
    index = faiss.IndexFlatIP(options.size)
    index.add(embeddings)
    flat = milliseconds(lambda q: index.search(q[None], 20), queries)
    print(f"faiss IndexFlatIP, twenty nearest cases: {flat:.1f} ms (exact)")


if __name__ == "__main__":
    from results_page import printed_page

    with printed_page("Speed of a search among past cases"):
        main()
