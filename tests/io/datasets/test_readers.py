# SPDX-License-Identifier: Apache-2.0
"""Every layout is read as its data set has it; wrong ones are refused in one sentence."""

from pathlib import Path

import pytest

from echo_plugin.anatomy import NED_16, Defect, View
from echo_plugin.errors import DataSetError
from echo_plugin.io.datasets.camus import read_camus
from echo_plugin.io.datasets.cardiacnet import read_cardiacnet
from echo_plugin.io.datasets.class_folders import read_class_folders
from echo_plugin.io.datasets.echonet import read_echonet_dynamic, read_echonet_pediatric
from echo_plugin.io.datasets.mimic_echo import read_mimic_echo
from echo_plugin.io.datasets.ned import CLASSES, read_ned
from echo_plugin.io.datasets.source_cine import AbsentFileError, DataSet, LeftOut, NotTakenError, SourceCine, named_file
from echo_plugin.io.datasets.tmed2 import read_tmed2


def sorted_out(data_set: DataSet) -> tuple[dict[str, SourceCine], dict[str, str]]:
    """Return the cines by place, and the reasons by what was left out."""
    items = list(data_set.items)
    cines = {str(item.place): item for item in items if isinstance(item, SourceCine)}
    return cines, {item.what: item.reason for item in items if isinstance(item, LeftOut)}


# NED


@pytest.mark.parametrize("place", ["", "echos_video/", "neo-echoset-raw/echos_video/"])
def test_raw_ned_is_read_from_its_tables(src, place: str) -> None:
    for name in ("v1.mp4", "v2.mp4", "stray.mp4"):
        src.text(f"{place}case7/{name}", "")
    src.table(
        f"{place}case7/labels.csv", "Filename,Classification", ["v1.mp4,APICAL_4C_LVRV", "v2,PSAX_PAPS", "v3,PSAX_MV"]
    )

    cines, left = sorted_out(read_ned(src.root))

    assert {place: cine.view for place, cine in cines.items()} == {
        "case7/v1.mp4": View.A4C,
        "case7/v2.mp4": View.PSAX_PM,
    }
    assert {cine.patient_id for cine in cines.values()} == {"case7"}
    assert left == {
        "case7/v3.mp4": "the table names it, but the file is not there",
        "case7/stray.mp4": "labels.csv does not name it",
    }


def test_ned_videos_of_unknown_class_or_of_a_case_without_table_are_left_out(src) -> None:
    src.text("case1/v1.mp4", "")
    src.table("case1/labels.csv", "Filename,Classification", ["v1,VALVE_CLOSEUP"])
    src.text("case2/v9.mp4", "")

    cines, left = sorted_out(read_ned(src.root))

    assert cines == {}
    assert left["case1/v1.mp4"].startswith("class 'VALVE_CLOSEUP' is none of NED's")
    assert left["case2"] == "the case has no labels.csv"


def test_one_wrong_table_of_ned_leaves_out_its_case_alone(src) -> None:
    for case, columns in (("case1", "Filename,Classification"), ("case2", "File,Class")):
        src.text(f"{case}/v1.mp4", "")
        src.text(f"{case}/v2.mp4", "")
        src.table(f"{case}/labels.csv", columns, ["v1,PSAX_MV", "v2,PSAX_MV"])

    items = list(read_ned(src.root).items)

    assert [str(item.place) for item in items if isinstance(item, SourceCine)] == ["case1/v1.mp4", "case1/v2.mp4"]
    (left,) = [item for item in items if isinstance(item, LeftOut)]
    assert (left.what, left.count) == ("case2", 2)
    assert left.reason.startswith("Table case2/labels.csv lacks the column 'Filename'; its first line has ['File'")


