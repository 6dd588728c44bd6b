# SPDX-License-Identifier: Apache-2.0
"""With an archive behind it, the server passes DICOMweb through, and fetches the cines that are looked at."""

import gzip
import http.server
import io
import json
import logging
import os
import re
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from types import SimpleNamespace

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydicom import dcmread

from echo_plugin.acquisition.pool import LivePool
from echo_plugin.acquisition.score_store import ScoreStore
from echo_plugin.anatomy import Septum
from echo_plugin.annotations import Annotation, SeptalBox
from echo_plugin.errors import UnknownImageError, UnreadableCineError
from echo_plugin.host import pacs as pacs_module
from echo_plugin.host.datastore import EchoDatastore
from echo_plugin.host.pacs import (
    AUTHORIZATION_VARIABLE,
    CREDENTIALS_VARIABLE,
    Pacs,
    PacsError,
    authorization_from_environment,
)
from echo_plugin.host.pacs_folder import PacsFolder
from echo_plugin.host.routes import archive as archive_routes
from echo_plugin.host.routes.archive import stored_uids
from echo_plugin.io.annotation_store import annotation_to_json
from echo_plugin.io.dicom_sr import Observer, boxes_report, read_source
from echo_plugin.io.label_summaries import LabelSummaries
from echo_plugin.io.study_folder import StudyFolder

STORED = "multipart/related; type=application/octet-stream; transfer-syntax=*"
SECRET = "correct-horse-battery"


@pytest.fixture
def pacs(served) -> Pacs:
    """A foreign archive: the DICOMweb of another study folder, behind a socket."""
    return Pacs(f"{served}/dicom-web/")


@pytest.fixture
def folder(pacs, tmp_path) -> PacsFolder:
    return PacsFolder(tmp_path / "beside", pacs)


@pytest.fixture
def through(pacs, folder, monkeypatch) -> Iterator[TestClient]:
    """A client of the routes that pass through to that archive."""
    app = SimpleNamespace(pacs=pacs, datastore=lambda: SimpleNamespace(studies=folder))
    monkeypatch.setattr(archive_routes, "echo_app", lambda: app)
    server = FastAPI()
    server.include_router(archive_routes.router)
    with TestClient(server, base_url="http://127.0.0.1") as client:
        yield client


@pytest.fixture
def first(archive):
    return next(iter(archive.studies.instances().values()))


