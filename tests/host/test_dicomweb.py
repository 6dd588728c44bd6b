# SPDX-License-Identifier: Apache-2.0
"""What a DICOMweb client finds in a study folder: searches, headers, frames as they are stored, pictures."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from email import message_from_bytes
from email.policy import HTTP

import pytest
from dicomweb_client.api import DICOMwebClient
from PIL import Image
from pydicom import dcmread
from pydicom.encaps import generate_pixel_data_frame

from echo_plugin.errors import UnreadableCineError
from echo_plugin.host import dicom_archive
from echo_plugin.host.dicom_archive import parse_query, read_metadata
from echo_plugin.io.study_folder import StudyFolder
from echo_plugin.io.study_index import INDEX_FILE

STORED = "multipart/related; type=application/octet-stream; transfer-syntax=*"


def parts_of(answer) -> list[tuple[str, bytes]]:
    """Return (content type, bytes) of each part, by Python's own mail parser."""
    head = f"Content-Type: {answer.headers['content-type']}\r\n\r\n".encode()
    message = message_from_bytes(head + answer.content, policy=HTTP)
    parts = message.iter_parts()
    return [(f"transfer-syntax={part.get_param('transfer-syntax')}", part.get_payload(decode=True)) for part in parts]


@pytest.fixture
def first(archive):
    return next(iter(archive.studies.instances().values()))


@pytest.fixture
def address(first):
    return f"/dicom-web/studies/{first.study_uid}/series/{first.series_uid}/instances/{first.sop_uid}"


def values(answer, tag):
    return [item[tag]["Value"][0] for item in answer.json()]


@pytest.mark.heavy
def test_studies_are_listed_with_their_counts(web, archive):
    answer = web.get("/dicom-web/studies")

    assert answer.headers["content-type"] == "application/dicom+json"
    assert len(answer.json()) == 2
    assert values(answer, "00201208") == [2, 2]
    assert values(answer, "00080061") == ["US", "US"]
    assert set(values(answer, "0020000D")) == {i.study_uid for i in archive.studies.instances().values()}


def test_dicomweb_client_lists_and_retrieves(served, first):
    client = DICOMwebClient(f"{served}/dicom-web")

    studies = client.search_for_studies(search_filters={"PatientID": first.text("PatientID")})
    series = client.search_for_series(first.study_uid)
    instances = client.search_for_instances(first.study_uid, series[0]["0020000E"]["Value"][0])
    whole = client.retrieve_instance(first.study_uid, first.series_uid, first.sop_uid)
    header = client.retrieve_instance_metadata(first.study_uid, first.series_uid, first.sop_uid)

    assert [study["0020000D"]["Value"][0] for study in studies] == [first.study_uid]
    assert len(instances) == 2
    assert whole == dcmread(first.path)
    assert header["00280008"]["Value"] == [4]


def test_dicomweb_client_stores_and_finds(served, archive, first):
    new = dcmread(first.path)
    new.SOPInstanceUID = new.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4.5"
    client = DICOMwebClient(f"{served}/dicom-web")

    client.store_instances([new])

    assert len(client.search_for_instances(first.study_uid)) == 3
    assert client.retrieve_instance(first.study_uid, first.series_uid, "1.2.3.4.5") == new
    assert "1.2.3.4.5" in archive.studies.image_ids()


def test_frames_are_the_stored_bytes(web, archive):
    for instance in archive.studies.instances().values():
        dataset = dcmread(instance.path)
        url = f"/dicom-web/studies/{instance.study_uid}/series/{instance.series_uid}/instances/{instance.sop_uid}"

        parts = parts_of(web.get(f"{url}/frames/1,3", headers={"accept": STORED}))

        if dataset.file_meta.TransferSyntaxUID.is_compressed:
            expected = list(generate_pixel_data_frame(dataset.PixelData, 4))
        else:
            expected = [frame.tobytes() for frame in dataset.pixel_array]
        assert [content for _, content in parts] == [expected[0], expected[2]]
        assert all(f"transfer-syntax={_syntax(dataset)}" in kind for kind, _ in parts)


def _syntax(dataset):
    syntax = dataset.file_meta.TransferSyntaxUID
    return syntax if syntax.is_compressed else "1.2.840.10008.1.2.1"


@pytest.mark.parametrize("frame", ["5", "0", "99999999", "one", "1,", "1,2,1", "01,1", ",".join(["3"] * 5000)])
def test_a_frame_that_is_not_there_is_refused(web, address, frame):
    answer = web.get(f"{address}/frames/{frame}")

    assert answer.status_code in (400, 404)
    assert "accepted" in answer.json()["detail"]


def test_transcoding_is_refused(web, address):
    answer = web.get(f"{address}/frames/1", headers={"accept": 'multipart/related; type="image/jp2"'})

    assert answer.status_code == 406
    assert "does not transcode" in answer.json()["detail"]