@pytest.mark.parametrize("raw", ["", "neo-echoset-raw/echos_video/"])
@pytest.mark.parametrize("processed", ["", "neo-echoset/"])
def test_the_processed_form_of_ned_beside_the_raw_one_is_told_as_left_out(src, raw: str, processed: str) -> None:
    src.text(f"{raw}case1/v1.mp4", "")
    src.table(f"{raw}case1/labels.csv", "Filename,Classification", ["v1,PSAX_MV"])
    for video in ("v1", "v2"):
        for number in (1, 2):
            src.text(f"{processed}case1/PSAX_MV/{video}/img_{number:05d}.jpg", "")

    items = list(read_ned(src.root).items)

    left = [item for item in items if isinstance(item, LeftOut)]
    what = processed.strip("/") or src.root.name
    assert left == [LeftOut(what, "the processed form beside the raw one, which is taken", 2)]


def test_processed_ned_is_read_as_ordered_frames(src) -> None:
    for number in (2, 1, 10, 3, 4, 5, 6, 7, 8, 9):
        src.text(f"neo-echoset/case1/PSAX_MV/clip a/img_{number:05d}.jpg", "")
    src.text("neo-echoset/case1/PSAX_MV/gap/img_00002.jpg", "")

    cines, left = sorted_out(read_ned(src.root))

    cine = cines["case1/PSAX_MV/clip a.nrrd"]
    assert (cine.view, cine.patient_id) == (View.PSAX_MV, "case1")
    assert [path.name for path in cine.frames] == [f"img_{n:05d}.jpg" for n in range(1, 11)]
    assert "without a gap" in left["case1/PSAX_MV/gap"]


def test_every_class_of_ned_is_one_of_its_sixteen_views() -> None:
    assert set(CLASSES.values()) == set(NED_16)


# EchoNet


def test_echonet_dynamic_is_read_with_split_and_tracings(src) -> None:
    for name in ("0X1A.avi", "0X2B.avi", "0X3C.avi"):
        src.text(f"Videos/{name}", "")
    columns = "FileName,EF,ESV,EDV,FrameHeight,FrameWidth,FPS,NumberOfFrames,Split"
    src.table("FileList.csv", columns, ["0X1A,55,1,2,112,112,50,9,TRAIN", "0X2B,50,1,2,112,112,50,9,VAL"])
    chords = ["0X1A.avi,50,20,50,80,4"] + [f"0X1A.avi,{40},{y},{60},{y},4" for y in (30, 50, 70)]
    src.table("VolumeTracings.csv", "FileName,X1,Y1,X2,Y2,Frame", chords)

    cines, left = sorted_out(read_echonet_dynamic(src.root))

    assert {c.patient_id: c.part for c in cines.values()} == {"0X1A": "train", "0X2B": "validation"}
    assert {c.view for c in cines.values()} == {View.A4C}
    (box,) = cines["A4C/0X1A.avi"].weak_boxes().boxes
    assert (box.frame_index, box.septum.value, box.score) == (4, "interventricular", 0.5)
    assert box.x1 < 40 < box.x2 <= 50 and box.y1 <= 20 and box.y2 == 80
    assert cines["A4C/0X2B.avi"].weak_boxes is None
    assert left == {"A4C/0X3C.avi": "FileList.csv does not name it"}


@pytest.mark.parametrize("place", ["", "pediatric_echo_avi/", "pediatric_echo_avi/pediatric_echo_avi/"])
def test_echonet_pediatric_holds_what_may_be_one_child_together(src, place: str) -> None:
    names = ["CR1-CR8-01.avi", "CR1-CR8-02.avi", "CR2-CR9-01.avi"]
    for view in ("A4C", "PSAX"):
        for name in names:
            src.text(f"{place}{view}/Videos/{name}", "")
        rows = [f"{name},60,F,4,15,100,{fold}" for name, fold in zip(names, (8, 8, 3), strict=True)]
        src.table(f"{place}{view}/FileList.csv", "FileName,EF,Sex,Age,Weight,Height,Split", rows)
        points = ["30,10", "20,40", "30,70", "45,40"]
        traced = [f"CR1-CR8-01.avi,{p},2" for p in points] + ["CR1-CR8-01.avi,,,No Systolic"]
        src.table(f"{place}{view}/VolumeTracings.csv", "FileName,X,Y,Frame", traced)

    cines, left = sorted_out(read_echonet_pediatric(src.root))

    assert len(cines) == 6 and left == {}
    assert {c.patient_id: c.part for c in cines.values()} == {"CR1": "validation", "CR2": "train"}
    assert cines["PSAX/CR1-CR8-01.avi"].view is View.PSAX_PM
    assert len(cines["A4C/CR1-CR8-01.avi"].weak_boxes().boxes) == 1
    assert cines["PSAX/CR1-CR8-01.avi"].weak_boxes is None


