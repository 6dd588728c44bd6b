# SPDX-License-Identifier: Apache-2.0
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echo_plugin.anatomy import Defect
from echo_plugin.answer import gallery
from echo_plugin.answer.gallery import Gallery, PastCase


class FlatIndex:
    """What faiss's IndexFlatIP does, in numpy: the library is an extra that the tests do not install."""

    def __init__(self, size: int) -> None:
        self.rows = np.zeros((0, size), dtype=np.float32)

    def add(self, rows: np.ndarray) -> None:
        self.rows = np.concatenate([self.rows, rows])

    def search(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        products = queries @ self.rows.T
        order = np.argsort(-products, axis=1, kind="stable")[:, :count]
        return np.take_along_axis(products, order, axis=1), order


@pytest.fixture
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "MOST_BY_PRODUCT", 5)
    monkeypatch.setitem(sys.modules, "faiss", SimpleNamespace(IndexFlatIP=FlatIndex))


def unit(count: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, 8)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_an_index_is_made_of_large_galleries_only(small_is_large: None) -> None:
    assert gallery.large_index(unit(5, 0)) is None
    assert isinstance(gallery.large_index(unit(6, 0)), FlatIndex)


def test_without_faiss_a_large_gallery_is_searched_by_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "MOST_BY_PRODUCT", 5)
    monkeypatch.setitem(sys.modules, "faiss", None)

    assert gallery.large_index(unit(6, 0)) is None


@given(st.integers(1, 12), st.sets(st.integers(0, 19)))
def test_the_index_finds_what_the_product_finds(count: int, left_out: set[int]) -> None:
    rows, query = unit(20, 1), unit(1, 2)[0]
    index, places = FlatIndex(8), np.array(sorted(left_out), dtype=int)
    index.add(rows)

    exact = gallery.ranked(rows, None, query, count, places)
    indexed = gallery.ranked(rows, index, query, count, places)

    np.testing.assert_array_equal(exact[0], indexed[0])
    np.testing.assert_allclose(exact[1], indexed[1], rtol=1e-6)
    assert not left_out & set(exact[0].tolist())


def test_a_gallery_answers_alike_with_the_index(small_is_large: None, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = tuple(PastCase(f"i{n}", f"p{n // 3}", Defect.ASD) for n in range(30))
    asked = {"image_id": "i4", "patient_id": None}

    indexed = Gallery("", unit(30, 3), cases).nearest(unit(1, 4)[0], 5, **asked)
    monkeypatch.setattr(gallery, "MOST_BY_PRODUCT", 100)
    plain = Gallery("", unit(30, 3), cases).nearest(unit(1, 4)[0], 5, **asked)

    assert [near.case.image_id for near in indexed] == [near.case.image_id for near in plain]
    assert len({near.case.patient_id for near in indexed}) == 5
    assert "p1" not in {near.case.patient_id for near in indexed}
