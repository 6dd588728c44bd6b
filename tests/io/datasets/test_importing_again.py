# SPDX-License-Identifier: Apache-2.0
"""An import into a folder that people have worked in: what they wrote, added and took out is as they left it."""

import json
from pathlib import Path

import pytest

from echo_plugin.anatomy import View
from echo_plugin.annotations import Annotation
from echo_plugin.errors import AnnotationError, DataSetError
from echo_plugin.io.datasets.class_folders import read_class_folders
from echo_plugin.io.datasets.mimic_echo import read_mimic_echo
from echo_plugin.io.datasets.ned import read_ned
from echo_plugin.io.datasets.source_cine import ImportReport
from echo_plugin.io.datasets.study_writer import make_study_folder
from echo_plugin.io.patients_file import read_parts, read_patients
from echo_plugin.io.study_folder import StudyFolder


def add_case(src, case: str, *names: str) -> None:
    for name in names:
        src.video(f"{case}/{name}.mp4")
    src.table(f"{case}/labels.csv", "Filename,Classification", [f"{name},PSAX_MV" for name in names])


def import_ned(src, out: Path, *, is_copy: bool = False) -> ImportReport:
    return make_study_folder("ned", src.root, out, read_ned(src.root), is_copy=is_copy)


def import_classes(src, out: Path) -> ImportReport:
    return make_study_folder("class-folders", src.root, out, read_class_folders(src.root))


def everything(out: Path) -> dict[str, bytes | Path]:
    """Return all that a person may have put into a folder: each file's bytes, or where a link leads."""
    paths = [path for path in out.rglob("*") if not path.is_dir() and not path.name.startswith(".echo_index")]
    return {str(path.relative_to(out)): path.readlink() if path.is_symlink() else path.read_bytes() for path in paths}


