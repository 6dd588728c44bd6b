# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import numpy as np
import pytest

from echo_plugin.anatomy import Defect
from echo_plugin.errors import ModelMismatchError
from echo_plugin.gallery import GALLERY_FILE, Gallery, read_gallery, write_gallery


@pytest.fixture
def gallery() -> Gallery:
    embeddings = np.eye(4, dtype=np.float32)
    return Gallery(
        "ab" * 32, embeddings, ("a", "b", "c", "d"), ("p1", "p1", "p2", None), (*[Defect.ASD] * 3, Defect.VSD)
    )


def test_gallery_is_written_and_read_back(tmp_path: Path, gallery: Gallery) -> None:
    write_gallery(tmp_path, gallery)

    found = read_gallery(tmp_path)

    assert found is not None
    np.testing.assert_array_equal(found.embeddings, gallery.embeddings)
    assert (found.sha256, found.image_ids, found.patient_ids, found.defects) == (
        gallery.sha256,
        gallery.image_ids,
        gallery.patient_ids,
        gallery.defects,
    )


def test_nearest_are_of_other_cines_and_other_patients(gallery: Gallery) -> None:
    query = np.array([0.8, 0.5, 0.3, 0.1], dtype=np.float32)

    cases = gallery.nearest(query, 5, image_id="d", patient_id="p1")

    assert [(c.image_id, c.patient_id, c.defect) for c in cases] == [("c", "p2", Defect.ASD)]
    assert cases[0].similarity == pytest.approx(0.3)


def test_unknown_patient_is_compared_with_all_and_nearest_come_first(gallery: Gallery) -> None:
    cases = gallery.nearest(np.array([0.5, 0.8, 0.3, 0.1], dtype=np.float32), 2, image_id="x", patient_id=None)

    assert [c.image_id for c in cases] == ["b", "a"]


def test_no_gallery_is_none_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    assert read_gallery(tmp_path) is None
    (tmp_path / GALLERY_FILE).write_bytes(b"damaged")

    with pytest.raises(ModelMismatchError, match=r"Gallery defect_gallery\.safetensors is not valid"):
        read_gallery(tmp_path)


def test_gallery_with_a_missing_id_is_refused() -> None:
    with pytest.raises(ValueError, match=r"embeddings \(2, 3\), 1 image ids"):
        Gallery("", np.zeros((2, 3), dtype=np.float32), ("a",), (None, None), (Defect.ASD, Defect.VSD))
