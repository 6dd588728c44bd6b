# SPDX-License-Identifier: Apache-2.0
"""What is stored by DICOMweb is looked at first, never overwrites, and a person's report becomes an annotation."""

import io
from datetime import UTC, datetime

import pytest
from pydicom import dcmread

from echo_plugin.anatomy import Septum, View
from echo_plugin.annotations import Annotation, SeptalBox
from echo_plugin.errors import UnreadableCineError
from echo_plugin.host.reports import Reports, annotate_from_report
from echo_plugin.host.routes import dicomweb
from echo_plugin.io.dicom_sr import Observer, boxes_report, read_source
from echo_plugin.io.study_index import REPORTS_DIRECTORY

NOW = datetime(2026, 3, 1, tzinfo=UTC)
BOXES = (
    SeptalBox(1, 100.5, 60.25, 200.0, 180.0, Septum.INTERVENTRICULAR, 0.8),
    SeptalBox(3, 101.5, 60.25, 200.0, 180.0, Septum.INTERATRIAL, 0.7),
)


@pytest.fixture
def first(archive):
    return next(iter(archive.studies.instances().values()))


@pytest.fixture
def post(web):
    def post(*contents: bytes, path: str = "studies", content_type: str | None = None, end: bytes = b"\r\n--b--\r\n"):
        parts = b"\r\n".join(b"--b\r\nContent-Type: application/dicom\r\n\r\n" + content for content in contents)
        kind = content_type or 'multipart/related; type="application/dicom"; boundary=b'
        return web.post(f"/dicom-web/{path}", content=parts + end, headers={"content-type": kind})

    return post


def encoded(dataset) -> bytes:
    stream = io.BytesIO()
    dataset.save_as(stream, write_like_original=False)
    return stream.getvalue()


def copied(instance, sop_uid: str, **changes: object) -> bytes:
    dataset = dcmread(instance.path)
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = sop_uid
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    return encoded(dataset)


def report_of(instance, manufacturer: str = "Unspecified") -> bytes:
    report = boxes_report(read_source(instance.path), BOXES, Observer("septal_boxes", "1"), now=NOW)
    report.Manufacturer = manufacturer
    return encoded(report)


def reason(answer) -> int:
    (failed,) = answer.json()["00081198"]["Value"]
    return failed["00081197"]["Value"][0]


def files(archive) -> dict:
    return {path: path.read_bytes() for path in archive.studies.root.rglob("*.dcm")}


def test_storing_the_same_instance_again_is_harmless(post, first, archive):
    before = files(archive)

    answer = post(first.path.read_bytes())

    assert answer.status_code == 200
    assert answer.json()["00081199"]["Value"][0]["00081155"]["Value"] == [first.sop_uid]
    assert files(archive) == before


def test_an_instance_with_other_content_is_refused(post, first, archive):
    before = files(archive)

    answer = post(copied(first, first.sop_uid, PatientID="somebody else"))

    assert (answer.status_code, reason(answer)) == (409, 0x0111)
    assert files(archive) == before


def test_what_can_be_stored_is_stored_beside_what_cannot(post, first, archive):
    answer = post(b"\0" * 400, copied(first, "1.2.3.9"))

    assert (answer.status_code, reason(answer)) == (202, 0xC000)
    assert "1.2.3.9" in archive.studies.instances()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2"}, 0x0122),  # CT
        ({"StudyInstanceUID": "../../etc"}, 0xC000),
        ({"StudyInstanceUID": ""}, 0xC000),
        ({"Rows": 7}, 0xC000),
    ],
)
def test_what_is_no_ultrasound_of_ours_is_refused(post, first, archive, changes, code):
    before = files(archive)

    answer = post(copied(first, "1.2.3.9", **changes))

    assert (answer.status_code, reason(answer)) == (409, code)
    assert files(archive) == before


@pytest.mark.parametrize("sop_uid", ["../../../tmp/evil", "1/2", "x" * 70])
def test_no_uid_leads_out_of_the_folder(post, first, archive, sop_uid):
    before = files(archive)

    assert reason(post(copied(first, sop_uid))) == 0xC000
    assert files(archive) == before


