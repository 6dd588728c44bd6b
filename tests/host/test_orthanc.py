# SPDX-License-Identifier: Apache-2.0
"""Our DICOMweb answers what Debian's Orthanc answers of the same files, and Orthanc can be the archive behind it."""

import io
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from dicomweb_client.api import DICOMwebClient
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydicom import dcmread

from echo_plugin.anatomy import Septum
from echo_plugin.annotations import Annotation, SeptalBox
from echo_plugin.answer.prediction import CinePrediction
from echo_plugin.host.dicom_archive import DicomArchive
from echo_plugin.host.pacs import Pacs
from echo_plugin.host.pacs_folder import PacsFolder
from echo_plugin.host.reports import Reports
from echo_plugin.host.routes import archive as archive_routes
from echo_plugin.io.dicom_sr import Observer, boxes_report, read_source
from tests import orthanc_server

pytestmark = pytest.mark.orthanc
BOX = SeptalBox(2, 20, 20, 60, 70, Septum.INTERATRIAL, 0.7)


@pytest.fixture(scope="module")
def orthanc(two_children, tmp_path_factory):
    if orthanc_server.program() is None:
        pytest.skip("no Orthanc with DICOMweb (Debian: orthanc, orthanc-dicomweb), or no right to make it a network")
    server = orthanc_server.Orthanc(tmp_path_factory.mktemp("orthanc"))
    client = DICOMwebClient(server.url)
    for path in sorted(two_children.rglob("*.dcm")):
        client.store_instances([dcmread(path)])
    yield server
    server.stop()


@pytest.fixture
def theirs(orthanc) -> DICOMwebClient:
    return DICOMwebClient(orthanc.url)


@pytest.fixture
def ours(served) -> DICOMwebClient:
    return DICOMwebClient(f"{served}/dicom-web")


COMPARED = ("00080020", "00080030", "00080061", "00100010", "00100020", "00100030", "00100040", "00201206", "00201208")


def listed(items, *tags):
    return sorted([str(item.get(tag, {}).get("Value")) for tag in ("0020000D", *tags)] for item in items)


def test_the_same_studies_are_listed(ours, theirs):
    assert listed(ours.search_for_studies(), *COMPARED) == listed(theirs.search_for_studies(), *COMPARED)


@pytest.mark.parametrize(
    "filters", [{"PatientID": "PHANTOM-11-0001"}, {"PatientID": "nobody"}, {"ModalitiesInStudy": "US"}]
)
def test_the_same_studies_match(ours, theirs, filters):
    found = [listed(client.search_for_studies(search_filters=filters), "00100020") for client in (ours, theirs)]

    assert found[0] == found[1]


def test_the_same_instances_are_in_each_series(ours, theirs, archive):
    for instance in archive.studies.instances().values():
        found = [
            listed(client.search_for_instances(instance.study_uid, instance.series_uid), "00080018", "00200013")
            for client in (ours, theirs)
        ]
        assert found[0] == found[1]
        assert found[0]


def test_headers_are_the_same(ours, theirs, archive):
    for instance in archive.studies.instances().values():
        uids = (instance.study_uid, instance.series_uid, instance.sop_uid)
        mine, other = ours.retrieve_instance_metadata(*uids), theirs.retrieve_instance_metadata(*uids)
        for tag in set(mine) | set(other):
            if tag in ("7FE00010", "00080005") or tag.endswith("0000"):  # theirs: by address; ours: Unicode
                continue
            assert _plain(mine.get(tag)) == _plain(other.get(tag)), tag


def _plain(element):
    """Return the values of an element, numbers as numbers, empty for none, items of sequences too."""
    values = (element or {}).get("Value") or (element or {}).get("InlineBinary") or []
    if isinstance(values, str):
        return values
    plain = []
    for value in values:
        if isinstance(value, dict):
            plain.append({key: _plain(item) if isinstance(item, dict) else item for key, item in value.items()})
        else:
            plain.append(_number(value))
    return plain


def _number(value):
    try:
        return pytest.approx(float(value), rel=1e-6)
    except (TypeError, ValueError):
        return value


def test_frames_are_the_same_bytes(ours, theirs, archive):
    for instance in archive.studies.instances().values():
        uids = (instance.study_uid, instance.series_uid, instance.sop_uid)
        kinds = (("application/octet-stream", "*"),)
        frames = [client.retrieve_instance_frames(*uids, [1, 4], media_types=kinds) for client in (ours, theirs)]
        mine, other = ([frame.rstrip(b"\0") for frame in of_one] for of_one in frames)  # padded or not
        assert mine == other