@pytest.fixture
def recorder():
    """A server that keeps what it was sent and answers as its ``answer`` says: (status, headers, body)."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.seen.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
            status, headers, body = self.server.answer
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.seen, server.answer = [], (200, {"Content-Type": "application/dicom+json"}, b"[]")
    server.url = f"http://127.0.0.1:{server.server_port}/dicom-web"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join(10)


@pytest.mark.heavy
@pytest.mark.parametrize(
    "path",
    [
        "studies",
        "studies?limit=1&offset=1&includefield=00081030",
        "studies?PatientID=nobody",
        "instances?Modality=US",
        "studies?limit=x",
        "studies/1.2.3/metadata",
    ],
)
def test_answers_are_those_of_the_archive(through, web, pacs, path):
    ours, theirs = through.get(f"/dicom-web/{path}"), web.get(f"/dicom-web/{path}")

    assert ours.status_code == theirs.status_code
    assert ours.headers["content-type"] == theirs.headers["content-type"]
    assert _without_urls(ours.json()) == _without_urls(theirs.json())


def _without_urls(content):
    if isinstance(content, list):
        return [{tag: value for tag, value in item.items() if tag != "00081190"} for item in content]
    return content


def test_addresses_in_answers_lead_here(through, pacs):
    (url,) = {
        item["00081190"]["Value"][0].partition("/studies")[0] for item in through.get("/dicom-web/studies").json()
    }

    assert url == "http://127.0.0.1/dicom-web"
    assert pacs.url != url


def test_frames_and_refusals_pass_through(through, first):
    url = f"/dicom-web/studies/{first.study_uid}/series/{first.series_uid}/instances/{first.sop_uid}/frames/2"

    frame = through.get(url, headers={"accept": STORED})
    refused = through.get(url, headers={"accept": "image/jp2"})

    assert frame.status_code == 200
    assert frame.headers["content-type"].startswith("multipart/related")
    assert len(frame.content) > 500
    assert refused.status_code == 406
    assert "does not transcode" in refused.json()["detail"]


@pytest.mark.heavy
@pytest.mark.parametrize(
    "path",
    [
        "studies/../../info/",
        "studies/%2e%2e/%2e%2e/info",
        "../info/",
        "studies//1.2.3",
        "http://example.org/",
        "studies/1.2.3/..%2f..%2finfo",
        "studies/.hidden",
        "admin",
        "studies/1.2.3/metadata%3Fx",
        "studies/1.2.3%00",
    ],
)
def test_no_path_leads_out_of_the_archive(through, recorder, monkeypatch, path):
    app = SimpleNamespace(pacs=Pacs(recorder.url))
    monkeypatch.setattr(archive_routes, "echo_app", lambda: app)

    answer = through.get(f"/dicom-web/{path}")

    assert answer.status_code == 404
    assert recorder.seen == []


@pytest.fixture
def logged(caplog):
    """What all loggers say at any level, but for the client that a test asks this server with."""
    for logger in (None, "httpx", "httpcore"):
        caplog.set_level(logging.DEBUG, logger=logger)
    own = "httpx2"  # of starlette's TestClient
    return lambda: "\n".join(f"{r.name}: {r.getMessage()}" for r in caplog.records if r.name != own)


def test_query_and_credentials_reach_the_archive_and_no_log(through, recorder, monkeypatch, logged):
    app = SimpleNamespace(pacs=Pacs(recorder.url, f"Bearer {SECRET}"))
    monkeypatch.setattr(archive_routes, "echo_app", lambda: app)

    answer = through.get("/dicom-web/studies?PatientName=D%C3%B6e%2A&limit=3&limit=4", headers={"accept": "a/b;q=0.1"})

    ((path, headers),) = recorder.seen
    assert path == "/dicom-web/studies?PatientName=D%C3%B6e%2A&limit=3&limit=4"
    assert headers["authorization"] == f"Bearer {SECRET}"
    assert headers["accept"] == "a/b;q=0.1"
    assert answer.json() == []
    assert "httpcore" in logged()  # it is listened to
    for private in (SECRET, "PatientName", "D%C3%B6e", "Döe"):
        assert private not in logged()
    assert SECRET not in repr(app.pacs)


def test_a_search_of_a_thread_is_in_no_log(recorder, logged):
    archive = Pacs(recorder.url, f"Bearer {SECRET}")

    archive._get_json("/studies", {"PatientName": "Doe*"})
    logging.getLogger("httpx").setLevel(logging.DEBUG)  # as a library may set it later
    archive._get_json("/studies", {"PatientName": "Doe*"})

    recorder.answer = (302, {"Location": "/elsewhere?PatientName=Doe"}, b"")
    with pytest.raises(PacsError, match="status 302"):
        archive._get_json("/studies", {"PatientName": "Doe*"})

    assert [path for path, _ in recorder.seen] == ["/dicom-web/studies?PatientName=Doe%2A"] * 3
    assert "httpcore" in logged()
    for private in (SECRET, "PatientName", "Doe"):
        assert private not in logged()


def test_warnings_about_a_connection_are_still_logged(recorder, caplog):
    Pacs(recorder.url).instances()

    logging.getLogger("httpx").warning("no more connections")

    assert "no more connections" in caplog.text


@pytest.mark.heavy
def test_nothing_is_logged_otherwise_because_a_module_was_imported():
    said = "import logging, echo_plugin.host.pacs; one = logging.getLogger('httpx'); print(one.level, one.filters)"

    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["0", "[]"]


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("accepted", "asked"), [("gzip, br, zstd;q=0.9", "gzip"), ("br", "identity"), ("", "identity")]
)
def test_no_encoding_is_asked_for_that_cannot_be_read_here(through, recorder, monkeypatch, accepted, asked):
    monkeypatch.setattr(archive_routes, "echo_app", lambda: SimpleNamespace(pacs=Pacs(recorder.url)))

    through.get("/dicom-web/studies", headers={"Accept-Encoding": accepted})

    assert recorder.seen[-1][1]["accept-encoding"] == asked


@pytest.mark.heavy
def test_the_clients_own_credentials_and_cookies_stay_here(through, recorder, monkeypatch):
    monkeypatch.setattr(archive_routes, "echo_app", lambda: SimpleNamespace(pacs=Pacs(recorder.url)))

    through.get("/dicom-web/studies", headers={"authorization": "Basic eA==", "cookie": "a=b", "origin": "http://x"})

    ((_, headers),) = recorder.seen
    assert not {"authorization", "cookie", "origin"} & set(headers)


@pytest.mark.heavy
def test_a_redirect_is_not_followed(through, recorder, monkeypatch):
    recorder.answer = (302, {"Location": "http://169.254.169.254/"}, b"")
    monkeypatch.setattr(archive_routes, "echo_app", lambda: SimpleNamespace(pacs=Pacs(recorder.url)))

    answer = through.get("/dicom-web/studies")

    assert answer.status_code == 502
    assert "redirects elsewhere" in answer.json()["detail"]
    assert len(recorder.seen) == 1


def test_an_archive_that_is_off_is_named(through, monkeypatch):
    monkeypatch.setattr(archive_routes, "echo_app", lambda: SimpleNamespace(pacs=Pacs("http://127.0.0.1:9/dicom-web")))

    answer = through.get("/dicom-web/studies?PatientName=Doe")

    assert answer.status_code == 502
    assert "127.0.0.1:9 cannot be reached" in answer.json()["detail"]
    assert "Doe" not in answer.text


@pytest.mark.heavy
def test_an_instance_is_stored_through(through, archive, first):
    new = dcmread(first.path)
    new.SOPInstanceUID = new.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4.7"
    new.save_as(first.path.with_name("send.bin"))
    content = first.path.with_name("send.bin").read_bytes()
    body = b"--x\r\nContent-Type: application/dicom\r\n\r\n" + content + b"\r\n--x--\r\n"

    answer = through.post(
        "/dicom-web/studies",
        content=body,
        headers={"content-type": 'multipart/related; type="application/dicom"; boundary=x'},
    )

    assert answer.status_code == 200
    assert "1.2.3.4.7" in archive.studies.instances()


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("ftp://x/dicom-web", "is not accepted"),
        ("dicom-web", "is not accepted"),
        ("http://x/dicom-web?a=1", "is not accepted"),
        (f"http://me:{SECRET}@x/dicom-web", "holds a password"),
    ],
)
def test_an_address_that_is_none_of_an_archive_is_refused(url, sentence):
    with pytest.raises(PacsError, match=sentence) as refusal:
        Pacs(url)

    assert SECRET not in str(refusal.value)


def test_credentials_come_from_a_private_file_or_the_environment(tmp_path):
    file = tmp_path / "credentials"
    file.write_text(f"reader:{SECRET}\n")
    file.chmod(0o600)

    assert authorization_from_environment({}) is None
    assert authorization_from_environment({AUTHORIZATION_VARIABLE: f"Bearer {SECRET}"}) == f"Bearer {SECRET}"
    basic = authorization_from_environment({CREDENTIALS_VARIABLE: str(file)})
    assert basic == "Basic cmVhZGVyOmNvcnJlY3QtaG9yc2UtYmF0dGVyeQ=="


@pytest.mark.parametrize(
    ("content", "mode", "sentence"),
    [
        (f"reader:{SECRET}", 0o644, "may be read by others"),
        (SECRET, 0o600, "is malformed"),
        (None, 0, "cannot be read"),
    ],
)
def test_credentials_that_cannot_be_used_are_not_repeated(tmp_path, content, mode, sentence):
    file = tmp_path / "credentials"
    if content is not None:
        file.write_text(content)
        file.chmod(mode)

    with pytest.raises(PacsError, match=sentence) as refusal:
        authorization_from_environment({CREDENTIALS_VARIABLE: str(file)})

    assert SECRET not in str(refusal.value)


def test_the_archives_cines_are_listed_without_fetching_any(folder, archive):
    entry = folder.entry(folder.image_ids()[0])

    assert set(folder.image_ids()) == set(archive.studies.instances())
    assert (entry.frames, entry.patient_id) == (4, archive.studies.entry(entry.image_id).patient_id)
    assert not entry.path.exists()
    assert stat.S_IMODE(folder.root.stat().st_mode) == 0o700


def test_a_cine_is_fetched_when_it_is_read(folder, archive):
    image_id = folder.image_ids()[0]

    cine = folder.read_cine(image_id)

    assert cine.sop_instance_uid == image_id
    assert folder.entry(image_id).path.read_bytes() == archive.studies.instances()[image_id].path.read_bytes()
    assert set(folder.image_ids()) == set(archive.studies.instances())
    assert not list(folder.root.glob(".fetching-*"))


def test_what_the_archive_does_not_have_is_unknown(folder):
    with pytest.raises(UnknownImageError, match=r"1\.2\.3 is not in the study folder"):
        folder.read_cine("1.2.3")


def test_an_annotation_is_stored_beside_its_cine_so_that_it_can_be_learned(folder):
    image_id = folder.image_ids()[0]
    box = SeptalBox(1, 10, 10, 50, 60, Septum.INTERATRIAL)

    folder.save_annotation(Annotation(image_id, (box,), (1,)), author="reader")

    plain = StudyFolder(folder.root)  # what a training opens
    assert plain.annotated_ids() == [image_id]
    assert plain.read_cine(image_id).frame_count == 4


def test_renditions_and_submissions_work_by_instance(folder, tmp_path):
    store = EchoDatastore(folder.root, tmp_path / "cache", studies=folder)

    chosen = store.get_unlabeled_images()[0]
    assert store.get_image_uri(chosen).endswith(f"{chosen}.nrrd")
    upload = tmp_path / "label.json"
    upload.write_text(annotation_to_json(Annotation(chosen, (), (0,))))
    store.save_label(chosen, str(upload), "final", {"user": "reader"})

    assert chosen in store.get_labeled_images()
    assert chosen not in store.get_unlabeled_images()


def test_an_archive_that_stops_answering_leaves_what_is_known(folder, monkeypatch):
    known = folder.image_ids()
    monkeypatch.setattr(Pacs, "instances", _fails)
    folder._listed_at = -1e9

    folder.refresh()

    assert folder.image_ids() == known


def _fails(_self):
    msg = "off"
    raise PacsError(msg)


def test_an_archive_that_sends_another_instance_is_not_believed(folder, archive, monkeypatch, tmp_path):
    one, other = folder.image_ids()[:2]
    copied = tmp_path / "other.dcm"
    copied.write_bytes(archive.studies.instances()[other].path.read_bytes())
    monkeypatch.setattr(Pacs, "fetch", lambda *_: copied)

    with pytest.raises(PacsError, match="sent another instance"):
        folder.read_cine(one)

    assert not folder.entry(one).path.exists()


def test_the_archive_is_neither_added_to_nor_removed_from(folder):
    with pytest.raises(UnreadableCineError, match="store it in the archive"):
        folder.add_image(b"x", "x.dcm")
    with pytest.raises(UnreadableCineError, match="which keeps it"):
        folder.remove_image(folder.image_ids()[0])


def test_a_page_shorter_than_asked_for_is_not_the_last(monkeypatch):
    items = [{"00080018": {"vr": "UI", "Value": [f"1.2.{n}"]}} for n in range(7)]

    def three_at_most(_self, _path, parameters):
        return items[parameters["offset"] :][:3]

    monkeypatch.setattr(Pacs, "_get_json", three_at_most)

    assert Pacs("http://x/dicom-web").instances() == items


def test_cines_of_a_fresh_archive_can_be_chosen(folder, archive, tmp_path):
    """A choice of the next cine sees what nobody has fetched yet, and what the archive gets later."""
    store = ScoreStore(tmp_path / "scores.sqlite")
    live = LivePool(folder, LabelSummaries(folder), store, tmp_path)
    with live.reading() as pool:
        assert set(pool.cines.image_ids) == set(archive.studies.instances())
        assert set(pool.cines.frame_counts) == {4}
    before = folder.generation

    folder._listed_at = -1e9
    folder.refresh()
    assert folder.generation == before

    one = folder.pacs.instances()[0]
    one["00080018"]["Value"] = ["1.2.3.4.9"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Pacs, "instances", lambda _self: [one])
        folder._listed_at = -1e9
        folder.refresh()
    with live.reading() as pool:
        assert pool.cines.image_ids == ("1.2.3.4.9",)


def test_a_fetched_cine_is_one_entry(folder):
    image_id = folder.image_ids()[0]
    folder.read_cine(image_id)

    assert sorted(entry.image_id for entry in folder.entries()) == sorted(folder.image_ids())
    assert [entry.image_id for entry in folder.entries() if entry.path.is_file()] == [image_id]


def test_a_folder_that_was_there_keeps_its_rights(pacs, tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o750)

    PacsFolder(shared, pacs)

    assert stat.S_IMODE(shared.stat().st_mode) == 0o750


def _report(first, sop_uid: str, frame_index: int) -> bytes:
    box = SeptalBox(frame_index, 100.5, 60.25, 200.0, 180.0, Septum.INTERATRIAL)
    report = boxes_report(read_source(first.path), (box,), Observer("x"), now=datetime(2026, 3, 1, tzinfo=UTC))
    report.Manufacturer = "Unspecified"  # as a person's viewer writes it
    report.SOPInstanceUID = report.file_meta.MediaStorageSOPInstanceUID = sop_uid
    stream = io.BytesIO()
    report.save_as(stream, write_like_original=False)
    return stream.getvalue()


@pytest.fixture
def answering_post(recorder):
    """The recorder takes instances too, and answers as it does otherwise."""

    def do_post(handler):
        # what is left unread when the connection closes resets it, and the answer with it
        if handler.headers.get("Transfer-Encoding") == "chunked":
            while size := int(handler.rfile.readline(), 16):
                handler.rfile.read(size + len(b"\r\n"))
            handler.rfile.readline()
        else:
            handler.rfile.read(int(handler.headers["Content-Length"]))
        handler.do_GET()

    recorder.RequestHandlerClass.do_POST = do_post
    return recorder


def _post(through, *contents: bytes):
    parts = b"\r\n".join(b"--x\r\nContent-Type: application/dicom\r\n\r\n" + content for content in contents)
    kind = 'multipart/related; type="application/dicom"; boundary=x'
    return through.post("/dicom-web/studies", content=parts + b"\r\n--x--\r\n", headers={"content-type": kind})


def test_only_reports_that_the_archive_took_become_annotations(through, folder, first, web):
    taken, other = _report(first, "1.2.3.4.7", 1), _report(first, "1.2.3.4.8", 2)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(archive_routes, "stored_uids", lambda content: stored_uids(content) - {"1.2.3.4.8"})
        answer = _post(through, taken, other)

    assert answer.status_code == 200
    annotation = folder.annotation(first.sop_uid)
    assert annotation is not None
    assert annotation.annotated_frames == (1,)


def test_uids_that_were_not_stored_are_not_taken():
    answer = {
        "00081199": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": ["1.2"]}}]},
        "00081198": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": ["1.3"]}}]},
    }

    assert stored_uids(json.dumps(answer).encode()) == {"1.2"}
    assert stored_uids(b"{}") == set()


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("kind", "body"),
    [("application/dicom+json", b"no json"), ("application/dicom+json", b"[1]"), ("application/dicom+xml", b"<x/>")],
)
def test_the_archives_answer_is_given_whatever_becomes_of_a_report(
    through, answering_post, monkeypatch, folder, first, caplog, kind, body
):
    answering_post.answer = (200, {"Content-Type": kind}, body)
    app = SimpleNamespace(pacs=Pacs(answering_post.url), datastore=lambda: SimpleNamespace(studies=folder))
    monkeypatch.setattr(archive_routes, "echo_app", lambda: app)

    answer = _post(through, _report(first, "1.2.3.4.7", 1))

    assert (answer.status_code, answer.content) == (200, body)
    assert folder.annotation(first.sop_uid) is None
    assert "annotation" in caplog.text


@pytest.mark.parametrize("kind", ["application/dicom+json", "application/octet-stream"])
def test_one_connection_serves_all_frames_and_is_closed_with_the_server(recorder, monkeypatch, kind):
    recorder.RequestHandlerClass.protocol_version = "HTTP/1.1"
    recorder.answer = (200, {"Content-Type": kind, "Set-Cookie": "session=of-one-reader"}, b"[]")
    connections, archive = [], Pacs(recorder.url)
    accept = recorder.get_request
    monkeypatch.setattr(recorder, "get_request", lambda: connections.append(accept()) or connections[-1])
    monkeypatch.setattr(archive_routes, "echo_app", lambda: SimpleNamespace(pacs=archive))
    server = FastAPI()
    server.include_router(archive_routes.router)

    with TestClient(server, base_url="http://127.0.0.1") as through:
        answers = [through.get("/dicom-web/studies").content for _ in range(5)]

    assert answers == [b"[]"] * 5
    assert len(connections) == 1
    assert not any("cookie" in headers for _, headers in recorder.seen)
    assert archive.streams.is_closed


@pytest.fixture
def forgetful() -> Iterator[tuple[str, list[str]]]:
    """An archive that ends every second connection without an answer: its address and what it was asked."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked.append(self.command)
            if len(asked) % 2 == 0:
                self.send_response(200)
                self.send_header("Content-Type", "application/dicom+json")
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"[]")
            self.close_connection = True

        do_POST = do_GET

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/dicom-web", asked
    server.shutdown()
    thread.join(10)


