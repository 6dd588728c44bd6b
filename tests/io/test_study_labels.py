# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from echo_plugin.anatomy import Defect, Septum, View
from echo_plugin.annotations import Annotation, SeptalBox
from echo_plugin.cli.main import app
from echo_plugin.errors import AnnotationError
from echo_plugin.io.study_folder import StudyFolder
from echo_plugin.io.study_labels import SAID, WHICH, set_labels

BOX = SeptalBox(0, 2, 2, 9, 9, Septum.INTERATRIAL)


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    """Three stills: two of one child, one of another; the first has a box and an ASD."""
    root = tmp_path / "studies"
    (root / "a").mkdir(parents=True)
    for name in ("a/one.png", "a/two.png", "three.png"):
        Image.fromarray(np.full((20, 20), 90, dtype=np.uint8)).save(root / name)
    (root / "patients.csv").write_text("image_id,patient_id\na/one.png,p1\na/two.png,p1\nthree.png,p2\n")
    studies = StudyFolder(root)
    first = next(i for i in studies.image_ids() if "one" in i)
    studies.save_annotation(Annotation(first, (BOX,), (0,), View.A4C, Defect.ASD, 8.0), author="reader")
    return studies


def image_of(folder: StudyFolder, name: str) -> str:
    return next(i for i in folder.image_ids() if name in i)


def table_of(folder: StudyFolder, text: str) -> Path:
    path = folder.root.parent / "diagnoses.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_childs_diagnosis_labels_all_its_cines_and_leaves_boxes(folder: StudyFolder) -> None:
    table = table_of(folder, "patient_id,defect,comment\np1,vsd,seen\np2,Normal,\n")

    summary = set_labels(folder.root, table, author="table")

    first, second, third = (folder.annotation(image_of(folder, name)) for name in ("one", "two", "three"))
    assert (summary.changed, summary.unchanged) == (3, 0)
    assert (first.defect, first.boxes, first.view, first.defect_size_mm) == (Defect.VSD, (BOX,), View.A4C, None)
    assert (first.revision, first.author) == (2, "table")
    assert (second.defect, third.defect) == (Defect.VSD, Defect.NORMAL)
    assert folder.history(first.image_id)[0].defect is Defect.ASD


def test_a_table_says_which_cines_show_the_defect_of_the_child(folder: StudyFolder) -> None:
    text = "file,defect,defect_visible\na/one.png,,No\na/two.png,VSD,yes\nthree.png,ASD,\n"

    set_labels(folder.root, table_of(folder, text), author="table")

    first, second, third = (folder.annotation(image_of(folder, name)) for name in ("one", "two", "three"))
    assert [one.is_defect_visible for one in (first, second, third)] == [False, True, None]
    assert (first.defect, first.defect_size_mm) == (Defect.ASD, 8.0)


def test_the_help_names_every_column() -> None:
    told = CliRunner().invoke(app, ["labels", "--help"]).output

    for column in (*WHICH, *SAID):
        assert column in told, column


def test_the_same_table_again_changes_nothing(folder: StudyFolder) -> None:
    table = table_of(folder, "file,defect,defect_size_mm,view\na/two.png,ASD,6.5,SC-4C\nthree.png,,,A4C\n")
    set_labels(folder.root, table, author="table")

    summary = set_labels(folder.root, table, author="table")

    second, third = (folder.annotation(image_of(folder, name)) for name in ("two", "three"))
    assert (summary.changed, summary.unchanged) == (0, 2)
    assert (second.defect, second.defect_size_mm, second.view) == (Defect.ASD, 6.5, View.SUBCOSTAL_4C)
    assert (third.defect, third.view) == (None, View.A4C)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("patient_id,defect\np1,ASD\np2,hole\n", "line 3: defect is 'hole'; Normal, ASD, VSD"),
        ("patient_id,defect\np1,ASD\nsecret,ASD\n", "line 3 names no patient of the study folder"),
        ("file,view\nb.png,A4C\n", "line 2 names no image of the study folder"),
        ("file,view\nthree.png,A9C\n", "line 2: view is 'A9C'"),
        ("patient_id,file,defect\np1,,ASD\n,a/two.png,VSD\n", "line 3 gives a cine another defect than a line before"),
        ("file,defect,defect_size_mm\nthree.png,ASD,-2\n", "line 2: defect_size_mm is '-2'"),
        ("file,defect,defect_size_mm\nthree.png,Normal,2\n", "line 2: defect_size_mm is '2'"),
        ("file,defect,defect_visible\nthree.png,ASD,perhaps\n", "line 2: defect_visible is 'perhaps'; yes or no"),
        ("file,defect,defect_visible\nthree.png,Normal,yes\n", "line 2: defect_visible is 'yes'"),
        ("file,defect_visible\na/one.png,yes\na/one.png,no\n", "line 3 gives a cine another defect_visible"),
        ("file,defect_visible\nthree.png,yes\n", "is_defect_visible is True without a defect"),
        ("name,defect\na,ASD\n", "its first line needs one of"),
    ],
)
def test_a_wrong_line_is_named_and_nothing_is_written(folder: StudyFolder, text: str, message: str) -> None:
    with pytest.raises(AnnotationError, match=message) as caught:
        set_labels(folder.root, table_of(folder, text), author="table")

    assert "secret" not in str(caught.value)
    assert folder.annotated_ids() == [image_of(folder, "one")]
    assert folder.annotation(image_of(folder, "one")).revision == 1


def test_a_cine_that_cannot_be_read_keeps_no_other_from_its_label(folder: StudyFolder) -> None:
    (folder.root / "a" / "damaged.png").write_bytes(b"no picture")
    with (folder.root / "patients.csv").open("a") as patients:
        patients.write("a/damaged.png,p1\n")

    summary = set_labels(folder.root, table_of(folder, "patient_id,defect\np1,VSD\np2,ASD\n"), author="table")

    assert summary.changed == 3
    with pytest.raises(AnnotationError, match="line 3 names no image of the study folder that can be read"):
        set_labels(folder.root, table_of(folder, "file,view\nthree.png,A4C\na/damaged.png,A4C\n"), author="table")
    assert folder.annotation(image_of(folder, "three")).view is None


def test_the_command_says_how_many_cines_changed(folder: StudyFolder) -> None:
    table = table_of(folder, "file,defect\nthree.png,AVSD\na/one.png,ASD\n")

    result = CliRunner().invoke(app, ["labels", str(table), "--studies", str(folder.root)])

    assert result.exit_code == 0
    assert "1 cines labelled anew, 1 said the same before." in result.output
    assert folder.annotation(image_of(folder, "three")).defect is Defect.AVSD
