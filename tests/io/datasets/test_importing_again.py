# SPDX-License-Identifier: Apache-2.0
"""An import in the place of an earlier one: it is asked for, follows the data set, and leaves people's work alone."""

import json
from pathlib import Path

import numpy as np
import pytest

from echo_plugin.anatomy import View
from echo_plugin.annotations import Annotation
from echo_plugin.errors import DataSetError
from echo_plugin.io.datasets.camus import read_camus
from echo_plugin.io.datasets.ned import read_ned
from echo_plugin.io.datasets.source_cine import ImportReport
from echo_plugin.io.datasets.study_writer import make_study_folder
from echo_plugin.io.patients_file import read_patients
from echo_plugin.io.study_folder import StudyFolder

SEQUENCE = "patient0001/patient0001_4CH_half_sequence"
TAKEN = "its place in the study folder is taken"


def add_case(src, case: str, *names: str) -> None:
    for name in names:
        src.video(f"{case}/{name}.mp4")
    src.table(f"{case}/labels.csv", "Filename,Classification", [f"{name},PSAX_MV" for name in names])


def import_ned(src, out: Path, *, is_copy: bool = False, is_replacing: bool = True) -> ImportReport:
    return make_study_folder("ned", src.root, out, read_ned(src.root), is_copy=is_copy, is_replacing=is_replacing)


def everything(out: Path) -> dict[str, bytes | Path]:
    """Return all that a person may have put into a folder: each file's bytes, or where a link leads."""
    paths = [path for path in out.rglob("*") if not path.is_dir() and not path.name.startswith(".echo_index")]
    return {str(path.relative_to(out)): path.readlink() if path.is_symlink() else path.read_bytes() for path in paths}


@pytest.fixture
def table(src, out: Path) -> Path:
    """Three cases of one cine each, imported: their patients.csv."""
    for case in ("case1", "case2", "case3"):
        add_case(src, case, "v1")
    import_ned(src, out)
    return out / "patients.csv"


def test_a_second_import_is_refused_and_changes_nothing_unless_it_is_to_replace(src, out: Path, table: Path) -> None:
    before = everything(out)

    with pytest.raises(DataSetError, match="out holds an import of ned already; --replace makes it anew"):
        import_ned(src, out, is_replacing=False)

    assert everything(out) == before


def test_replacing_by_the_same_changes_no_byte(src, out: Path, table: Path) -> None:
    before = everything(out)

    import_ned(src, out)

    assert everything(out) == before


def test_an_import_of_something_else_is_not_replaced(src, out: Path, table: Path) -> None:
    before = everything(out)

    with pytest.raises(DataSetError, match="is not empty; an empty or new one is accepted"):
        make_study_folder("camus", src.root, out, read_ned(src.root), is_replacing=True)

    assert everything(out) == before


def test_replacing_follows_the_data_set_and_leaves_peoples_labels(src, out: Path, table: Path) -> None:
    folder = StudyFolder(out)
    folder.save_annotation(Annotation("case1%2Fv1.mp4", view=View.A5C), author="a person")
    folder.save_annotation(Annotation("case2%2Fv1.mp4", view=View.A2C), author="a person")
    for name in ("v1.mp4", "labels.csv"):
        (src.root / "case2" / name).unlink()
    src.table("case1/labels.csv", "Filename,Classification", ["v1,PLAX_LV"])
    src.table("case3/labels.csv", "Filename,Classification", ["v1,PLAX_LV"])
    add_case(src, "case4", "v1")

    report = import_ned(src, out)

    folder = StudyFolder(out)
    views = {image_id: folder.annotation(image_id).view for image_id in folder.image_ids()}
    assert views == {"case1%2Fv1.mp4": View.A5C, "case3%2Fv1.mp4": View.PLAX_LV, "case4%2Fv1.mp4": View.PSAX_MV}
    assert [revision.view for revision in folder.history("case3%2Fv1.mp4")] == [View.PSAX_MV, View.PLAX_LV]
    assert folder.annotation("case2%2Fv1.mp4").view is View.A2C  # waits for its cine
    assert set(read_patients(table).values()) == {"case1", "case3", "case4"}
    assert report.cines == 3


def test_a_patients_table_that_was_changed_is_kept_beside_the_new_one(src, out: Path, table: Path) -> None:
    for number in (1, 2):
        table.write_text(changed := table.read_text().replace(",case2,", f",by hand {number},"))

        report = import_ned(src, out)

        assert (out / f"patients.before-{number}.csv").read_text() == changed
        assert f"patients.csv was another one before; it is kept as patients.before-{number}.csv." in report.notes
        assert read_patients(table)["case2%2Fv1.mp4"] == "case2"


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


def test_a_label_that_cannot_be_read_is_left_to_the_person_who_edited_it(src, out: Path, table: Path) -> None:
    path = out / "annotations" / "case2%2Fv1.mp4.json"
    path.write_text("{half")

    report = import_ned(src, out)

    assert path.read_text() == "{half"
    assert [item.what for item in report.left_out] == ["case2/v1.mp4 (labels)"]


