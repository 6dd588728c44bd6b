# SPDX-License-Identifier: Apache-2.0
"""What a real server refuses: unknown names, paths in disguise, foreign pages, large bodies; each with one sentence."""

import http.client
import json
import socket
from pathlib import Path
from urllib.parse import quote

import pytest
import requests

pytestmark = pytest.mark.server

JSON = {"Content_Type": "application/json"}
FORM = {"Content_Type": "application/x-www-form-urlencoded"}
UNKNOWN_ID = "1.2.3.4.5.6"


def form(**fields: str) -> bytes:
    return "&".join(f"{key}={quote(value)}" for key, value in fields.items()).encode()


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "sentence"),
    [
        (
            "POST",
            f"/infer/liver?image={UNKNOWN_ID}",
            None,
            404,
            "Model 'liver' is unknown; septal_boxes, defects, views",
        ),
        ("POST", f"/infer/septal_boxes?image={UNKNOWN_ID}", None, 404, "is not in the study folder"),
        ("POST", "/infer/septal_boxes", None, 400, "Neither an image nor a file"),
        ("POST", "/infer/septal_boxes?image=x&output=dicom_seg", None, 422, "Parameter 'output'"),
        ("POST", "/infer/septal_boxes?image=x", form(params="{"), 400, "'params' is no JSON"),
        ("POST", "/infer/septal_boxes?image=x", form(params="[1]"), 400, "is a JSON list; an object is accepted"),
        ("POST", "/infer/septal_boxes?image=x", form(params='{"image": "/etc/passwd"}'), 400, "'image' may not stand"),
        ("POST", "/infer/septal_boxes?image=x", form(params='{"model": "views"}'), 400, "'model' may not stand"),
        ("POST", "/infer/septal_boxes?image=NEW", form(params='{"frames": "1,x"}'), 400, "Frames '1,x' are no list"),
        ("POST", "/infer/septal_boxes?image=NEW", form(params='{"frames": "99"}'), 400, "has no frame 99"),
        ("POST", "/infer/septal_boxes?session_id=1", None, 406, "Sessions are not offered"),
        ("POST", "/activelearning/clever", b"{}", 404, "Strategy 'clever' is unknown"),
        ("POST", "/train/liver", b"{}", 404, "Trainer 'liver' is unknown"),
        ("POST", "/train/views", b'{"epochs": "many"}', 400, "epochs is 'many'"),
        ("POST", "/train/views", b'{"device": "tpu"}', 400, "device is 'tpu'"),
        ("POST", "/train/views", b'{"model": "defects"}', 400, "'model' may not stand"),
        ("POST", "/train/views", b"[1]", 422, "Parameter"),
        ("POST", "/activelearning/random", b'{"seed": "x"}', 400, "seed is 'x'"),
        ("POST", "/activelearning/random", b'{"label_tag": [1]}', 422, "Label tag '[1]' is unknown"),
        ("POST", "/activelearning/random", b'{"labels": 5}', 400, "Labels are '5'"),
        ("POST", "/batch/infer/views", b'{"max_batch_size": -1}', 400, "max_batch_size is '-1'"),
        ("POST", "/batch/infer/views", b'{"image": "x"}', 400, "'image' may not stand"),
        ("POST", "/infer/views?image=NEW", form(params='{"frames": []}'), 400, "Frames '' are no list"),
        ("POST", "/infer/views?image=NEW", form(params='{"a":' * 9999), 400, "'params' is no JSON"),
        ("GET", "/datastore/dataset?limit_cases=-1", None, 422, "Parameter 'limit_cases'"),
        ("POST", "/batch/infer/liver", b"{}", 404, "Model 'liver' is unknown"),
        ("DELETE", "/batch/infer", None, 404, "No batch_infer job is running"),
        ("GET", f"/datastore/image?image={UNKNOWN_ID}", None, 404, "is not in the study folder"),
        ("GET", f"/datastore/label?label={UNKNOWN_ID}&tag=final", None, 404, "is not in the study folder"),
        ("GET", "/datastore/label?label=NEW&tag=draft", None, 422, "Label tag 'draft' is unknown"),
        ("GET", "/model/liver", None, 404, "No weights are published for 'liver'"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(server, new_image, method, path, body, status, sentence):
    headers = {} if body is None else FORM if body.startswith(b"params") else JSON

    answer = server.ask(method, path.replace("NEW", new_image), body, **headers)

    assert answer[0] == status, answer
    assert sentence in answer[1]["detail"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/proxy/dicom/qido/../system"),
        ("GET", "/proxy/dicom/wado/studies"),
        ("PUT", "/session/"),
        ("GET", "/session/%2e%2e"),
        ("PUT", "/model/septal_boxes"),
        ("DELETE", "/model/septal_boxes"),
        ("POST", "/reload"),
        ("POST", "/infer/wsi/septal_boxes"),
        ("POST", "/scoring/dice"),
    ],
)
def test_what_hands_out_or_takes_in_files_unchecked_is_not_there(server, method, path):
    status, _ = server.ask(method, path)

    assert status in (404, 405)


def snapshot(folder: Path) -> dict[str, int]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): path.stat().st_size for path in files if "sqlite" not in path.name and path.name != ".lock"}


TRAVERSALS = ["../../escaped", "..%2F..%2Fescaped", "/etc/passwd", "..", "a/../../escaped", "C:\\escaped", "a\x00b"]