def test_a_question_that_met_a_closed_connection_is_asked_again(forgetful, monkeypatch):
    url, asked = forgetful
    archive = Pacs(url)
    monkeypatch.setattr(archive_routes, "echo_app", lambda: SimpleNamespace(pacs=archive))
    server = FastAPI()
    server.include_router(archive_routes.router)

    with TestClient(server, base_url="http://127.0.0.1") as through:
        answer = through.get("/dicom-web/studies")

    assert (answer.status_code, archive.instances()) == (200, [])
    assert asked == ["GET"] * 4


def test_an_instance_is_sent_once_even_if_nobody_answers(forgetful):
    url, asked = forgetful

    with pytest.raises(PacsError, match="cannot be used"):
        Pacs(url).store(b"x")

    assert asked == ["POST"]


@pytest.mark.parametrize(
    ("status", "reason", "sentence"),
    [(200, 0xA700, "reason 42752"), (202, 0xC000, "reason 49152"), (409, 0xC000, "status 409")],
)
def test_an_instance_that_the_archive_did_not_keep_is_not_said_to_be_stored(recorder, status, reason, sentence):
    recorder.answer = stow_failure(status, reason)

    with pytest.raises(PacsError, match=sentence):
        Pacs(recorder.url).store(b"x")


@pytest.mark.parametrize("status", [200, 409])
def test_an_instance_that_is_there_already_is_stored(recorder, status):
    recorder.answer = stow_failure(status, 0x0111)

    Pacs(recorder.url).store(b"x")

    assert len(recorder.seen) == 1