def test_metadata_have_no_pixels_and_large_values_by_address(web, archive, first, address):
    changed = dcmread(first.path)
    changed.add_new(0x00091010, "OB", bytes(range(256)) * 40)
    changed.private_block(0x0009, "MAKER", create=True)
    changed.save_as(first.path)
    archive.studies.refresh()

    (header,) = web.get(f"{address}/metadata").json()

    assert "7FE00010" not in header
    assert header["00100020"]["Value"] == [changed.PatientID]
    (part,) = parts_of(web.get(header["00091010"]["BulkDataURI"]))
    assert part[1] == bytes(range(256)) * 40


def test_numbers_that_json_does_not_know_are_null(web, archive, first, address):
    changed = dcmread(first.path)
    changed.add_new(0x00186024, "FD", [float("nan"), 2.5, float("-inf")])
    changed.save_as(first.path)
    archive.studies.refresh()

    answer = web.get(f"{address}/metadata")

    (header,) = json.loads(answer.text, parse_constant=pytest.fail)
    assert header["00186024"]["Value"] == [None, 2.5, None]


def test_a_damaged_file_is_left_out_of_the_headers_of_its_study(web, archive, first, address, monkeypatch):
    def damaged(path, url):
        if path == first.path:
            msg = "File is damaged."
            raise UnreadableCineError(msg)
        return read_metadata(path, url)

    monkeypatch.setattr(dicom_archive, "read_metadata", damaged)

    answer = web.get(f"/dicom-web/studies/{first.study_uid}/metadata")
    alone = web.get(f"{address}/metadata")

    others = [i.sop_uid for i in archive.instances(first.study_uid) if i.sop_uid != first.sop_uid]
    assert values(answer, "00080018") == others
    assert (400 <= alone.status_code < 500, alone.json()["detail"]) == (True, "File is damaged.")


def test_whole_instances_come_as_they_are_on_disk(web, archive, first):
    files = sorted(i.path.read_bytes() for i in archive.instances(first.study_uid))

    answer = web.get(f"/dicom-web/studies/{first.study_uid}")

    assert sorted(content for _, content in parts_of(answer)) == files


def test_files_added_later_are_listed(web, archive, first):
    new = dcmread(first.path)
    new.SOPInstanceUID = new.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4.6"
    new.save_as(archive.studies.root / "later.dcm")
    archive.studies.refresh()

    assert "1.2.3.4.6" in values(web.get(f"/dicom-web/studies/{first.study_uid}/instances"), "00080018")

    (archive.studies.root / "later.dcm").unlink()
    archive.studies.refresh()
    assert web.get(f"/dicom-web/studies/{first.study_uid}/instances").json().__len__() == 2


def test_files_that_are_no_dicom_are_not_listed(web, archive):
    Image.new("L", (40, 30)).save(archive.studies.root / "still.png")
    (archive.studies.root / "broken.dcm").write_bytes(b"no dicom at all" * 20)
    archive.studies.refresh()

    assert len(web.get("/dicom-web/instances").json()) == 4


def test_the_index_is_made_again_when_damaged(archive):
    (archive.studies.root / INDEX_FILE).write_bytes(b"SQLite format 3\0" + b"x" * 4000)

    assert len(StudyFolder(archive.studies.root).instances()) == 4


def test_the_index_is_read_back_without_opening_files(archive, monkeypatch):
    before = dict(archive.studies.instances())
    monkeypatch.setattr("echo_plugin.io.study_folder.describe_file", lambda *_: pytest.fail("a file was opened"))

    assert dict(StudyFolder(archive.studies.root).instances()) == before


def test_pages_together_are_the_whole_list(web):
    whole = values(web.get("/dicom-web/instances"), "00080018")

    pages = [values(web.get(f"/dicom-web/instances?limit=1&offset={n}"), "00080018") for n in range(5)]

    assert [uid for page in pages for uid in page] == whole
    assert pages[4] == []
    assert web.get("/dicom-web/instances?limit=0").json() == []


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        ("PatientID={patient}", 1),
        ("00100020={patient}", 1),
        ("PatientID={patient}&PatientID=", 1),
        ("PatientID=*", 2),
        ("PatientID=PHANTOM-??-000?", 2),
        ("PatientID=nobody", 0),
        ("PatientName={name_lower}", 1),
        ("StudyInstanceUID={study}", 1),
        ("StudyInstanceUID={study},1.2.3", 1),
        ("ModalitiesInStudy=US", 2),
        ("ModalitiesInStudy=SR", 0),
        ("ModalitiesInStudy=SR\\US", 2),
        ("StudyDate=19000101-21000101", 2),
        ("StudyDate=-19000101", 0),
        ("StudyDate=21000101-", 0),
        ("StudyDescription=*[*", 0),
        ("fuzzymatching=false&includefield=00081030,00080060", 2),
    ],
)
def test_filters_choose_studies(web, first, filters, count):
    name = first.attributes["00100010"]["Value"][0]["Alphabetic"]
    query = filters.format(patient=first.text("PatientID"), study=first.study_uid, name_lower=name.lower())

    answer = web.get(f"/dicom-web/studies?{query}")

    assert answer.status_code == 200
    assert len(answer.json()) == count


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("limit=-1", "limit is '-1'"),
        ("offset=x", "offset is 'x'"),
        ("NoSuchThing=1", "'NoSuchThing' is unknown"),
        ("PixelData=1", "Search by 'PixelData' is not supported"),
        ("includefield=nothing", "'nothing' is unknown"),
    ],
)
def test_a_search_that_cannot_be_done_is_refused(web, query, sentence):
    answer = web.get(f"/dicom-web/studies?{query}")

    assert answer.status_code == 400
    assert sentence in answer.json()["detail"]


