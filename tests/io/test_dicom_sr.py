# SPDX-License-Identifier: Apache-2.0
"""Reports are valid DICOM that other programs read, and boxes come back from them as they were."""

import copy
import shutil
import subprocess
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from echo_plugin.anatomy import Defect, Septum, View
from echo_plugin.annotations import DefectPrediction, SeptalBox, ViewPrediction
from echo_plugin.errors import AnnotationError
from echo_plugin.io import dicom_sr as sr
from echo_plugin.io.dicom_sr import (
    NOT_CLINICAL,
    Observer,
    boxes_of_person,
    boxes_report,
    is_ours,
    read_report,
    text_report,
    write_report,
)

NOW = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
MODEL, DOCTOR = Observer("septal_boxes", "1.2", "phantoms"), Observer("Müller")
BOXES = (
    SeptalBox(0, 10.5, 20.25, 100.0, 200.125, Septum.INTERATRIAL, 0.88),
    SeptalBox(3, 11.0, 20.0, 101.0, 200.0, Septum.INTERVENTRICULAR),
    SeptalBox(3, 12.0, 20.0, 102.0, 201.0, Septum.UNSPECIFIED),
)
VIEW = ViewPrediction(View.A4C, {View.A4C: 0.9, View.PSAX_AV: 0.1}, (0,))
DEFECT = DefectPrediction(
    Defect.ASD,
    {Defect.NORMAL: 0.2, Defect.ASD: 0.7, Defect.VSD: 0.1},
    {Defect.NORMAL: 80.0, Defect.ASD: 20.0, Defect.VSD: 90.0},
    (0,),
)


@pytest.fixture(scope="module")
def source() -> Dataset:
    cine = Dataset()
    cine.SpecificCharacterSet = "ISO_IR 100"
    cine.SOPClassUID, cine.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.3.1", "1.2.3.4"
    cine.StudyInstanceUID, cine.SeriesInstanceUID = "1.2.3.2", "1.2.3.3"
    cine.PatientName, cine.PatientID, cine.StudyDate = "Größer^Kind", "P-7", "20260101"
    cine.PatientBirthDate, cine.PatientSex, cine.StudyTime, cine.StudyID = "20200101", "F", "0800", "1"
    return cine


def as_saved_by_ohif(report: Dataset, *, comment: str | None = None) -> Dataset:
    """Return a report as OHIF 3.13 saves it again: another maker, and the coordinates below several measurements."""
    saved = dcmread_copy(report)
    saved.Manufacturer = "Unspecified"
    for group in sr.below(saved):
        if not sr.is_named(group, codes.DCM.MeasurementGroup):
            continue
        measurement = next(item for item in group.ContentSequence if item.ValueType == "NUM")
        group.ContentSequence.append(
            sr.number_item(codes.SCT.Area, 0.0, codes.UCUM.NoUnits, measurement.ContentSequence)
        )
        if comment is not None:
            next(item for item in group.ContentSequence if sr.is_named(item, codes.DCM.Comment)).TextValue = comment
    return saved


def dcmread_copy(report: Dataset) -> Dataset:
    from pydicom.filebase import DicomBytesIO

    stream = DicomBytesIO()
    report.save_as(stream, write_like_original=False)
    return read_report(stream.getvalue())


def without_scores(boxes):
    return tuple(replace(box, score=None) for box in boxes)


def test_boxes_come_back_exactly(source):
    report = as_saved_by_ohif(boxes_report(source, BOXES, MODEL, now=NOW))

    assert boxes_of_person(report).boxes == {"1.2.3.4": without_scores(BOXES)}


coordinate = st.floats(0, 4000, width=32)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 9999),
    st.tuples(coordinate, coordinate).filter(lambda p: p[0] < p[1]),
    st.tuples(coordinate, coordinate).filter(lambda p: p[0] < p[1]),
    st.sampled_from(Septum),
)
def test_any_box_comes_back_exactly(source, frame_index, columns, rows, septum):
    box = SeptalBox(frame_index, columns[0], rows[0], columns[1], rows[1], septum)

    report = as_saved_by_ohif(boxes_report(source, [box], DOCTOR, now=NOW))

    assert boxes_of_person(report).boxes == {"1.2.3.4": (box,)}


def test_a_report_of_ours_is_told_from_one_that_a_person_saved(source):
    ours = dcmread_copy(boxes_report(source, BOXES, MODEL, now=NOW))

    assert is_ours(ours)
    assert not is_ours(as_saved_by_ohif(ours))


def test_the_comment_that_a_person_typed_says_the_septum(source):
    report = as_saved_by_ohif(boxes_report(source, BOXES[:1], MODEL, now=NOW), comment="really the IVS")

    (box,) = boxes_of_person(report).boxes["1.2.3.4"]
    assert box.septum is Septum.INTERVENTRICULAR