def test_folds_of_echonet_pediatric_can_be_chosen(src) -> None:
    src.text("A4C/Videos/a-1.avi", "")
    src.table("A4C/FileList.csv", "FileName,EF,Split", ["a-1.avi,60,7"])

    cines, _ = sorted_out(read_echonet_pediatric(src.root, validation_folds=(7,), test_folds=(8, 9)))

    assert cines["A4C/a-1.avi"].part == "validation"
    with pytest.raises(DataSetError, match="different ones of 0 to 9"):
        read_echonet_pediatric(src.root, validation_folds=(8,), test_folds=(8,))


@pytest.mark.parametrize(
    ("columns", "row", "sentence"),
    [
        ("FileName,EF,Split", "a,50,NOBODY", "line 2 has the Split 'NOBODY'"),
        ("FileName,EF", "a,50", "FileList.csv lacks the column 'Split'"),
    ],
)
def test_a_split_of_echonet_that_is_not_understood_is_refused(src, columns: str, row: str, sentence: str) -> None:
    src.table("FileList.csv", columns, [row])

    with pytest.raises(DataSetError, match=sentence):
        read_echonet_dynamic(src.root)


def test_a_tracing_without_numbers_is_refused_with_its_line(src) -> None:
    src.table("FileList.csv", "FileName,Split", ["a,TRAIN"])
    src.table("VolumeTracings.csv", "FileName,X1,Y1,X2,Y2,Frame", ["a.avi,1,2,3,4,5", "a.avi,1,2,x,4,5"])

    with pytest.raises(DataSetError, match=r"VolumeTracings.csv: line 3 has a coordinate that is no number"):
        read_echonet_dynamic(src.root)


# CAMUS


@pytest.mark.heavy
@pytest.mark.parametrize("place", ["", "database_nifti/"])
def test_camus_half_sequences_are_taken_and_their_stills_left(src, masks, place: str) -> None:
    for chambers in ("2CH", "4CH"):
        for name in ("half_sequence", "ED", "ES"):
            src.text(f"{place}patient0001/patient0001_{chambers}_{name}.nii.gz", "")
    src.volume(f"{place}patient0001/patient0001_4CH_half_sequence_gt.nii.gz", masks["left heart"])
    src.text(f"{place}patient0002/patient0002_4CH_ED.nii.gz", "")
    src.text("database_split/subgroup_training.txt", "patient0001\n")
    src.text("database_split/subgroup_testing.txt", "patient0002\n")

    cines, left = sorted_out(read_camus(src.root))

    four = cines["patient0001/patient0001_4CH_half_sequence.nii.gz"]
    assert (four.view, four.patient_id, four.part) == (View.A4C, "patient0001", "train")
    assert [box.frame_index for box in four.weak_boxes().boxes] == [0, 1]
    assert cines["patient0001/patient0001_2CH_half_sequence.nii.gz"].weak_boxes is None
    assert cines["patient0002/patient0002_4CH_ED.nii.gz"].part == "test"
    assert left["patient0001_4CH"].startswith("ED and ES stills are frames")
    assert "neither a half sequence" in left["patient0002_2CH"]