def test_an_instance_of_another_study_than_addressed_is_refused(post, first):
    assert reason(post(copied(first, "1.2.3.9"), path="studies/1.2.3")) == 0xA900


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"content_type": "application/dicom"}, "multipart/related with a boundary"),
        ({"end": b""}, "cut off"),
        ({"content_type": "multipart/related; boundary=other"}, "malformed"),
    ],
)
def test_a_body_that_is_no_multipart_is_refused(post, first, given, sentence):
    answer = post(first.path.read_bytes(), **given)

    assert answer.status_code == 400
    assert sentence in answer.json()["detail"]


def test_a_persons_report_is_kept_and_becomes_an_annotation(post, first, archive, web):
    archive.studies.save_annotation(
        Annotation(first.sop_uid, (SeptalBox(0, 1, 1, 9, 9, Septum.INTERATRIAL),), (0,), View.A4C), author="before"
    )
    content = report_of(first)

    assert post(content).status_code == 200

    said = archive.studies.annotation(first.sop_uid)
    assert said.annotated_frames == (0, 1, 3)
    assert [(b.frame_index, b.x1, b.septum, b.score) for b in said.boxes[1:]] == [
        (1, 100.5, Septum.INTERVENTRICULAR, None),
        (3, 101.5, Septum.INTERATRIAL, None),
    ]
    assert (said.view, said.author) == (View.A4C, "OHIF report")
    assert archive.studies.uploads(first.sop_uid)[said.revision].read_bytes() == content
    listed = web.get(f"/dicom-web/studies/{first.study_uid}/series?Modality=SR").json()
    assert len(listed) == 1


def test_a_report_of_ours_becomes_no_annotation(post, first, archive):
    before = archive.studies.annotation(first.sop_uid)

    post(report_of(first, "monailabel-echo"))

    assert archive.studies.annotation(first.sop_uid) == before
    assert len(list((archive.studies.root / REPORTS_DIRECTORY).iterdir())) == 1


def test_a_report_on_a_cine_that_is_not_here_changes_nothing(first, archive):
    report = boxes_report(read_source(first.path), BOXES, Observer("x"), now=NOW)
    report.Manufacturer = "Unspecified"
    from echo_plugin.io.dicom_sr import below

    for item in below(report):
        if item.ValueType == "IMAGE":
            item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID = "1.2.3"

    assert annotate_from_report(archive.studies, encoded(report)) == []


def test_a_report_that_cannot_be_an_annotation_is_kept_with_the_reason(post, first, archive):
    report = boxes_report(
        read_source(first.path), [SeptalBox(99, 1, 1, 9, 9, Septum.INTERATRIAL)], Observer("x"), now=NOW
    )
    report.Manufacturer = "Unspecified"

    answer = post(encoded(report))

    assert answer.status_code == 200
    assert "frame index 99" in answer.json()["00081199"]["Value"][0]["00000902"]["Value"][0]


@pytest.mark.parametrize("failure", [UnreadableCineError("no cine"), RuntimeError("DOE^JANE")])
def test_instances_beside_a_report_that_fails_as_an_annotation_are_kept(post, first, archive, monkeypatch, failure):
    def fail(*_):
        raise failure

    monkeypatch.setattr(dicomweb, "annotate_from_report", fail)

    answer = post(report_of(first), copied(first, "1.2.3.4.8"))

    assert answer.status_code == 200
    assert len(answer.json()["00081199"]["Value"]) == 2
    assert "1.2.3.4.8" in archive.studies.instances()
    assert "DOE" not in answer.text


def test_reports_do_not_count_as_cines(post, first, archive):
    post(report_of(first))
    archive.studies.refresh()

    assert len(archive.studies.image_ids()) == 4
    assert archive.studies.problems() == []


def test_a_stored_annotation_becomes_one_report_however_often_it_is_asked_for(archive, first):
    archive.studies.save_annotation(Annotation(first.sop_uid, (BOXES[0],), (1,)), author="reader")
    reports = Reports(archive, None)

    (uid,) = reports.of_annotation(first.sop_uid)

    assert reports.of_annotation(first.sop_uid) == [uid]
    instance = archive.studies.instances()[uid]
    assert (instance.text("Modality"), instance.study_uid) == ("SR", first.study_uid)
