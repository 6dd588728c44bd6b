# SPDX-License-Identifier: Apache-2.0
"""A data set becomes a study folder: links, patients, labels, and a report that names no patient."""

import json
from pathlib import Path

import numpy as np
import pytest

from echo_plugin.anatomy import Defect, View
from echo_plugin.errors import AnnotationError, DataSetError
from echo_plugin.io.datasets.camus import read_camus
from echo_plugin.io.datasets.cardiacnet import read_cardiacnet
from echo_plugin.io.datasets.class_folders import read_class_folders
from echo_plugin.io.datasets.echonet import read_echonet_dynamic
from echo_plugin.io.datasets.mimic_echo import read_mimic_echo
from echo_plugin.io.datasets.ned import read_ned
from echo_plugin.io.datasets.source_cine import DataSet
from echo_plugin.io.datasets.study_writer import make_study_folder
from echo_plugin.io.patients_file import read_parts
from echo_plugin.io.study_folder import StudyFolder


def make_ned(src) -> None:
    for case in ("case1", "case2"):
        src.video(f"{case}/v1.mp4")
        src.video(f"{case}/v2.mp4")
        src.table(f"{case}/labels.csv", "Filename,Classification", ["v1,APICAL_4C_LVRV", "v2.mp4,PSAX_MV"])
    src.text("case2/broken.mp4", "no video")
    src.table("case2/labels.csv", "Filename,Classification", ["v1,APICAL_4C_LVRV", "v2,PSAX_MV", "broken,PSAX_AV"])


def test_labels_and_patients_reach_the_study_folder_by_reference(src, out: Path) -> None:
    make_ned(src)

    report = make_study_folder("ned", src.root, out, read_ned(src.root))

    folder = StudyFolder(out)
    entries = [folder.entry(image_id) for image_id in folder.image_ids()]
    assert [entry.patient_id for entry in entries] == ["case1", "case1", "case2", "case2"]
    assert [folder.annotation(e.image_id).view for e in entries] == [View.A4C, View.PSAX_MV] * 2
    assert folder.annotation(entries[0].image_id).author == "import ned"
    assert (out / "case1" / "v1.mp4").readlink() == src.root / "case1" / "v1.mp4"
    assert folder.problems() == []
    assert (report.cines, report.patients, report.views["A4C"].cines) == (4, 2, 2)
    assert "broken.mp4" in next(item.reason for item in report.left_out if item.what == "case2/broken.mp4")
    told = json.loads((out / "import.json").read_text())
    assert told["views"]["PSAX-MV"] == {"cines": 2, "patients": 2}
    assert sum(told["left_out_by_reason"].values()) == 1


def test_copies_do_not_need_the_source(src, out: Path) -> None:
    make_ned(src)

    make_study_folder("ned", src.root, out, read_ned(src.root), is_copy=True)

    assert not (out / "case1" / "v1.mp4").is_symlink()
    assert (out / "case1" / "v1.mp4").read_bytes() == (src.root / "case1" / "v1.mp4").read_bytes()


def test_frames_of_processed_ned_become_one_cine(src, out: Path) -> None:
    for number in range(1, 5):
        src.picture(f"case1/PSAX_MV/clip/img_{number:05d}.jpg", value=40 * number)
    src.picture("case1/PSAX_MV/odd/img_00001.jpg")
    src.picture("case1/PSAX_MV/odd/img_00002.jpg", size=(20, 20))

    report = make_study_folder("ned", src.root, out, read_ned(src.root))

    folder = StudyFolder(out)
    (image_id,) = folder.image_ids()
    cine = folder.read_cine(image_id)
    assert cine.frames.shape == (4, 24, 32, 1)
    assert cine.frame_times_ms is None
    np.testing.assert_allclose(cine.pixels[:, 5, 5, 0], [40, 80, 120, 160], atol=2)
    assert any("img_00002.jpg is (20, 20) px" in item.reason for item in report.left_out)


def test_split_reaches_the_patients_table(src, out: Path) -> None:
    rows = []
    for number, part in enumerate(("TRAIN", "VAL", "TEST")):
        src.video(f"Videos/0X{number}.avi", frames=6)
        rows.append(f"0X{number},{part}")
    src.table("FileList.csv", "FileName,Split", rows)
    src.table("VolumeTracings.csv", "FileName,X1,Y1,X2,Y2,Frame", ["0X0.avi,10,4,10,20,2", "0X0.avi,6,12,14,12,2"])

    report = make_study_folder("echonet-dynamic", src.root, out, read_echonet_dynamic(src.root))

    assert read_parts(out / "patients.csv") == {"0X0": "train", "0X1": "validation", "0X2": "test"}
    assert report.parts["test"].patients == 1
    assert (report.boxes, report.boxed_cines) == (1, 1)
    annotation = StudyFolder(out).annotation(StudyFolder(out).image_ids()[0])
    assert annotation.annotated_frames == (2,)


def test_boxes_on_a_frame_that_is_not_there_are_left_out_and_the_view_kept(src, out: Path) -> None:
    src.video("Videos/0X0.avi", frames=3)
    src.table("FileList.csv", "FileName,Split", ["0X0,TRAIN"])
    src.table("VolumeTracings.csv", "FileName,X1,Y1,X2,Y2,Frame", ["0X0.avi,10,4,10,20,40", "0X0.avi,6,12,14,12,40"])

    report = make_study_folder("echonet-dynamic", src.root, out, read_echonet_dynamic(src.root))

    folder = StudyFolder(out)
    annotation = folder.annotation(folder.image_ids()[0])
    assert (annotation.view, annotation.boxes, report.boxes) == (View.A4C, (), 0)
    assert "names frame index 40" in report.left_out[0].reason


