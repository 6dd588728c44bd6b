# SPDX-License-Identifier: Apache-2.0
"""The routes of the server over a study folder, without MONAI Label's start around them."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from echo_plugin.anatomy import View
from echo_plugin.phantom.study import write_phantom_study_folder


@pytest.fixture(scope="session")
def two_children(tmp_path_factory) -> Path:
    """A study folder of two synthetic children with two cines of four frames each."""
    root = tmp_path_factory.mktemp("children") / "studies"
    write_phantom_study_folder(root, patients=2, seed=11, views=[View.A4C, View.PSAX_AV], frames=4)
    return root


@pytest.fixture
def archive(two_children, tmp_path, monkeypatch):
    """The DICOM archive over a copy of that folder, served by the server's routes."""
    from echo_plugin.host.dicom_archive import DicomArchive
    from echo_plugin.host.routes import dicomweb
    from echo_plugin.io.study_folder import StudyFolder

    root = shutil.copytree(two_children, tmp_path / "studies")
    (tmp_path / "cache").mkdir()
    archive = DicomArchive(StudyFolder(root))
    monkeypatch.setattr(dicomweb, "echo_app", lambda: SimpleNamespace(dicomweb=archive))
    return archive


@pytest.fixture
def web(archive):
    """A client of the server's routes in this process."""
    from fastapi.testclient import TestClient

    from echo_plugin.host.server import app

    return TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)


@pytest.fixture
def served(archive) -> Iterator[str]:
    """The address of the same routes behind a real socket on loopback, for clients that bring their own transport."""
    import uvicorn

    from echo_plugin.host.server import app

    started = threading.Event()

    class Server(uvicorn.Server):
        async def startup(self, sockets=None) -> None:
            await super().startup(sockets)
            started.set()

    server = Server(uvicorn.Config(app, host="127.0.0.1", port=0, lifespan="off", log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert started.wait(60)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(20)