@pytest.mark.parametrize("path", ["studies/1.2.3/metadata", "studies/1.2.3", "studies/..%2F..%2Fetc/metadata"])
def test_what_is_not_there_is_not_found(web, path):
    assert web.get(f"/dicom-web/{path}").status_code == 404


def test_an_instance_is_found_below_its_own_study_only(web, archive, first):
    other = next(i for i in archive.studies.instances().values() if i.study_uid != first.study_uid)

    url = f"/dicom-web/studies/{other.study_uid}/series/{first.series_uid}/instances/{first.sop_uid}/metadata"

    assert web.get(url).status_code == 404


def test_many_threads_get_the_right_frames(archive, web, address, first):
    expected = [archive.frames(first).stored_frame(n) for n in range(4)]

    def ask(n: int) -> bool:
        return parts_of(web.get(f"{address}/frames/{n % 4 + 1}"))[0][1] == expected[n % 4]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(40)))


def test_a_file_that_was_replaced_is_not_served_from_memory(archive, web, first, address):
    before = parts_of(web.get(f"{address}/frames/1"))
    other = next(i for i in archive.studies.instances().values() if i.sop_uid != first.sop_uid)
    changed = dcmread(other.path)
    changed.StudyInstanceUID, changed.SeriesInstanceUID = first.study_uid, first.series_uid
    changed.SOPInstanceUID = changed.file_meta.MediaStorageSOPInstanceUID = first.sop_uid
    changed.save_as(first.path)
    archive.studies.refresh()

    assert parts_of(web.get(f"{address}/frames/1")) != before


@pytest.mark.real_data
def test_real_files_are_served_in_every_transfer_syntax(archive, web, shared_data):
    for number, path in enumerate(sorted(shared_data.rglob("*.dcm"))):
        shutil.copy(path, archive.studies.root / f"real{number}.dcm")
    archive.studies.refresh()
    seen = set()
    for instance in archive.studies.instances().values():
        url = f"/dicom-web/studies/{instance.study_uid}/series/{instance.series_uid}/instances/{instance.sop_uid}"
        assert web.get(f"{url}/metadata").status_code == 200
        answer = web.get(f"{url}/frames/1", headers={"accept": STORED})
        if answer.status_code != 200:
            assert "accepted" in answer.json()["detail"] or "'" in answer.json()["detail"]
            continue
        dataset = dcmread(instance.path)
        syntax = dataset.file_meta.TransferSyntaxUID
        frames = int(dataset.get("NumberOfFrames") or 1)
        if syntax.is_compressed and "ExtendedOffsetTable" not in dataset:
            assert parts_of(answer)[0][1] == next(generate_pixel_data_frame(dataset.PixelData, frames))
        seen.add(str(syntax))
    assert len(seen) >= 3


def test_a_query_without_parameters_asks_for_everything():
    query = parse_query([])

    assert (query.filters, query.offset, query.limit) == ({}, 0, None)


def test_many_wildcards_are_told_apart_without_trying_every_place_for_each(web):
    # else a search would occupy the server for days
    assert web.get(f"/dicom-web/studies?PatientID={'*0' * 24}b").json() == []


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        ("", 200),
        ("*/*", 200),
        ('multipart/related; type="image/jp2", */*;q=0.1', 200),
        ('multipart/related; type="application/octet-stream"', 200),
        ('multipart/related; type="application/octet-stream"; transfer-syntax=1.2.840.10008.1.2.4.90', 406),
        ("image/*", 200),  # the frames of the phantoms are JPEG
        ("image/png", 406),
    ],
)
def test_a_frame_is_sent_as_it_is_stored_or_refused(web, address, accept, status):
    assert web.get(f"{address}/frames/1", headers={"accept": accept}).status_code == status