def replace_in(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.fixture
def table(src, out: Path) -> Path:
    """Three cases of one cine each, imported: their patients.csv."""
    for case in ("case1", "case2", "case3"):
        add_case(src, case, "v1")
    import_ned(src, out)
    return out / "patients.csv"


def test_a_second_import_changes_no_byte(src, out: Path, table: Path) -> None:
    before = everything(out)

    import_ned(src, out)

    assert everything(out) == before


def test_cines_that_a_person_gave_to_one_patient_stay_there_and_stay_placed(src, out: Path, table: Path) -> None:
    replace_in(table, ",case2,", ",case1,")
    before = everything(out)

    report = import_ned(src, out)

    assert everything(out).keys() == before.keys()
    assert everything(out)["patients.csv"] == before["patients.csv"]
    assert (report.cines, report.patients, report.left_out) == (3, 2, [])
    assert "1 cines have the patient that patients.csv gives them, not the data set's." in report.notes


def test_a_cine_and_a_line_that_a_person_added_are_kept_with_their_columns(src, out: Path, table: Path) -> None:
    type(src)(out).video("own/x.mp4")
    lines = table.read_text().splitlines()
    rows = [f"{lines[0]},remark", *(f"{line}," for line in lines[1:]), "own/x.mp4,me,train,from the ward"]
    table.write_text("\n".join(rows) + "\n")
    add_case(src, "case4", "v1")

    import_ned(src, out)

    assert table.read_text().splitlines() == [*rows, "case4%2Fv1.mp4,case4,,"]
    folder = StudyFolder(out)
    assert folder.entry("own%2Fx.mp4").patient_id == "me"
    assert read_parts(table) == {"me": "train"}


def test_a_part_that_a_person_chose_holds_for_new_cines_of_the_patient_too(src, out: Path, table: Path) -> None:
    replace_in(table, "case3,\n", "case3,test\n")
    add_case(src, "case3", "v1", "v2")

    report = import_ned(src, out)

    assert read_parts(table) == {"case3": "test"}
    assert table.read_text().count("case3,test") == 2
    assert report.parts["test"].cines == 2


def test_new_cines_of_a_patient_whom_a_person_renamed_follow(src, out: Path, table: Path) -> None:
    replace_in(table, ",case2,", ",case1,")
    add_case(src, "case2", "v1", "v2")

    for _ in range(2):  # what the first import wrote is no person's word for the second
        import_ned(src, out)

    assert read_patients(table)["case2%2Fv2.mp4"] == "case1"


def test_a_line_that_a_person_took_out_stays_out(src, out: Path, table: Path) -> None:
    replace_in(table, "case2%2Fv1.mp4,case2,\n", "")

    for _ in range(2):
        report = import_ned(src, out)

    assert "case2%2Fv1.mp4" not in read_patients(table)
    assert report.without_patient == 1
    assert "1 cines stay without the line that was taken out of patients.csv." in report.notes


def test_a_table_of_the_data_set_that_was_corrected_is_followed_where_no_person_wrote(src, out: Path) -> None:
    columns = "image_id,patient_id"
    for name in ("a", "b", "c"):
        src.picture(f"train/A4C/{name}.png")
    src.table("patients.csv", columns, [f"train/A4C/{name}.png,wrong" for name in ("a", "b", "c")])
    import_classes(src, out)
    replace_in(out / "patients.csv", "b.png,wrong", "b.png,by hand")
    src.table("patients.csv", columns, [f"train/A4C/{name}.png,right {name}" for name in ("a", "b", "c")])

    report = import_classes(src, out)

    assert any(note.startswith("2 cines had another patient in the last import;") for note in report.notes)
    names = {image_id[-5]: patient for image_id, patient in read_patients(out / "patients.csv").items()}
    assert {name: names[name] for name in "abc"} == {"a": "right a", "b": "by hand", "c": "right c"}


def test_a_part_of_a_split_that_tears_a_patient_apart_is_no_persons_word_later(src, out: Path) -> None:
    for part in ("train", "test"):
        src.picture(f"{part}/A4C/p1/{part}.png")
    import_classes(src, out)
    (src.root / "test" / "A4C" / "p1" / "test.png").rename(src.path("train/A4C/p1/b.png"))

    import_classes(src, out)

    assert read_parts(out / "patients.csv") == {"p1": "train"}


def test_a_cine_that_can_no_longer_be_taken_stays_where_an_earlier_import_put_it(src, out: Path) -> None:
    columns = "subject_id,study_id,dicom_filepath"
    rows = [f"{number},{number},files/{number}.dcm" for number in (1, 2, 3)]
    for number in (1, 2, 3):
        src.dicom(f"files/{number}.dcm", f"1.2.3.{number}", f"h{number}")
    src.table("echo-record-list.csv", columns, rows)
    make_study_folder("mimic-echo", src.root, out, read_mimic_echo(src.root), is_copy=True)
    before = everything(out)
    src.table("echo-record-list.csv", columns, [rows[0].replace("1,", "2,", 1), *rows[1:]])

    report = make_study_folder("mimic-echo", src.root, out, read_mimic_echo(src.root), is_copy=True)

    reason = "its header names another patient than the data set; the file of an earlier import stays"
    assert report.left_out_by_reason == {reason: 2}
    assert {n: c for n, c in everything(out).items() if n != "import.json"} == {
        n: c for n, c in before.items() if n != "import.json"
    }


def test_a_cine_that_was_taken_out_of_the_folder_does_not_come_back(src, out: Path, table: Path) -> None:
    StudyFolder(out).remove_image("case2%2Fv1.mp4")

    report = import_ned(src, out)

    assert report.left_out_by_reason == {"it was taken out of the study folder": 1}
    assert not (out / "case2" / "v1.mp4").is_symlink()
    assert (out / ".removed" / "case2%2Fv1.mp4" / "v1.mp4").is_symlink()


def test_a_label_that_a_person_took_back_does_not_come_back(src, out: Path, table: Path) -> None:
    StudyFolder(out).remove_annotation("case2%2Fv1.mp4")

    report = import_ned(src, out)

    assert StudyFolder(out).annotation("case2%2Fv1.mp4") is None
    assert report.left_out_by_reason == {"a person took back what was said of it": 1}


def test_a_label_that_the_data_set_changed_is_told_and_not_taken(src, out: Path, table: Path) -> None:
    src.table("case2/labels.csv", "Filename,Classification", ["v1,PLAX_LV"])

    report = import_ned(src, out)

    assert StudyFolder(out).annotation("case2%2Fv1.mp4").view is View.PSAX_MV
    assert report.left_out_by_reason == {"those there are others than the data set's, and stay": 1}


def test_a_label_that_cannot_be_read_is_left_to_the_person_who_edited_it(src, out: Path, table: Path) -> None:
    path = out / "annotations" / "case2%2Fv1.mp4.json"
    path.write_text("{half")

    report = import_ned(src, out)

    assert path.read_text() == "{half"
    assert [item.what for item in report.left_out] == ["case2/v1.mp4 (labels)"]


def test_a_file_of_a_person_in_the_place_of_a_new_cine_is_not_taken_for_it(src, out: Path, table: Path) -> None:
    mine = type(src)(out).video("case4/v1.mp4", frames=7)
    StudyFolder(out).save_annotation(Annotation("case4%2Fv1.mp4", view=View.A5C), author="a person")
    before = mine.read_bytes()
    add_case(src, "case4", "v1")

    report = import_ned(src, out)

    assert mine.read_bytes() == before
    assert report.left_out_by_reason == {"another file is in its place in the study folder, and stays there": 1}
    assert StudyFolder(out).annotation("case4%2Fv1.mp4").view is View.A5C
    assert "case4%2Fv1.mp4" not in read_patients(table)


def test_a_malformed_table_of_patients_stops_the_import_before_it_changes_anything(src, out: Path, table: Path) -> None:
    table.write_text("image_id;patient_id\ncase1/v1.mp4;me\n")
    add_case(src, "case4", "v1")
    before = everything(out)

    with pytest.raises(AnnotationError, match="the columns"):
        import_ned(src, out)

    assert everything(out) == before


def test_a_copy_replaces_the_links_of_an_earlier_import(src, out: Path, table: Path) -> None:
    report = import_ned(src, out, is_copy=True)

    assert report.is_copy
    assert not any(path.is_symlink() for path in out.rglob("*"))
    assert not list(out.rglob("*.tmp"))
    assert (out / "case1" / "v1.mp4").read_bytes() == (src.root / "case1" / "v1.mp4").read_bytes()
    assert StudyFolder(out).problems() == []


def test_links_that_a_copy_does_not_reach_are_told(src, out: Path, table: Path) -> None:
    (src.root / "case2" / "labels.csv").unlink()

    report = import_ned(src, out, is_copy=True)

    assert not json.loads((out / "import.json").read_text())["is_copy"]
    assert "1 files of the study folder are no part of this import and still links." in report.notes


def test_a_copy_that_fails_leaves_the_link(src, out: Path, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_source: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("echo_plugin.io.datasets.placed_files.shutil.copyfile", full)

    with pytest.raises(DataSetError, match="No space left on device"):
        import_ned(src, out, is_copy=True)

    assert (out / "case1" / "v1.mp4").readlink() == src.root / "case1" / "v1.mp4"
    assert not list(out.rglob("*.tmp"))