def test_a_frame_rate_of_camus_that_is_not_carried_is_noted(src) -> None:
    for patient in ("patient0001", "patient0002"):
        src.text(f"{patient}/{patient}_4CH_half_sequence.nii.gz", "")
    src.text("patient0001/Info_4CH.cfg", "ED: 1\nES: 5\nNbFrame: 5\nFrameRate: 46.5\n")
    src.text("patient0002/Info_4CH.cfg", "ED: 1\nES: 5\nNbFrame: 5\n")

    notes = read_camus(src.root).notes

    (note,) = [note for note in notes if "FrameRate" in note]
    assert note.startswith("1 Info_*.cfg state a FrameRate that the files of the cines do not carry")


def test_folders_of_camus_of_another_name_are_told_as_left_out(src) -> None:
    src.text("patient0001/patient0001_4CH_half_sequence.nii.gz", "")
    src.text("patient2/patient2_4CH_half_sequence.nii.gz", "")

    _, left = sorted_out(read_camus(src.root))

    assert left["patient2"] == "the folder is not named patientNNNN"


def test_camus_in_its_old_form_is_refused(src) -> None:
    src.text("patient0001/patient0001_4CH_ED.mhd", "")

    with pytest.raises(DataSetError, match=r"old form \(.mhd\); the NIfTI form"):
        read_camus(src.root)


def test_camus_patient_in_two_subgroups_is_refused(src) -> None:
    src.text("patient0001/patient0001_4CH_ED.nii.gz", "")
    for word in ("training", "testing"):
        src.text(f"database_split/subgroup_{word}.txt", "patient0001\n")

    with pytest.raises(DataSetError, match="names a patient that another subgroup has"):
        read_camus(src.root)


# CardiacNet


@pytest.mark.parametrize("place", ["", "CardiacNet/"])
def test_cardiacnet_is_read_by_its_groups(src, masks, place: str) -> None:
    src.text(f"{place}CardiacNet-ASD/ASD/001_image.nii.gz", "")
    src.volume(f"{place}CardiacNet-ASD/ASD/001_label.nii.gz", masks["four chambers"])
    src.text(f"{place}CardiacNet-ASD/Non-ASD/002_image.nii/b-patient-17-1_image.nii", "")
    src.text(f"{place}CardiacNet-ASD/Non-ASD/readme.txt", "")
    src.text(f"{place}CardiacNet-PAH/PAH/003_image.nii.gz", "")

    cines, left = sorted_out(read_cardiacnet(src.root))

    first = cines["CardiacNet-ASD/ASD/001_image.nii.gz"]
    assert (first.view, first.defect, first.patient_id) == (View.A4C, Defect.ASD, None)
    assert {box.septum.value for box in first.weak_boxes().boxes} == {"interatrial", "interventricular"}
    nested = cines["CardiacNet-ASD/Non-ASD/002_image.nii/b-patient-17-1_image.nii"]
    assert (nested.defect, nested.patient_id) == (Defect.NORMAL, "17")
    assert cines["CardiacNet-PAH/PAH/003_image.nii.gz"].defect is None
    assert left == {"CardiacNet-ASD/Non-ASD/readme.txt": "it is neither NNN_image nor NNN_label"}


def test_masks_of_cardiacnet_without_their_image_are_told_as_left_out(src, masks) -> None:
    src.text("CardiacNet-ASD/ASD/001_image.nii.gz", "")
    src.text("CardiacNet-ASD/ASD/001_label.nii.gz", "")
    src.text("CardiacNet-ASD/ASD/002_label.nii.gz", "")
    src.text("CardiacNet-ASD/ASD/003_label.nii/patient-9_label.nii", "")

    _, left = sorted_out(read_cardiacnet(src.root))

    assert left == {
        "CardiacNet-ASD/ASD/002_label.nii.gz": "the mask has no image",
        "CardiacNet-ASD/ASD/003_label.nii/patient-9_label.nii": "the mask has no image",
    }


# TMED-2


