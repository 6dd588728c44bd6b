# SPDX-License-Identifier: Apache-2.0
"""An import that was stopped, or whose source was moved or has grown, is run again and says what became of it."""

import json
from pathlib import Path

import numpy as np
import pytest

from echo_plugin.annotations import Annotation
from echo_plugin.io.datasets.camus import read_camus
from echo_plugin.io.datasets.cardiacnet import read_cardiacnet
from echo_plugin.io.datasets.class_folders import read_class_folders
from echo_plugin.io.datasets.ned import read_ned
from echo_plugin.io.datasets.source_cine import ImportReport
from echo_plugin.io.datasets.study_writer import make_study_folder
from echo_plugin.io.study_folder import StudyFolder

SEQUENCE = "patient0001/patient0001_4CH_half_sequence"
NO_SECOND_VIEW = "neither a half sequence nor a still of this view is there"
OTHER_BOXES = "the boxes there are others than the data set's, and stay"


def import_ned(src: Path, out: Path, *, is_copy: bool = False) -> ImportReport:
    return make_study_folder("ned", src, out, read_ned(src), is_copy=is_copy)


def import_camus(src, out: Path) -> ImportReport:
    return make_study_folder("camus", src.root, out, read_camus(src.root))


def stop_before_anything_is_judged(src: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(_: Path) -> StudyFolder:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("echo_plugin.io.datasets.study_writer.StudyFolder", stop)
        with pytest.raises(KeyboardInterrupt):
            import_ned(src, out)


@pytest.fixture
def ned(src) -> Path:
    for name in ("v1", "v2", "v3"):
        src.video(f"case1/{name}.mp4")
    src.text("case1/v2.mp4", "no video")
    src.table("case1/labels.csv", "Filename,Classification", ["v1,PSAX_MV", "v2,PSAX_MV", "v3,PSAX_MV"])
    return src.root


def test_a_source_that_is_spelled_otherwise_is_the_same(ned: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ned)
    import_ned(ned, out)

    report = import_ned(Path("../src"), out)

    assert (report.cines, len(report.left_out)) == (2, 1)


@pytest.mark.parametrize("is_copy", [False, True])
def test_links_into_a_source_that_was_moved_are_mended_and_it_is_told(ned: Path, out: Path, is_copy: bool) -> None:
    import_ned(ned, out)
    moved = ned.rename(ned.with_name("moved"))

    report = import_ned(moved, out, is_copy=is_copy)

    assert (out / "case1" / "v1.mp4").read_bytes() == (moved / "case1" / "v1.mp4").read_bytes()
    assert (out / "case1" / "v1.mp4").is_symlink() is not is_copy
    assert StudyFolder(out).problems() == []
    assert "2 links of an earlier import led nowhere any more, and were made anew." in report.notes


def test_a_link_to_another_file_stays_and_leaves_out_that_cine_only(src, ned: Path, out: Path) -> None:
    other = type(src)(out.parent).video("elsewhere.mp4", frames=7)
    import_ned(ned, out)
    (out / "case1" / "v1.mp4").unlink()
    (out / "case1" / "v1.mp4").symlink_to(other)

    report = import_ned(ned, out)

    assert (out / "case1" / "v1.mp4").readlink() == other
    assert "a link to another file is in its place in the study folder, and stays there" in report.left_out_by_reason
    assert report.cines == 1


def test_a_packed_cine_whose_pictures_have_become_more_is_told(src, out: Path) -> None:
    for number in range(1, 4):
        src.picture(f"case1/PSAX_MV/v1/img_{number:05}.jpg")
        src.picture(f"case1/PSAX_MV/v2/img_{number:05}.jpg")
    import_ned(src.root, out)
    src.picture("case1/PSAX_MV/v1/img_00004.jpg")

    report = import_ned(src.root, out)

    assert [entry.frames for entry in StudyFolder(out).entries()] == [3, 3]
    assert report.cines == 2
    assert [(item.what, item.reason) for item in report.left_out] == [
        (
            "case1/PSAX_MV/v1.nrrd (frames)",
            "the data set has another number of them; the file of an earlier import stays",
        )
    ]


def test_a_cine_that_was_written_upright_and_has_become_longer_is_told(src, masks, out: Path) -> None:
    for frames in (2, 3):
        stored = np.ascontiguousarray(masks["four chambers"][[0] * frames].swapaxes(1, 2))
        src.volume("CardiacNet-ASD/ASD/1_image.nii.gz", stored * 50)
        src.volume("CardiacNet-ASD/ASD/1_label.nii.gz", stored)
        report = make_study_folder("cardiacnet", src.root, out, read_cardiacnet(src.root))

    assert [entry.frames for entry in StudyFolder(out).entries()] == [2]
    assert [item.what for item in report.left_out] == [
        "CardiacNet-ASD/ASD/1_image.nii.gz (frames)",
        "CardiacNet-ASD/ASD/1_image.nii.gz (boxes)",
    ]


def test_boxes_that_the_data_set_has_now_are_added_where_only_the_import_spoke(src, masks, out: Path) -> None:
    src.volume(f"{SEQUENCE}.nii.gz", masks["left heart"] * 40)
    import_camus(src, out)
    src.volume(f"{SEQUENCE}_gt.nii.gz", masks["left heart"])

    reports = [import_camus(src, out) for _ in range(2)]

    folder = StudyFolder(out)
    assert [(report.boxes, report.left_out_by_reason) for report in reports] == [(2, {NO_SECOND_VIEW: 1})] * 2
    annotation = folder.annotation(folder.image_ids()[0])
    assert (len(annotation.boxes), annotation.revision) == (2, 2)


def test_boxes_that_the_data_set_changed_are_told_and_not_taken(src, masks, out: Path) -> None:
    src.volume(f"{SEQUENCE}.nii.gz", masks["left heart"] * 40)
    src.volume(f"{SEQUENCE}_gt.nii.gz", masks["left heart"])
    import_camus(src, out)
    folder = StudyFolder(out)
    before = folder.annotation(folder.image_ids()[0]).boxes
    src.volume(f"{SEQUENCE}_gt.nii.gz", np.roll(masks["left heart"], 2, axis=2))

    report = import_camus(src, out)

    assert folder.annotation(folder.image_ids()[0]).boxes == before
    assert report.left_out_by_reason == {OTHER_BOXES: 1, NO_SECOND_VIEW: 1}


def test_boxes_that_the_data_set_has_now_leave_a_persons_word_alone(src, masks, out: Path) -> None:
    src.volume(f"{SEQUENCE}.nii.gz", masks["left heart"] * 40)
    import_camus(src, out)
    folder = StudyFolder(out)
    (image_id,) = folder.image_ids()
    folder.save_annotation(Annotation(image_id), author="a person")
    src.volume(f"{SEQUENCE}_gt.nii.gz", masks["left heart"])

    import_camus(src, out)

    assert folder.annotation(image_id).author == "a person"


def test_files_that_a_stopped_import_placed_are_judged_by_the_next(
    ned: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_before_anything_is_judged(ned, out, monkeypatch)

    import_ned(ned, out)

    assert sorted(path.name for path in (out / "case1").iterdir()) == ["v1.mp4", "v3.mp4"]
    assert StudyFolder(out).problems() == []


def test_a_stopped_import_brings_nothing_back_that_was_taken_out(
    ned: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_ned(ned, out)
    StudyFolder(out).remove_image("case1%2Fv3.mp4")
    stop_before_anything_is_judged(ned, out, monkeypatch)

    report = import_ned(ned, out)

    assert [path.name for path in (out / "case1").iterdir()] == ["v1.mp4"]
    assert "it was taken out of the study folder" in report.left_out_by_reason


def test_a_file_that_a_person_put_back_after_a_whole_import_stays(ned: Path, out: Path) -> None:
    import_ned(ned, out)
    StudyFolder(out).remove_image("case1%2Fv3.mp4")
    import_ned(ned, out)
    (out / "case1" / "v3.mp4").write_bytes((ned / "case1" / "v3.mp4").read_bytes())

    report = import_ned(ned, out)

    assert (out / "case1" / "v3.mp4").is_file()
    assert report.cines == 2


def test_a_folder_of_copies_is_called_so_after_an_import_by_reference(src, out: Path) -> None:
    src.picture("A4C/p1/a.png")
    for is_copy in (True, False):
        make_study_folder("class-folders", src.root, out, read_class_folders(src.root), is_copy=is_copy)

    assert json.loads((out / "import.json").read_text())["is_copy"]