def test_a_file_of_a_person_stays_also_in_the_place_of_a_new_cine(src, out: Path, table: Path) -> None:
    mine = [type(src)(out).video(name, frames=7) for name in ("case4/v1.mp4", "own/x.mp4")]
    StudyFolder(out).save_annotation(Annotation("case4%2Fv1.mp4", view=View.A5C), author="a person")
    before = [path.read_bytes() for path in mine]
    add_case(src, "case4", "v1")

    report = import_ned(src, out)

    assert [path.read_bytes() for path in mine] == before
    assert report.left_out_by_reason == {TAKEN: 1}
    assert StudyFolder(out).annotation("case4%2Fv1.mp4").view is View.A5C
    assert "case4%2Fv1.mp4" not in read_patients(table)


def test_a_copy_replaces_the_links_and_links_replace_the_copy(src, out: Path, table: Path) -> None:
    report = import_ned(src, out, is_copy=True)

    assert report.is_copy and json.loads((out / "import.json").read_text())["is_copy"]
    assert not any(path.is_symlink() for path in out.rglob("*"))
    assert not list(out.rglob(".*.tmp.*"))
    assert (out / "case1" / "v1.mp4").read_bytes() == (src.root / "case1" / "v1.mp4").read_bytes()
    assert StudyFolder(out).problems() == []

    assert not import_ned(src, out).is_copy
    assert (out / "case1" / "v1.mp4").readlink() == src.root / "case1" / "v1.mp4"


def test_links_into_a_source_that_was_moved_are_made_anew(src, out: Path, table: Path) -> None:
    src.root = src.root.rename(src.root.with_name("moved"))

    import_ned(src, out)

    assert (out / "case1" / "v1.mp4").read_bytes() == (src.root / "case1" / "v1.mp4").read_bytes()
    assert StudyFolder(out).problems() == []


def test_a_copy_that_fails_is_told_and_the_next_import_is_whole(
    src, out: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_source: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("echo_plugin.io.datasets.placed_files.shutil.copyfile", full)
        with pytest.raises(DataSetError, match="No space left on device"):
            import_ned(src, out, is_copy=True)
    assert not list(out.rglob(".*.tmp.*"))

    assert import_ned(src, out, is_copy=True).cines == 3


@pytest.mark.parametrize("is_first", [False, True])
def test_what_a_stopped_import_placed_is_replaced_by_the_next(
    src, out: Path, monkeypatch: pytest.MonkeyPatch, is_first: bool
) -> None:
    add_case(src, "case1", "v1", "v2", "v3")
    src.text("case1/v2.mp4", "no video")
    if not is_first:
        import_ned(src, out)

    def stop(_: Path) -> StudyFolder:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("echo_plugin.io.datasets.study_writer.StudyFolder", stop)
        with pytest.raises(KeyboardInterrupt):
            import_ned(src, out)

    import_ned(src, out)

    assert sorted(path.name for path in (out / "case1").iterdir()) == ["v1.mp4", "v3.mp4"]
    assert StudyFolder(out).problems() == []


def test_a_list_of_places_that_leads_out_of_the_folder_deletes_nothing_there(src, out: Path, table: Path) -> None:
    places = ["case1/v1.mp4", str(src.root / "case1" / "v1.mp4"), "../src/case1/v1.mp4"]
    (out / ".import_places.json").write_text(json.dumps(places))

    assert import_ned(src, out).cines == 1

    assert (src.root / "case1" / "v1.mp4").is_file()


def test_pictures_that_have_become_more_are_packed_anew(src, out: Path) -> None:
    for number in range(1, 4):
        src.picture(f"case1/PSAX_MV/v1/img_{number:05}.jpg")
    import_ned(src, out)
    src.picture("case1/PSAX_MV/v1/img_00004.jpg")

    import_ned(src, out)

    assert [entry.frames for entry in StudyFolder(out).entries()] == [4]


def test_boxes_follow_the_data_set_where_only_the_import_spoke(src, masks, out: Path) -> None:
    def import_camus() -> ImportReport:
        return make_study_folder("camus", src.root, out, read_camus(src.root), is_replacing=True)

    src.volume(f"{SEQUENCE}.nii.gz", masks["left heart"] * 40)
    import_camus()
    src.volume(f"{SEQUENCE}_gt.nii.gz", masks["left heart"])
    assert import_camus().boxes == 2
    folder = StudyFolder(out)
    (image_id,) = folder.image_ids()
    first = folder.annotation(image_id)
    src.volume(f"{SEQUENCE}_gt.nii.gz", np.roll(masks["left heart"], 2, axis=2))

    assert import_camus().boxes == 2

    assert folder.annotation(image_id).revision == first.revision + 1 == 3
    assert folder.annotation(image_id).boxes != first.boxes
    folder.save_annotation(Annotation(image_id), author="a person")
    assert import_camus().boxes == 0
    assert folder.annotation(image_id).author == "a person"