@pytest.fixture
def folder(orthanc, tmp_path) -> PacsFolder:
    return PacsFolder(tmp_path / "beside", Pacs(orthanc.url))


def test_cines_are_listed_fetched_and_annotated_by_instance(folder, archive):
    image_id = folder.image_ids()[0]

    cine = folder.read_cine(image_id)
    folder.save_annotation(
        Annotation(image_id, (SeptalBox(1, 10, 10, 50, 60, Septum.INTERATRIAL),), (1,)), author="reader"
    )

    assert set(folder.image_ids()) == set(archive.studies.instances())
    assert (cine.sop_instance_uid, cine.frame_count) == (image_id, 4)
    assert (cine.pixels == archive.studies.read_cine(image_id).pixels).all()
    assert folder.annotated_ids() == [image_id]


def test_reports_are_stored_in_the_archive(folder, orthanc, theirs, tmp_path):
    image_id = folder.image_ids()[0]
    folder.save_annotation(
        Annotation(image_id, (SeptalBox(1, 10, 10, 50, 60, Septum.INTERATRIAL),), (1,)), author="reader"
    )
    (tmp_path / "cache").mkdir()

    (uid,) = Reports(DicomArchive(folder), Pacs(orthanc.url)).of_annotation(image_id)

    found = theirs.search_for_instances(search_filters={"SOPInstanceUID": uid})
    assert [item["00080060"]["Value"] for item in found] == [["SR"]]


def test_orthanc_keeps_the_first_of_two_contents_under_one_uid_and_says_that_both_are_stored(archive, orthanc, theirs):
    """Why other content needs another UID: nobody is told that it was thrown away."""
    first, pacs = next(iter(archive.studies.instances().values())), Pacs(orthanc.url)
    report = boxes_report(read_source(first.path), (BOX,), Observer("twice"), now=datetime(2026, 3, 1, tzinfo=UTC))
    assert not pacs.holds(report.SOPInstanceUID)

    for said in ("first", "later"):
        report.SeriesDescription = said
        stream = io.BytesIO()
        report.save_as(stream, write_like_original=False)
        pacs.store(stream.getvalue())

    (kept,) = theirs.retrieve_series_metadata(report.StudyInstanceUID, report.SeriesInstanceUID)
    assert kept["0008103E"]["Value"] == ["first"]
    assert pacs.holds(report.SOPInstanceUID)


def test_a_prediction_reported_again_is_stored_once_and_another_one_beside_it(folder, orthanc, theirs, tmp_path):
    image_id = folder.image_ids()[0]
    (tmp_path / "cache").mkdir()
    reports = Reports(DicomArchive(folder), Pacs(orthanc.url))
    prediction = CinePrediction((BOX,), None, None, (), {}, {})

    (uid,) = reports.of_prediction(image_id, prediction)
    (again,) = reports.of_prediction(image_id, prediction)
    (other,) = reports.of_prediction(image_id, replace(prediction, boxes=(replace(BOX, score=0.6),)))

    assert uid == again != other
    found = theirs.search_for_instances(search_filters={"Modality": "SR"})
    assert {uid, other} <= {item["00080018"]["Value"][0] for item in found}


def test_what_orthanc_answers_passes_through(orthanc, folder, monkeypatch, archive):
    app = SimpleNamespace(pacs=Pacs(orthanc.url), datastore=lambda: SimpleNamespace(studies=folder))
    monkeypatch.setattr(archive_routes, "echo_app", lambda: app)
    server = FastAPI()
    server.include_router(archive_routes.router)
    instance = next(iter(archive.studies.instances().values()))
    url = f"/dicom-web/studies/{instance.study_uid}/series/{instance.series_uid}/instances/{instance.sop_uid}"

    stored = "multipart/related; type=application/octet-stream; transfer-syntax=*"
    with TestClient(server, base_url="http://127.0.0.1") as through:
        one = through.get(f"/dicom-web/studies?PatientID={instance.text('PatientID')}")
        frame = through.get(f"{url}/frames/2", headers={"accept": stored})
        header = through.get(f"{url}/metadata")
        nowhere = through.get("/dicom-web/studies/1.2.3/metadata")

    assert [item["0020000D"]["Value"][0] for item in one.json()] == [instance.study_uid]
    assert frame.status_code == 200
    assert archive.frames(instance).stored_frame(1).rstrip(b"\0") in frame.content
    assert orthanc.url.encode() not in header.content
    assert nowhere.status_code in (400, 404)
