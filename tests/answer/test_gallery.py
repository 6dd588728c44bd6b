# SPDX-License-Identifier: Apache-2.0
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echo_plugin.anatomy import Defect, View
from echo_plugin.answer.gallery import GALLERY_FILE, Gallery, KeptGallery, PastCase, read_gallery, write_gallery
from echo_plugin.errors import ModelMismatchError
from echo_plugin.measure.verification import OperatingPoint
from echo_plugin.model_card import STARTERS


def gallery_of(patients: list[str], embeddings: np.ndarray | None = None, sha256: str = "ab" * 32) -> Gallery:
    cases = tuple(PastCase(f"i{n}", patient, Defect.ASD) for n, patient in enumerate(patients))
    return Gallery(sha256, np.eye(len(patients), dtype=np.float32) if embeddings is None else embeddings, cases)


def ids(nearest) -> list[str]:
    return [near.case.image_id for near in nearest]


def test_what_tells_one_defect_is_kept_beside_what_looks_alike(tmp_path: Path) -> None:
    signatures = np.array([[1, 0], [0, 1]], dtype=np.float32)
    cases = (PastCase("a", "p1", Defect.VSD), PastCase("b", "p2", Defect.NORMAL))

    write_gallery(tmp_path, Gallery("", np.eye(2, dtype=np.float32), cases, signatures=signatures))
    found = read_gallery(tmp_path)
    write_gallery(tmp_path, Gallery("", np.eye(2, dtype=np.float32), cases))

    assert found is not None
    np.testing.assert_array_equal(found.signatures, signatures)
    assert read_gallery(tmp_path).signatures is None  # of an earlier version: made anew
    with pytest.raises(ValueError, match="one \\(N, D\\) row for each case"):
        Gallery("", np.eye(2, dtype=np.float32), cases, signatures=signatures[:1])


def test_gallery_is_written_and_read_back(tmp_path: Path) -> None:
    gallery = Gallery(
        "ab" * 32,
        np.eye(2, dtype=np.float32),
        (
            PastCase("1.2.3", "p1", Defect.VSD, View.A4C, "1.2", "1.2.1", "1.2.3", "7-9"),
            PastCase("still.png", "p2", Defect.NORMAL),
        ),
        detector_sha256="cd" * 32,
        passed_over={"x": "1-2"},
        operating_point=OperatingPoint(0.4, 0.1, 0.2, 5, 40, "validation patients"),
    )

    write_gallery(tmp_path, gallery)
    found = read_gallery(tmp_path)

    assert found is not None
    np.testing.assert_array_equal(found.embeddings, gallery.embeddings)
    for name in ("sha256", "cases", "detector_sha256", "passed_over", "operating_point"):
        assert getattr(found, name) == getattr(gallery, name)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no permission bits")
def test_gallery_is_readable_by_its_owner_alone_and_nothing_else_is_left(tmp_path: Path) -> None:
    write_gallery(tmp_path, gallery_of(["p1"]))
    write_gallery(tmp_path, gallery_of(["p1", "p2"]))

    assert [path.name for path in tmp_path.iterdir()] == [GALLERY_FILE]
    assert stat.S_IMODE((tmp_path / GALLERY_FILE).stat().st_mode) == 0o600


def test_gallery_is_not_kept_among_the_public_weights() -> None:
    with pytest.raises(ValueError, match="A gallery is patient data"):
        write_gallery(STARTERS, gallery_of(["p1"]))

    assert not (STARTERS / GALLERY_FILE).exists()