@pytest.mark.parametrize("name", TRAVERSALS)
def test_no_image_id_leaves_the_study_folder(server, name):
    before = snapshot(server.root.parent)
    quoted = quote(name, safe="")
    upload = {"file": ("x.png", b"\x89PNG no picture", "image/png")}
    label = {"label": ("tmp.json", b'{"markups": []}', "application/json")}

    statuses = [
        requests.get(f"{server.url}/datastore/image?image={quoted}", timeout=60).status_code,
        requests.get(f"{server.url}/datastore/label?label={quoted}&tag=final", timeout=60).status_code,
        requests.get(f"{server.url}/datastore/image/info?image={quoted}", timeout=60).status_code,
        requests.post(f"{server.url}/infer/septal_boxes?image={quoted}", timeout=60).status_code,
        requests.put(f"{server.url}/datastore/image?image={quoted}", files=upload, timeout=60).status_code,
        requests.put(f"{server.url}/datastore/label?image={quoted}", files=label, timeout=60).status_code,
        requests.delete(f"{server.url}/datastore/image?id={quoted}", timeout=60).status_code,
    ]

    assert all(400 <= status < 500 for status in statuses), statuses
    assert snapshot(server.root.parent) == before


@pytest.mark.parametrize("tag", ["../../escaped", "..", "final/../x", "Final"])
def test_no_label_tag_leaves_the_study_folder(server, new_image, tag):
    before = snapshot(server.root.parent)
    label = {"label": ("tmp.json", b'{"markups": []}', "application/json")}

    url = f"{server.url}/datastore/label?image={new_image}&tag={quote(tag, safe='')}"
    answer = requests.put(url, files=label, timeout=60)

    assert (answer.status_code, "is unknown" in answer.json()["detail"]) == (422, True)
    assert snapshot(server.root.parent) == before


def test_a_file_name_of_an_upload_is_no_path(server, new_image):
    before = snapshot(server.root.parent)
    label = {"label": ("../../../escaped.json", b"no markups", "application/json")}

    answer = requests.put(f"{server.url}/datastore/label?image={new_image}", files=label, timeout=60)

    assert answer.status_code == 422
    assert "is no JSON object" in answer.json()["detail"]
    assert snapshot(server.root.parent) == before


def test_a_file_that_is_no_cine_is_not_taken_in(server):
    before = snapshot(server.root.parent)

    for name, content in (("x.dcm", b"no cine"), ("x.exe", b"MZ"), ("x.nrrd", b"NRRD0004\n")):
        answer = requests.put(f"{server.url}/datastore/image?image=x", files={"file": (name, content)}, timeout=60)
        assert answer.status_code == 422, answer.text

    assert snapshot(server.root.parent) == before


def test_a_cine_that_is_there_is_not_stored_twice_and_one_sent_along_is_not_stored_at_all(server, new_image):
    before = snapshot(server.root)
    content = server.studies.entry(new_image).path.read_bytes()

    again = requests.put(f"{server.url}/datastore/image?image=again", files={"file": ("x.dcm", content)}, timeout=60)
    alone = requests.post(f"{server.url}/infer/views?output=json", files={"file": ("x.dcm", content)}, timeout=120)

    assert again.json() == {"image": new_image}
    assert alone.json()["image_id"] == new_image
    assert snapshot(server.root).keys() == before.keys()


@pytest.mark.parametrize("path", ["/infer/septal_boxes?image=x", "/datastore/label?image=x", "/train/views"])
def test_a_foreign_web_page_can_neither_read_nor_write(server, path):
    before = snapshot(server.root.parent)

    answer = requests.request(
        "PUT" if "label" in path else "POST", server.url + path, headers={"Origin": "https://evil.example"}, timeout=60
    )

    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers
    assert snapshot(server.root.parent) == before


def test_a_page_of_this_machine_may_ask_first(server):
    asked = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "POST"}

    answer = requests.options(f"{server.url}/infer/views", headers=asked, timeout=60)

    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"


def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_sent(server, new_image):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.putrequest("PUT", f"/datastore/label?image={new_image}")
    connection.putheader("Content-Type", "multipart/form-data; boundary=x")
    connection.putheader("Content-Length", str(server.upload_limit_bytes + 1))
    connection.endheaders()

    answer = connection.getresponse()

    assert answer.status == 413
    assert "exceeds the limit of 8 MiB" in json.loads(answer.read())["detail"]


def test_a_body_that_hides_its_size_is_refused_while_it_arrives(server, new_image):
    head = b'--x\r\nContent-Disposition: form-data; name="label"; filename="a.json"\r\n\r\n'
    chunk = b"%x\r\n%s\r\n" % (1 << 16, b" " * (1 << 16))
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(
            f"PUT /datastore/label?image={new_image} HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n"
            "Content-Type: multipart/form-data; boundary=x\r\n\r\n".encode()
        )
        connection.sendall(b"%x\r\n%s\r\n" % (len(head), head))
        answer = b""
        for _ in range(2 * server.upload_limit_bytes >> 16):
            try:
                connection.sendall(chunk)
            except OSError:
                break
            connection.setblocking(False)
            try:
                answer = connection.recv(4096)
                break
            except BlockingIOError:
                connection.setblocking(True)
        answer = answer or connection.recv(4096)

    assert answer.startswith(b"HTTP/1.1 413 ")
