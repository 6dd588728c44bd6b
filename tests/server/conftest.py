# SPDX-License-Identifier: Apache-2.0
"""One real server for the whole session, on loopback, serving phantoms; MONAI Label's own Slicer client talks to it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from echo_plugin.anatomy import View
from echo_plugin.host.routes.ohif import VIEWER
from echo_plugin.io.study_folder import StudyFolder
from echo_plugin.phantom.study import write_phantom_study_folder
from tests.script import load_script

REPOSITORY = Path(__file__).resolve().parents[2]
START_LIMIT_S = 180
UPLOAD_LIMIT_MIB = 8


@dataclass
class RunningServer:
    """A server process and the folders it serves; ``studies`` opens them from outside the server."""

    process: subprocess.Popen
    url: str
    log: Path
    root: Path
    models: Path
    studies: StudyFolder = field(repr=False)
    upload_limit_bytes: int = UPLOAD_LIMIT_MIB << 20

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any]:
        """Return status and JSON (or bytes) of one request; ``headers`` with '_' for '-'."""
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        request = urllib.request.Request(self.url + path, data=body, method=method, headers=named)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                status, content = answer.status, answer.read()
        except urllib.error.HTTPError as refusal:
            status, content = refusal.code, refusal.read()
        try:
            return status, json.loads(content)
        except ValueError:
            return status, content


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_ready(process: subprocess.Popen, url: str, log: Path) -> None:
    """Return once /info/ answers; fail with the log when the process ends or takes too long."""
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/info/", timeout=10) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"the server did not become ready:\n{log.read_text(errors='replace')[-4000:]}")


def stop(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(20)


@pytest.fixture(scope="session")
def server_environment(tmp_path_factory) -> dict[str, str]:
    cache = tmp_path_factory.mktemp("cache")
    viewer = cache / "monailabel-echo" / "ohif" / VIEWER.folder.name  # so that no test fetches 50 MB
    viewer.mkdir(parents=True)
    (viewer / "index.html").write_text("<title>OHIF stands here</title>")
    return {
        **{name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"},
        "XDG_CACHE_HOME": str(cache),
        "XDG_DATA_HOME": str(tmp_path_factory.mktemp("data")),
        "MONAILABEL_ECHO_UPLOAD_MIB": str(UPLOAD_LIMIT_MIB),
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture(scope="session")
def phantom_studies(tmp_path_factory) -> Path:
    """Five labelled patients and, as somebody would drop them in, three cines that nobody labelled."""
    root = tmp_path_factory.mktemp("studies") / "phantoms"
    write_phantom_study_folder(root, patients=5, seed=7, views=[View.A4C], frames=8)
    new = tmp_path_factory.mktemp("new") / "phantoms"
    write_phantom_study_folder(new, patients=3, seed=8, views=[View.A4C], frames=8)
    for number, cine in enumerate(sorted(new.glob("*/*.dcm"))):
        (root / "new").mkdir(exist_ok=True)
        shutil.copy(cine, root / "new" / f"cine_{number}.dcm")
    return root


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    """A copy of the starter weights (or of those in ECHO_TEST_MODELS), which a training may replace."""
    folder = tmp_path_factory.mktemp("models") / "model"
    shutil.copytree(os.environ.get("ECHO_TEST_MODELS") or REPOSITORY / "apps" / "echo" / "model", folder)
    return folder


@pytest.fixture(scope="session")
def start_server(server_environment, tmp_path_factory) -> Iterator[Callable[..., tuple[subprocess.Popen, str, Path]]]:
    """Start ``python -m <arguments> --port <free>`` and return process, address and log once it is ready."""
    processes = []

    def start(*arguments: object) -> tuple[subprocess.Popen, str, Path]:
        port = free_port()
        log = tmp_path_factory.mktemp("log") / "server.log"
        command = [sys.executable, "-m", *map(str, arguments), "--port", str(port)]
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command, stdout=stream, stderr=subprocess.STDOUT, env=server_environment, cwd=REPOSITORY
            )
        processes.append(process)
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(process, url, log)
        return process, url, log

    yield start
    for process in processes:
        stop(process)


@pytest.fixture(scope="session")
def serve(start_server) -> Callable[[Path, Path], RunningServer]:
    """Start ``monailabel-echo serve`` on a study folder and a model folder."""

    def start(studies: Path, models: Path) -> RunningServer:
        process, url, log = start_server("echo_plugin", "serve", "--studies", studies, "--models", models)
        return RunningServer(process, url, log, studies, models, StudyFolder(studies))

    return start


@pytest.fixture(scope="session")
def serve_archive(start_server) -> Callable[[str, Path, Path], RunningServer]:
    """Start ``monailabel-echo serve --pacs`` on an address; annotations are kept in the folder ``beside``."""

    def start(address: str, beside: Path, models: Path) -> RunningServer:
        arguments = ("echo_plugin", "serve", "--pacs", address, "--studies", beside, "--models", models)
        process, url, log = start_server(*arguments)
        return RunningServer(process, url, log, beside, models, StudyFolder(beside))

    return start


@pytest.fixture(scope="session")
def server(phantom_studies, model_folder, serve) -> RunningServer:
    return serve(phantom_studies, model_folder)


@pytest.fixture(scope="session")
def slicer_client_module():
    """The client of MONAI Label's own module for 3D Slicer: uv leaves it in site-packages, pip under the prefix."""
    inside = Path("monailabel/plugins/slicer/MONAILabel/MONAILabelLib/client.py")
    unpacked = sorted(Path(sysconfig.get_path("purelib")).glob("monailabel-*.data/data"))
    found = [base / inside for base in [*unpacked, Path(sys.prefix)] if (base / inside).is_file()]
    assert found, f"monailabel's wheel left no {inside} in site-packages or {sys.prefix}"
    return load_script(found[0])


@pytest.fixture
def slicer_client(server, slicer_client_module, tmp_path):
    """What 3D Slicer's module uses to talk to the server."""
    return slicer_client_module.MONAILabelClient(server.url, str(tmp_path), client_id="reader-1")


@pytest.fixture
def new_image(server) -> str:
    """The id of a cine that nobody labelled when the session began."""
    return next(i for i in server.studies.image_ids() if server.studies.entry(i).path.parent.name == "new")