def test_a_split_that_tears_a_patient_apart_is_not_kept(src, out: Path) -> None:
    for part in ("train", "test"):
        src.picture(f"{part}/A4C/p1/{part}.png")
    src.picture("train/A4C/p2/b.png")

    report = make_study_folder("class-folders", src.root, out, read_class_folders(src.root))

    assert read_parts(out / "patients.csv") == {"p2": "train"}
    assert any("tears 1 patients apart" in note for note in report.notes)


def test_camus_boxes_are_those_of_the_masks(src, masks, out: Path) -> None:
    stem = "database_nifti/patient0001/patient0001_4CH_half_sequence"
    src.volume(f"{stem}.nii.gz", masks["left heart"] * 60)
    src.volume(f"{stem}_gt.nii.gz", masks["left heart"])

    make_study_folder("camus", src.root, out, read_camus(src.root))

    folder = StudyFolder(out)
    (image_id,) = folder.image_ids()
    boxes = folder.annotation(image_id).boxes
    frame = folder.read_cine(image_id).read_frames([boxes[0].frame_index])[0, ..., 0]
    cut = frame[int(boxes[0].y1) : int(boxes[0].y2), int(boxes[0].x1) : int(boxes[0].x2)]
    assert (cut == 120).mean() > 0.3  # myocardium


def test_a_transposed_cine_is_written_upright_with_its_boxes(src, masks, out: Path) -> None:
    upright = masks["four chambers"]
    stored = np.ascontiguousarray(upright.swapaxes(1, 2))
    src.volume("CardiacNet-ASD/ASD/1_image.nii.gz", stored * 50)
    src.volume("CardiacNet-ASD/ASD/1_label.nii.gz", stored)

    report = make_study_folder("cardiacnet", src.root, out, read_cardiacnet(src.root))

    folder = StudyFolder(out)
    (image_id,) = folder.image_ids()
    np.testing.assert_array_equal(folder.read_cine(image_id).pixels[..., 0], upright * 50)
    assert folder.annotation(image_id).defect is Defect.ASD
    assert (report.boxes, report.without_patient) == (4, 1)


def test_a_header_that_groups_files_otherwise_is_left_out(src, out: Path) -> None:
    rows = []
    for number, (subject, header) in enumerate([("1", "a"), ("2", "b"), ("3", "b"), ("4", None)]):
        name = f"files/p1/p{subject}/s{number}/{number}_0001.dcm"
        src.dicom(name, f"1.2.3.{number}", header)
        rows.append(f"{subject},{number},{name}")
    src.table("echo-record-list.csv", "subject_id,study_id,dicom_filepath", rows)

    report = make_study_folder("mimic-echo", src.root, out, read_mimic_echo(src.root))

    folder = StudyFolder(out)
    assert [folder.entry(i).patient_id for i in folder.image_ids()] == ["a", "4"]
    assert report.left_out_by_reason == {"its header names another patient than the data set": 2}
    assert folder.annotated_ids() == []


def test_the_header_of_a_class_folder_goes_before_its_path(src, out: Path) -> None:
    src.dicom("A4C/series 1/a.dcm", "1.2.3.1", "anna")
    src.dicom("A4C/series 2/b.dcm", "1.2.3.2", "anna")

    report = make_study_folder("class-folders", src.root, out, read_class_folders(src.root))

    assert (report.cines, report.patients) == (2, 1)


def test_the_report_names_no_patient(src, out: Path) -> None:
    src.dicom("files/p1/p12345678/s9/9_0001.dcm", "1.2.3.1", "12345678")
    row = "12345678,9,files/p1/p12345678/s9/9_0001.dcm"
    src.table("echo-record-list.csv", "subject_id,study_id,dicom_filepath", [row])

    make_study_folder("mimic-echo", src.root, out, read_mimic_echo(src.root))

    assert "12345678" not in (out / "import.json").read_text()
    assert "12345678" not in str(list(out.rglob("*")))


def test_a_folder_with_something_else_in_it_is_refused(src, out: Path) -> None:
    make_ned(src)
    out.mkdir()
    (out / "mine.txt").write_text("")

    with pytest.raises(DataSetError, match="is not empty; an empty or new one is accepted"):
        make_study_folder("ned", src.root, out, read_ned(src.root))

    assert [path.name for path in out.iterdir()] == ["mine.txt"]


def test_a_study_folder_inside_the_data_set_is_refused(src) -> None:
    make_ned(src)

    with pytest.raises(DataSetError, match="lies in the data set itself"):
        make_study_folder("ned", src.root, src.root / "study", read_ned(src.root))


def test_a_table_that_is_refused_leaves_no_trace_in_the_study_folder(src, out: Path) -> None:
    def items():
        yield from read_ned(src.root).items
        raise DataSetError("Table x lacks a column.")

    make_ned(src)

    with pytest.raises(DataSetError, match="lacks a column"):
        make_study_folder("ned", src.root, out, DataSet(items()))

    assert not out.exists()


def test_an_import_of_nothing_says_why(src, out: Path) -> None:
    src.table("case1/labels.csv", "Filename,Classification", ["v1,PLAX_LV"])

    with pytest.raises(DataSetError, match=r"Nothing of the data set can be taken.*the file is not there"):
        make_study_folder("ned", src.root, out, read_ned(src.root))


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [("a,p1,dev", "line 2 has the split 'dev'"), ("a,p1,train\nb,p1,test", "line 3 puts a patient in a second part")],
)
def test_a_split_that_cannot_be_is_refused_with_its_line(tmp_path: Path, rows: str, sentence: str) -> None:
    path = tmp_path / "patients.csv"
    path.write_text(f"image_id,patient_id,split\n{rows}\n")

    with pytest.raises(AnnotationError, match=sentence) as refusal:
        read_parts(path)

    assert "p1" not in str(refusal.value)