def test_the_coded_finding_says_the_septum_where_the_comment_does_not(source):
    report = as_saved_by_ohif(boxes_report(source, BOXES[:1], MODEL, now=NOW), comment="thin")

    (box,) = boxes_of_person(report).boxes["1.2.3.4"]
    assert box.septum is Septum.INTERATRIAL


def test_the_observer_of_a_persons_report_is_its_author(source):
    assert boxes_of_person(dcmread_copy(boxes_report(source, BOXES, DOCTOR, now=NOW))).author == "Müller"


@pytest.mark.parametrize("name", ["unknown^unknown", "", "^"])
def test_a_report_of_nobody_in_particular_has_no_author(source, name):
    report = dcmread_copy(boxes_report(source, BOXES, DOCTOR, now=NOW))
    for item in sr.below(report):
        if item.ValueType == "PNAME":
            item.PersonName = name

    assert boxes_of_person(report).author is None


def test_coordinates_stand_below_a_measurement_in_the_order_of_a_perimeter(source):
    """What OHIF asks: NUM > SCOORD > IMAGE with a 1-based frame; POLYLINE top left, top right, bottom right, ..."""
    report = dcmread_copy(boxes_report(source, BOXES[1:2], MODEL, now=NOW))

    (group,) = [item for item in sr.below(report) if sr.is_named(item, codes.DCM.MeasurementGroup)]
    (number,) = [item for item in group.ContentSequence if item.ValueType == "NUM"]
    (scoord,) = number.ContentSequence
    (image,) = scoord.ContentSequence

    assert sr.is_named(report, codes.DCM.ImagingMeasurementReport)
    assert (scoord.ValueType, scoord.RelationshipType, scoord.GraphicType) == ("SCOORD", "INFERRED FROM", "POLYLINE")
    assert np.array_equal(
        np.reshape(scoord.GraphicData, (-1, 2)), [[11, 20], [101, 20], [101, 200], [11, 200], [11, 20]]
    )
    assert image.RelationshipType == "SELECTED FROM"
    assert image.ReferencedSOPSequence[0].ReferencedFrameNumber == 4


def test_a_report_of_no_box_is_refused_because_it_stops_the_viewer(source):
    with pytest.raises(AnnotationError, match="has no box to report"):
        boxes_report(source, [], MODEL, now=NOW)


def test_a_text_report_of_nothing_is_refused(source):
    with pytest.raises(AnnotationError, match="neither view nor defect"):
        text_report(source, None, None, MODEL, now=NOW)


def test_a_text_report_has_no_measurement_group(source):
    """OHIF stops at a TID 1500 document without coordinates; it shows a TID 2000 one as text."""
    report = dcmread_copy(text_report(source, VIEW, DEFECT, MODEL, now=NOW))

    assert sr.is_named(report, codes.LN.DiagnosticImagingReport)
    assert not any(sr.is_named(item, codes.DCM.MeasurementGroup) for item in sr.below(report))
    said = [str(item.TextValue) for item in sr.below(report) if item.ValueType == "TEXT"]
    assert any(text.startswith("View: A4C") for text in said)
    assert any("ASD 0.70, Normal 0.20, VSD 0.10" in text for text in said)
    assert NOT_CLINICAL in said
    coded = [sr.concept(item, "ConceptCodeSequence") for item in sr.below(report) if item.ValueType == "CODE"]
    assert (Defect.ASD.code.value, "SCT") in coded
    assert (View.A4C.code.value, "SCT") in coded


def test_a_text_report_names_its_cine_and_has_no_item_that_stops_the_viewer(source):
    """OHIF asks a concept name of every item that it shows; what findings are inferred from is not shown."""
    source = copy.deepcopy(source)
    source.SeriesNumber, source.InstanceNumber = 2, 7

    report = dcmread_copy(text_report(source, VIEW, DEFECT, MODEL, now=NOW))

    (findings,) = [item for item in report.ContentSequence if sr.is_named(item, codes.DCM.Findings)]
    assert all(sr.concept(item) for item in [*report.ContentSequence, *findings.ContentSequence])
    images = [item for item in sr.below(report) if item.ValueType == "IMAGE"]
    assert {item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for item in images} == {"1.2.3.4"}
    assert {item.RelationshipType for item in images} == {"INFERRED FROM"}
    assert "About series 2, instance 7." in [i.get("TextValue") for i in findings.ContentSequence]
    percents = [
        float(i.MeasuredValueSequence[0].NumericValue) for i in findings.ContentSequence if i.ValueType == "NUM"
    ]
    assert percents == [90.0, 70.0]