def stow_failure(status: int, reason: int) -> tuple[int, dict[str, str], bytes]:
    failed = {"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [reason]}}]}}
    return status, {"Content-Type": "application/dicom+json"}, json.dumps(failed).encode()


def test_no_proxy_of_the_environment_sees_the_archives_answers(recorder, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    assert Pacs(recorder.url).instances() == []


def test_the_cines_longest_unused_go_and_annotated_ones_stay(pacs, tmp_path, archive):
    largest = max(instance.path.stat().st_size for instance in archive.studies.instances().values())
    folder = PacsFolder(tmp_path / "beside", pacs, kept_bytes=largest)
    annotated, unused, in_use, newest = folder.image_ids()
    folder.save_annotation(Annotation(annotated, (), (0,)), author="reader")
    for image_id, minutes in ((annotated, 90), (unused, 60), (in_use, 1)):
        folder.read_cine(image_id)
        path, ago_ns = folder.entry(image_id).path, time.time_ns() - minutes * 60_000_000_000
        os.utime(path, ns=(ago_ns, path.stat().st_mtime_ns))

    folder.read_cine(newest)

    here = {path.stem for path in (folder.root / "pacs").glob("*.dcm")}
    assert here == {annotated, in_use, newest}
    assert set(folder.image_ids()) == set(archive.studies.instances())
    assert folder.read_cine(unused).sop_instance_uid == unused  # it is fetched again


def test_neither_what_is_being_annotated_nor_what_the_archive_does_not_list_goes(pacs, tmp_path):
    folder = PacsFolder(tmp_path / "beside", pacs, kept_bytes=0)
    begun, _, vanished, newest = folder.image_ids()
    folder.read_cine(begun)
    here = folder.root / "pacs"
    unlisted = here / "1.2.3.dcm"
    unlisted.write_bytes(b"kept by somebody")
    for path in (here / f"{begun}.dcm", unlisted):
        os.utime(path, ns=(0, path.stat().st_mtime_ns))
    (here / f"{vanished}.dcm").symlink_to("nowhere")  # as if another thread dropped it between looking and asking

    with folder._fetching[begun]:  # as save_annotation holds it when it makes sure that the cine is here
        folder.read_cine(newest)

    assert {path.stem for path in here.glob("*.dcm") if path.exists()} == {begun, "1.2.3", newest}


def test_reading_a_fetched_cine_keeps_it(folder):
    image_id = folder.image_ids()[0]
    folder.read_cine(image_id)
    path = folder.entry(image_id).path
    stamp = path.stat().st_mtime_ns
    os.utime(path, ns=(0, stamp))

    folder.read_cine(image_id)

    assert path.stat().st_atime > time.time() - 60
    assert path.stat().st_mtime_ns == stamp  # the index does not take it for another file


def test_pages_are_followed_to_the_end(recorder):
    """An archive that ignores offset sends the same page again: it is asked no third time."""
    items = [{"00080018": {"vr": "UI", "Value": [f"1.2.{n}"]}} for n in range(500)]
    recorder.answer = (200, {"Content-Type": "application/dicom+json"}, json.dumps(items).encode())

    assert len(Pacs(recorder.url).instances()) == 500
    assert [path.partition("offset=")[2] for path, _ in recorder.seen] == ["0", "500"]


TOO_LONG = r"The archive 127\.0\.0\.1:\d+ answered with more than 1 MiB of JSON; ask for less \(limit=100\)\.$"
JSON_TYPE = {"Content-Type": "application/dicom+json"}


def study_list(length: int) -> bytes:
    """Return a list of one study in as many bytes."""
    item = b'[{"0020000D":{"vr":"UI","Value":["1.2.3"]}}'
    return item + b" " * (length - len(item) - 1) + b"]"


@pytest.fixture
def bound(monkeypatch) -> int:
    """The longest answer that is read, made short enough for a test."""
    monkeypatch.setattr(pacs_module, "LONGEST_BYTES", 1 << 20)
    return 1 << 20


@pytest.mark.parametrize("is_packed", [False, True], ids=["plain", "packed"])
def test_an_answer_that_is_too_long_is_refused_in_one_sentence(recorder, bound, is_packed):
    body = study_list(bound + 1)
    recorder.answer = (200, JSON_TYPE, body)
    if is_packed:  # short on the way, long when it is unpacked
        recorder.answer = (200, {**JSON_TYPE, "Content-Encoding": "gzip"}, gzip.compress(body))
    archive = Pacs(recorder.url)

    for ask in (archive.instances, lambda: archive.holds("1.2.3"), lambda: archive.store(b"x")):
        with pytest.raises(PacsError, match=TOO_LONG):
            ask()


@pytest.mark.heavy
def test_a_viewer_is_told_that_an_answer_is_too_long(through, recorder, bound, monkeypatch):
    recorder.answer = (200, JSON_TYPE, study_list(bound + 1))
    archive = Pacs(recorder.url)
    monkeypatch.setattr(archive_routes, "echo_app", lambda: SimpleNamespace(pacs=archive))

    refused = through.get("/dicom-web/studies")
    recorder.answer = (200, JSON_TYPE, study_list(bound))
    answered = through.get("/dicom-web/studies")

    assert refused.status_code == 502
    assert re.match(TOO_LONG, refused.json()["detail"])
    assert (answered.status_code, len(answered.content)) == (200, bound)


def test_the_rest_of_an_answer_without_an_end_is_not_read(bound):
    sent = []

    def without_end() -> Iterator[bytes]:
        while True:
            sent.append(1 << 16)
            yield b"[" * (1 << 16)

    with pytest.raises(PacsError, match="more than 1 MiB"):
        pacs_module.read_whole(httpx.Response(200, content=without_end()), "127.0.0.1:1")

    assert bound < sum(sent) <= bound + (1 << 17)


def test_the_longest_answer_is_read(recorder, bound):
    recorder.answer = (200, JSON_TYPE, study_list(bound))

    assert Pacs(recorder.url)._get_json("/studies", {}) == json.loads(study_list(bound))


def test_the_bound_leaves_room_for_the_studies_of_a_big_archive():
    kilobytes_each = 1.34  # of Orthanc 1.10.1 with the fields that OHIF asks for

    assert 200_000 * kilobytes_each * 1000 < pacs_module.LONGEST_BYTES


@pytest.mark.parametrize("body", [b"{", b"\xff\xfe\xfd", b"[" * 100_000], ids=["cut off", "no text", "too deep"])
def test_an_answer_that_is_no_json_is_an_error_of_the_archive(recorder, body):
    recorder.answer = (200, JSON_TYPE, body)

    with pytest.raises(PacsError, match=r"cannot be used \((JSONDecode|UnicodeDecode|Recursion)Error\)"):
        Pacs(recorder.url).instances()
