# SPDX-License-Identifier: Apache-2.0
"""A file named by its path is the cine that its study folder knows."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from echo_plugin.errors import AnnotationError
from echo_plugin.io.study_folder import StudyFolder, read_study_cine


@pytest.fixture
def still(tmp_path: Path) -> Path:
    path = tmp_path / "study" / "child 7" / "a.png"
    path.parent.mkdir(parents=True)
    Image.new("L", (8, 8), 7).save(path)
    return path


@pytest.mark.parametrize("mark", ["annotations", "patients.csv"])
def test_id_and_patient_are_those_of_the_study_folder(still: Path, mark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = still.parents[1]
    if mark == "annotations":
        (root / mark).mkdir()
    else:
        (root / mark).write_text("image_id,patient_id\nchild 7/a.png,p7\n")
    monkeypatch.chdir(still.parent)

    cines = [read_study_cine(path) for path in (still, Path("a.png"), Path("../child 7/a.png"))]

    (entry,) = StudyFolder(root).entries()
    assert {(cine.image_id, cine.patient_id) for cine in cines} == {(entry.image_id, entry.patient_id)}
    assert entry.image_id == "child%207%2Fa.png"
    assert entry.patient_id == ("p7" if mark == "patients.csv" else None)


def test_a_dicom_file_keeps_its_uid_and_its_own_patient(make_dicom: Callable[..., Path], speckle: np.ndarray) -> None:
    path = make_dicom(speckle, "RGB")
    alone = read_study_cine(path)
    (path.parent / "patients.csv").write_text(f"image_id,patient_id\n{alone.image_id},p7\n")

    found = read_study_cine(path)

    assert found.image_id == alone.image_id == alone.sop_instance_uid
    assert found.patient_id == (alone.patient_id or "p7")


def test_what_lies_in_no_study_folder_is_read_as_it_is_and_nothing_is_made(still: Path) -> None:
    cine = read_study_cine(still)

    assert (cine.image_id, cine.patient_id) == ("a.png", None)
    assert [path for path in still.parents[1].rglob("*") if path.is_file()] == [still]


def test_a_changed_table_is_read_anew_and_a_malformed_one_refused(still: Path) -> None:
    table = still.parents[1] / "patients.csv"
    found = []
    for patient in ("p7", "p18"):
        table.write_text(f"image_id,patient_id\nchild 7/a.png,{patient}\n")
        found.append(read_study_cine(still).patient_id)
    table.write_text("name\nDOE\n")

    assert found == ["p7", "p18"]
    with pytest.raises(AnnotationError, match=r"patients\.csv: the columns .* are not both in its first line"):
        read_study_cine(still)