def test_tmed2_is_read_with_patients_of_its_keys(src) -> None:
    columns = "query_key,SourceFolder,view_label,diagnosis_label,view_classifier_split,diagnosis_classifier_split"
    rows = [
        "5269s1_0.png,labeled,PLAX,no_AS,train,train",
        "5269s2_3.png,labeled,A4CorA2CorOther,no_AS,val,train",
        "77s1_0.png,unlabeled,Not_Provided,Not_Provided,,",
        "78s1_0.png,labeled,TEE,no_AS,test,test",
        "../../etc/passwd,labeled,PLAX,no_AS,test,test",
    ]
    src.table("DEV479.csv", columns, rows)
    src.table("notes.csv", "a,b", [])
    for name in ("labeled/5269s1_0.png", "labeled/5269s2_3.png", "unlabeled/77s1_0.png"):
        src.picture(name)

    cines, left = sorted_out(read_tmed2(src.root))

    assert {c.patient_id for c in cines.values()} == {"5269", "77"}
    assert cines["labeled/5269s1_0.png"].view is View.PLAX_LV
    assert cines["labeled/5269s2_3.png"].view is None
    assert cines["labeled/5269s2_3.png"].part == "validation"
    assert "view_label 'TEE'" in left["labeled/78s1_0.png"]
    assert "leads out of the data set" in left["labeled/../../etc/passwd"]


def test_of_the_folds_of_tmed2_one_split_is_kept_and_the_others_are_named(src) -> None:
    columns = "query_key,SourceFolder,view_label,view_classifier_split"
    src.table("fold0.csv", columns, ["1s1_0.png,labeled,PLAX,train", "2s1_0.png,labeled,A4C,"])
    src.table("fold1.csv", columns, ["1s1_0.png,labeled,PLAX,val", "2s1_0.png,labeled,A4C,test"])
    src.table("rest.csv", columns, ["2s1_0.png,labeled,A2C,", "3s1_0.png,unlabeled,Not_Provided,"])
    for name in ("labeled/1s1_0.png", "labeled/2s1_0.png", "unlabeled/3s1_0.png"):
        src.picture(name)

    data_set = read_tmed2(src.root)
    cines, left = sorted_out(data_set)

    assert [cine.part for cine in cines.values()] == ["validation", "test", None]
    assert "The split is that of fold1.csv; those of fold0.csv are others and are not kept." in data_set.notes
    assert left == {"labeled/2s1_0.png in rest.csv": "an earlier line calls it A4C, this one A2C"}


def test_pictures_that_no_table_of_tmed2_names_are_counted_by_their_folder(src) -> None:
    columns = "query_key,SourceFolder,view_label,view_classifier_split"
    src.table("DEV.csv", columns, ["1s1_0.png,labeled,PLAX,train"])
    for name in ("labeled/1s1_0.png", "labeled/2s1_0.png", "labeled/3s1_0.png", "unlabeled/4s1_0.png"):
        src.picture(name)

    items = list(read_tmed2(src.root).items)

    reason = "no table names these pictures"
    assert items[1:] == [LeftOut("labeled", reason, 2), LeftOut("unlabeled", reason, 1)]


# MIMIC-IV-ECHO


def test_mimic_patients_are_those_of_the_table_and_not_of_the_path(src) -> None:
    columns = "subject_id,study_id,acquisition_datetime,dicom_filepath"
    src.text("files/p10/p10000001/s90/90_0001.dcm", "")
    rows = ["10000002,90,2180,files/p10/p10000001/s90/90_0001.dcm", "1,91,2180,files/p10/p1/s91/91_0001.dcm"]
    src.table("echo-record-list.csv", columns, rows)

    cines, left = sorted_out(read_mimic_echo(src.root))

    (cine,) = cines.values()
    assert (str(cine.place), cine.patient_id, cine.view) == ("90/90_0001.dcm", "10000002", None)
    assert left == {"echo-record-list.csv": "the table names them, but the files are not there"}


