# SPDX-License-Identifier: Apache-2.0
"""Foreign pages and large bodies do not reach a route."""

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from echo_plugin.host.middleware import TrustedPagesOnly, UploadLimit, is_loopback

LIMIT_BYTES = 1 << 20


def echo_server() -> FastAPI:
    app = FastAPI()
    app.add_middleware(UploadLimit, limit_bytes=LIMIT_BYTES)
    app.add_middleware(TrustedPagesOnly, origins=["https://viewer.hospital.example"])

    @app.post("/size")
    async def size(request: Request) -> int:
        return len(await request.body())

    return app


@pytest.fixture
def client() -> TestClient:
    return TestClient(echo_server(), base_url="http://127.0.0.1:8000")


@pytest.mark.parametrize(
    "origin",
    [
        None,
        "http://127.0.0.1:8000",
        "http://localhost:3000",
        "http://[::1]:8000",
        "https://viewer.hospital.example",
    ],
)
def test_slicer_and_trusted_pages_get_through(client, origin):
    headers = {"Origin": origin} if origin else {}

    answer = client.post("/size", content=b"abc", headers=headers)

    assert (answer.status_code, answer.json()) == (200, 3)


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1.evil.example", "http://[", ""])
def test_a_foreign_page_is_refused(client, origin):
    answer = client.post("/size", content=b"abc", headers={"Origin": origin})

    assert answer.status_code == 403
    assert "may not use this server" in answer.json()["detail"]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "", "[", "127.0.0.1.evil.example"])
def test_a_name_that_was_made_to_point_here_is_refused(client, host):
    answer = client.post("/size", content=b"abc", headers={"Host": host})

    assert answer.status_code == 403
    assert "is not this server" in answer.json()["detail"]


def test_a_page_of_the_served_address_itself_gets_through():
    client = TestClient(echo_server(), base_url="http://192.168.1.5:8000")

    assert client.post("/size", headers={"Origin": "http://192.168.1.5:8000"}).status_code == 200
    assert client.post("/size", headers={"Origin": "http://192.168.1.6:8000"}).status_code == 403


def test_a_body_of_exactly_the_limit_is_taken(client):
    assert client.post("/size", content=b"x" * LIMIT_BYTES).json() == LIMIT_BYTES


def test_a_body_that_says_it_is_too_large_is_refused(client):
    answer = client.post("/size", content=b"x" * (LIMIT_BYTES + 1))

    assert answer.status_code == 413
    assert answer.json()["detail"].startswith("The upload exceeds the limit of 1 MiB")


def test_a_body_that_does_not_say_its_size_is_refused_while_it_arrives(client):
    sent = []

    def chunks():
        for number in range(100):
            sent.append(number)
            yield b"x" * (LIMIT_BYTES // 10)

    answer = client.post("/size", content=chunks())

    assert answer.status_code == 413
    assert answer.json()["detail"].startswith("The upload exceeds the limit of 1 MiB")


@pytest.mark.parametrize(
    ("hostname", "expected"),
    [("localhost", True), ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("10.0.0.1", False), (None, False)],
)
def test_loopback_is_told_from_the_network(hostname, expected):
    assert is_loopback(hostname) is expected
