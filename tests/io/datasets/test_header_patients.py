# SPDX-License-Identifier: Apache-2.0
"""A patient whom headers and the data set call differently is one patient, in no two parts of a split."""

from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echo_plugin.io.datasets.class_folders import read_class_folders
from echo_plugin.io.datasets.mimic_echo import read_mimic_echo
from echo_plugin.io.datasets.study_writer import contradictions, make_study_folder, one_patient_each
from echo_plugin.io.study_folder import StudyFolder

ids = st.none() | st.sampled_from("abc")
sources = st.lists(st.tuples(ids, st.none() | st.sampled_from(["1", "2", "a"])), max_size=8)


def patients_in(out: Path) -> dict[str, str | None]:
    return {entry.path.name: entry.patient_id for entry in StudyFolder(out).entries()}


def test_a_subject_whose_headers_are_partly_empty_is_one_patient(src, out: Path) -> None:
    rows = []
    for number, (subject, header) in enumerate([("1", "a"), ("1", None), ("2", "b"), ("3", None)]):
        src.dicom(f"files/{number}.dcm", f"1.2.3.{number + 1}", header)
        rows.append(f"{subject},{number},files/{number}.dcm")
    src.table("echo-record-list.csv", "subject_id,study_id,dicom_filepath", rows)

    report = make_study_folder("mimic-echo", src.root, out, read_mimic_echo(src.root))

    assert patients_in(out) == {"0.dcm": "a", "1.dcm": "a", "2.dcm": "b", "3.dcm": "3"}
    assert report.patients == 3
    assert "1 cines without a patient in the header have the id that headers give their patient." in report.notes


def test_silent_files_of_subjects_whose_headers_contradict_are_not_torn_apart(src, out: Path) -> None:
    rows = []
    told = [("1", "a"), ("2", "b"), ("3", "b"), ("2", None), ("3", None), ("4", "c"), ("4", "d"), ("4", None)]
    for number, (subject, header) in enumerate(told):
        src.dicom(f"files/{number}.dcm", f"1.2.3.{number + 1}", header)
        rows.append(f"{subject},{number},files/{number}.dcm")
    src.table("echo-record-list.csv", "subject_id,study_id,dicom_filepath", rows)

    report = make_study_folder("mimic-echo", src.root, out, read_mimic_echo(src.root))

    assert patients_in(out) == {"0.dcm": "a", "3.dcm": "b", "4.dcm": "b", "7.dcm": None}
    assert report.left_out_by_reason == {"its header names another patient than the data set": 4}


def test_a_child_whose_folder_has_one_header_is_one_patient_in_one_part(src, out: Path) -> None:
    src.dicom("train/A4C/p1/x.dcm", "1.2.9.1", "anna")
    src.dicom("train/A4C/p1/y.dcm", "1.2.9.2", None)
    src.picture("test/PSAX-AV/p1/z.png")

    report = make_study_folder("class-folders", src.root, out, read_class_folders(src.root))

    assert patients_in(out) == dict.fromkeys(["x.dcm", "y.dcm", "z.png"], "anna")
    assert any("tears 1 patients apart" in note for note in report.notes)


def test_a_silent_file_in_a_folder_of_several_headers_has_no_patient(src, out: Path) -> None:
    src.dicom("A4C/series 1/x.dcm", "1.2.9.1", "anna")
    src.dicom("A4C/series 1/y.dcm", "1.2.9.2", "bert")
    src.picture("A4C/series 1/z.png")

    report = make_study_folder("class-folders", src.root, out, read_class_folders(src.root))

    assert patients_in(out) == {"x.dcm": "anna", "y.dcm": "bert", "z.png": None}
    assert report.without_patient == 1
    assert any(note.startswith("1 cines have no patient: their own header is silent") for note in report.notes)


@pytest.mark.heavy
@given(sources)
def test_no_silent_file_is_another_patient_than_the_headers_beside_it(found: list) -> None:
    patients, _ = one_patient_each(found)

    named = defaultdict(set)
    for header, own in found:
        named[own] |= {header} - {None}
    for (header, own), patient in zip(found, patients, strict=True):
        if header:
            assert patient == header
        elif own is None or len(named[own]) > 1:
            assert patient is None
        else:
            assert {patient} == (named[own] or {own})


@given(sources)
def test_cines_without_a_contradiction_stand_one_to_one(found: list) -> None:
    against = contradictions(found)

    pairs = {pair for index, pair in enumerate(found) if index not in against and None not in pair}
    assert len({header for header, _ in pairs}) == len({own for _, own in pairs}) == len(pairs)


@pytest.mark.parametrize("found", [[], [(None, None)], [("a", None)], [(None, "1")]])
def test_one_source_contradicts_nothing(found: list) -> None:
    assert contradictions(found) == []
    assert one_patient_each(found)[1] == ()