def test_files_of_mimic_that_the_table_lacks_are_counted(src) -> None:
    for number in (1, 2, 3):
        src.text(f"files/p10/p1/s90/90_{number:04d}.dcm", "")
    src.text("files/p10/index.html", "")
    row = "1,90,files/p10/p1/s90/90_0001.dcm"
    src.table("echo-record-list.csv", "subject_id,study_id,dicom_filepath", [row])

    items = list(read_mimic_echo(src.root).items)

    assert items[1:] == [LeftOut("files", "echo-record-list.csv does not name them", 2)]


def test_a_file_that_is_absent_is_told_from_one_that_is_refused(src) -> None:
    with pytest.raises(AbsentFileError, match="the file is not there"):
        named_file(src.root, "gone.dcm")
    with pytest.raises(NotTakenError, match="leads out of the data set") as refusal:
        named_file(src.root, "../not there.dcm")

    assert not isinstance(refusal.value, AbsentFileError)


# class folders


def test_class_folders_are_views_defects_and_fetal_planes(src) -> None:
    for name in ("psax av/p1/a.png", "V sign/b.png", "ASD/p2/c.png", "misc/d.png", "Other/notes.txt"):
        src.picture(name) if name.endswith(".png") else src.text(name, "")

    cines, left = sorted_out(read_class_folders(src.root))

    assert {p: (c.view, c.defect, c.patient_id) for p, c in cines.items()} == {
        "psax av/p1/a.png": (View.PSAX_AV, None, "p1"),
        "V sign/b.png": (View.FETAL_V_SIGN, None, None),
        "ASD/p2/c.png": (None, Defect.ASD, "p2"),
    }
    assert left["misc"] == "its name is neither a view nor a defect"
    assert "none of a video" in left["Other/notes.txt"]


def test_pictures_beside_the_folders_of_classes_are_told_as_left_out(src) -> None:
    for name in ("A4C/a.png", "loose.png", "train/A4C/b.png", "train/stray.mp4"):
        src.picture(name) if name.endswith(".png") else src.text(name, "")

    _, left = sorted_out(read_class_folders(src.root))

    assert left == dict.fromkeys(["loose.png", "train/stray.mp4"], "it is in no folder of a class")


def test_class_folders_keep_a_split_and_take_patients_from_a_table(src) -> None:
    src.picture("train/A4C/x.png")
    src.picture("test/A4C/y.png")
    src.table("patients.csv", "image_id,patient_id", ["train/A4C/x.png,anna", "test/A4C/y.png,bert"])

    cines, _ = sorted_out(read_class_folders(src.root))

    assert {c.patient_id: c.part for c in cines.values()} == {"anna": "train", "bert": "test"}


@pytest.mark.parametrize(
    ("reader", "word"),
    [
        (read_ned, "labels.csv"),
        (read_echonet_dynamic, "FileList.csv"),
        (read_echonet_pediatric, "FileList.csv"),
        (read_camus, "patientNNNN"),
        (read_cardiacnet, "NNN_image.nii.gz"),
        (read_tmed2, "query_key"),
        (read_mimic_echo, "echo-record-list.csv"),
        (read_class_folders, "A4C"),
    ],
)
def test_another_layout_is_refused_with_the_one_that_is_accepted(src, reader, word: str) -> None:
    src.text("something/else.txt", "")

    with pytest.raises(DataSetError, match=r"(is|are) accepted") as refusal:
        reader(src.root)

    assert word in str(refusal.value)


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../secret.mp4", "a/../../secret.mp4", "C:\\x.mp4", "", "a\0b", ".hidden.mp4"]
)
def test_names_of_tables_cannot_lead_out_of_the_data_set(src, tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.mp4").write_text("")
    src.text(".hidden.mp4", "")

    with pytest.raises(NotTakenError, match=r"leads out of the data set|begins with a dot"):
        named_file(src.root, name)