@pytest.mark.parametrize("observer", [MODEL, DOCTOR], ids=["model", "person"])
def test_reports_are_unverified_and_name_their_observer(source, observer):
    report = dcmread_copy(boxes_report(source, BOXES, observer, now=NOW))

    assert report.VerificationFlag == "UNVERIFIED"
    assert str(report.PatientName) == "Größer^Kind"
    kinds = [i for i in report.ContentSequence if sr.is_named(i, codes.DCM.ObserverType)]
    expected = codes.DCM.Device if observer.version else codes.DCM.Person
    assert sr.concept(kinds[0], "ConceptCodeSequence") == (expected.value, "DCM")


def test_the_same_boxes_make_the_same_report_again(source):
    again = boxes_report(source, BOXES, MODEL, now=datetime(2027, 1, 1, tzinfo=UTC))

    assert again.SOPInstanceUID == boxes_report(source, BOXES, MODEL, now=NOW).SOPInstanceUID
    assert again.SOPInstanceUID != boxes_report(source, BOXES[:2], MODEL, now=NOW).SOPInstanceUID


def uid_of(source, observer=MODEL, **header: object) -> tuple[str, str]:
    """Return the UIDs of both reports on a cine whose header is changed."""
    changed = copy.deepcopy(source)
    for keyword, value in header.items():
        setattr(changed, keyword, value)
    reports = (
        boxes_report(changed, BOXES, observer, now=NOW),
        text_report(changed, VIEW, DEFECT, observer, now=NOW),
    )
    return tuple(str(report.SOPInstanceUID) for report in reports)


@pytest.mark.parametrize(
    "changes",
    [
        {"PatientName": "Groesser^Kind"},
        {"StudyDescription": "follow-up"},
        {"SeriesInstanceUID": "1.2.3.5"},
        {"observer": Observer("septal_boxes", "1.3", "phantoms")},
        {"observer": Observer("septal_boxes", "1.2", "phantoms, more")},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_reports_that_differ_in_anything_written_have_other_uids(source, changes):
    for one, other in zip(uid_of(source), uid_of(source, **changes), strict=True):
        assert one != other


def test_reports_of_one_uid_differ_in_their_time_alone(source):
    unseen = replace(VIEW, probabilities={View.A4C: 0.90001, View.PSAX_AV: 0.09999})  # rounded where it is written
    later = datetime(2027, 1, 1, tzinfo=UTC)
    one, other = (
        text_report(source, VIEW, DEFECT, MODEL, now=NOW),
        text_report(source, unseen, DEFECT, MODEL, now=later),
    )

    assert one.SOPInstanceUID == other.SOPInstanceUID
    assert {element.keyword for element in one if element != other[element.tag]} == {
        "ContentDate",
        "ContentTime",
        "SeriesDate",
        "SeriesTime",
    }


def test_malformed_coordinates_are_named(source):
    report = as_saved_by_ohif(boxes_report(source, BOXES[:1], MODEL, now=NOW))
    for item in sr.below(report):
        if item.ValueType == "SCOORD" and "ContentSequence" in item:
            del item.ContentSequence

    with pytest.raises(AnnotationError, match="coordinates that cannot be read"):
        boxes_of_person(report)


def test_bytes_that_are_no_dicom_hold_no_boxes():
    with pytest.raises(AnnotationError, match="cannot be parsed"):
        read_report(b"\0" * 128 + b"DICM\x08\x00\x05\x00XX\xff\xff")


@pytest.fixture(params=["boxes", "person's boxes", "text"])
def written(request, source, tmp_path):
    report = {
        "boxes": lambda: boxes_report(source, BOXES, MODEL, now=NOW),
        "person's boxes": lambda: boxes_report(source, BOXES, DOCTOR, now=NOW),
        "text": lambda: text_report(source, VIEW, DEFECT, MODEL, now=NOW),
    }[request.param]()
    write_report(report, tmp_path / "report.dcm")
    return tmp_path / "report.dcm"


def test_a_dicom_validator_accepts_reports(written):
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed (Debian: dicom3tools)")

    done = subprocess.run(["dciodvfy", written], capture_output=True, text=True, check=False)

    said = done.stdout + done.stderr
    assert "SR" in said
    assert "Error" not in said
    assert "Warning" not in said


def test_dcmtk_reads_reports(written):
    if shutil.which("dsrdump") is None:
        pytest.skip("dsrdump is not installed (Debian: dcmtk)")

    done = subprocess.run(["dsrdump", written], capture_output=True, text=True, check=False)

    assert done.returncode == 0
    assert "UNVERIFIED" in done.stdout
    assert "E:" not in done.stderr
    expected = "SCOORD" if dcmread(written).SOPClassUID.name.startswith("Comprehensive") else "Septal defect: ASD"
    assert expected in done.stdout