def unit(rows: list[list[float]]) -> np.ndarray:
    found = np.array(rows, dtype=np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_nearest_are_of_other_patients() -> None:
    gallery = gallery_of(["p1", "p1", "p2", "p3"])
    query = np.array([0.8, 0.5, 0.3, 0.1], dtype=np.float32)

    cases = gallery.nearest(query, 5, image_id="new", patient_id="p1")

    assert ids(cases) == ["i2", "i3"]
    assert cases[0].similarity == pytest.approx(0.3)
    assert "p2" not in repr(cases)


def test_patient_of_a_file_that_names_none_is_taken_from_the_gallery() -> None:
    gallery = gallery_of(["p1", "p1", "p2"])

    cases = gallery.nearest(np.array([0.8, 0.5, 0.3], dtype=np.float32), 5, image_id="i0", patient_id=None)

    assert ids(cases) == ["i2"]


def test_the_same_picture_under_another_name_is_no_past_case_and_its_patient_no_other() -> None:
    gallery = gallery_of(["p1", "p1", "p2", "p3"], unit([[1, 0], [0.8, 0.6], [0.6, 0.8], [0, 1]]))

    cases = gallery.nearest(unit([[1, 1e-4]])[0], 5, image_id="a.png", patient_id=None)

    assert ids(cases) == ["i2", "i3"]


def test_one_patient_takes_one_place() -> None:
    gallery = gallery_of(["p1"] * 50 + ["p2", "p3"], np.linspace(0.9, 0, 52, dtype=np.float32)[:, None])

    cases = gallery.nearest(np.ones(1, dtype=np.float32), 2, image_id="x", patient_id=None)

    assert ids(cases) == ["i0", "i50"]


def test_empty_gallery_has_no_nearest() -> None:
    gallery = gallery_of([], np.zeros((0, 3), dtype=np.float32))

    assert gallery.nearest(np.ones(3, dtype=np.float32), 5, image_id="x", patient_id=None) == ()


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 6))
def test_search_equals_looking_at_every_case(seed: int, size: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(size + 1, 4))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    *embeddings, query = rows.astype(np.float32)
    embeddings = np.stack(embeddings)
    patients = [f"p{n}" for n in rng.integers(0, max(size // 2, 1), size)]

    found = gallery_of(patients, embeddings).nearest(query, count, image_id="x", patient_id="p0")

    best: dict[str, float] = {}
    for patient, similarity in zip(patients, embeddings @ query, strict=True):
        if patient != "p0":
            best[patient] = max(best.get(patient, -np.inf), float(np.clip(similarity, -1, 1)))
    assert [near.similarity for near in found] == pytest.approx(sorted(best.values(), reverse=True)[:count])
    assert len({near.case.patient_id for near in found}) == len(found)


def test_no_gallery_is_none_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    assert read_gallery(tmp_path) is None
    (tmp_path / GALLERY_FILE).write_bytes(b"damaged")

    with pytest.raises(ModelMismatchError, match=r"Gallery defect_gallery\.safetensors is not valid .* make it anew"):
        read_gallery(tmp_path)


def test_gallery_with_a_missing_case_is_refused() -> None:
    with pytest.raises(ValueError, match=r"embeddings \(2, 3\) and 1 cases"):
        Gallery("", np.zeros((2, 3), dtype=np.float32), (PastCase("a", "p", Defect.ASD),))


def test_kept_gallery_follows_its_file_and_refuses_that_of_another_embedder(tmp_path: Path) -> None:
    kept = KeptGallery(tmp_path)
    assert kept.of("ab" * 32) is None

    write_gallery(tmp_path, gallery_of(["p1"]))
    first = kept.of("ab" * 32)
    again = kept.of("ab" * 32)
    write_gallery(tmp_path, gallery_of(["p1", "p2"]))

    assert first is again is not None
    assert len(kept.of("ab" * 32).cases) == 2
    assert kept.of("cd" * 32) is None


def test_an_empty_gallery_has_no_nearest_case(tmp_path: Path) -> None:
    write_gallery(tmp_path, Gallery("ab" * 32, np.zeros((0, 1), dtype=np.float32), ()))
    gallery = read_gallery(tmp_path)

    assert gallery is not None
    assert gallery.nearest(np.ones(4, dtype=np.float32), 5, image_id="new", patient_id="p1") == ()
