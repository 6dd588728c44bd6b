# SPDX-License-Identifier: Apache-2.0
"""One real server on loopback and one Chromium for the browser tests; skipped, visibly, where either is missing."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from echo_plugin.anatomy import View
from echo_plugin.io.study_folder import StudyFolder
from echo_plugin.phantom.study import write_phantom_study_folder
from tests.browser.reader import Reader

REPOSITORY = Path(__file__).resolve().parents[2]
START_LIMIT_S = 240
PATIENTS_LABELLED, PATIENTS_NEW, FRAMES = 4, 3, 8
FLAGS = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]


@dataclass
class Served:
    """The server's address, and the folder that it serves, opened from outside."""

    url: str
    studies: StudyFolder = field(repr=False)
    new: list[str] = field(repr=False)
    """Cines that nobody has labelled, one for each test that labels one."""

    def ask(self, path: str, method: str = "GET", body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self.url}/{path}", data=data, method=method, headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of the system's Chromium."""
    pytest.importorskip("playwright", reason="playwright drives the browser")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    return found


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Some labelled patients to learn from, and some that nobody has labelled."""
    root = tmp_path_factory.mktemp("browser") / "studies"
    write_phantom_study_folder(root, patients=PATIENTS_LABELLED, seed=41, views=[View.A4C], frames=FRAMES)
    new = tmp_path_factory.mktemp("new") / "studies"
    write_phantom_study_folder(new, patients=PATIENTS_NEW, seed=42, views=[View.A4C], frames=FRAMES)
    (root / "new").mkdir()
    for number, cine in enumerate(sorted(new.glob("*/*.dcm"))):
        shutil.copy(cine, root / "new" / f"cine_{number}.dcm")
    folder = StudyFolder(root)
    return root, [i for i in folder.image_ids() if folder.entry(i).path.parent.name == "new"]


@pytest.fixture(scope="session")
def served(chromium, phantoms, tmp_path_factory) -> Iterator[Served]:
    """``monailabel-echo serve`` with a copy of the starter weights; the viewer comes from the user's cache or npm."""
    root, new = phantoms
    cache = tmp_path_factory.mktemp("cache")
    viewer = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "monailabel-echo" / "ohif"
    viewer.mkdir(parents=True, exist_ok=True)
    (cache / "monailabel-echo").mkdir()
    (cache / "monailabel-echo" / "ohif").symlink_to(viewer)
    models = tmp_path_factory.mktemp("models") / "model"
    shutil.copytree(REPOSITORY / "apps" / "echo" / "model", models)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = cache / "server.log"
    command = ["-m", "echo_plugin", "serve", "--studies", root, "--models", models, "--port", port]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            stdout=stream,
            stderr=subprocess.STDOUT,
            cwd=REPOSITORY,
            env={**os.environ, "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"},
        )
    try:
        served = Served(f"http://127.0.0.1:{port}", StudyFolder(root), new)
        _wait_until_ready(process, served.url, log)
        yield served
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)


def _wait_until_ready(process: subprocess.Popen, url: str, log: Path) -> None:
    """Return once the viewer's page answers: asked while the libraries load, the connection is refused."""
    import time

    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/ohif/", timeout=START_LIMIT_S) as answer:
                if answer.status == 200:
                    return
        except urllib.error.HTTPError as refusal:
            pytest.skip(f"the viewer is not there: {refusal.read().decode(errors='replace')[-300:]}")
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"the server did not become ready:\n{log.read_text(errors='replace')[-4000:]}")


@pytest.fixture(scope="module")
def browser(chromium) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    flags = [*FLAGS, "--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else FLAGS
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def reader_at_work(browser, served) -> Iterator[Callable[..., Reader]]:
    """Let a reader sit down at a window of their own: ``reader_at_work("name")``; nobody may see an error."""
    readers = []

    def sit_down(name: str = "reader-1") -> Reader:
        readers.append(Reader(browser, served.url, name))
        return readers[-1]

    yield sit_down
    complaints = [complaint for reader in readers for complaint in reader.complaints]
    for reader in readers:
        reader.close()
    assert not complaints


@pytest.fixture
def keep_picture() -> Callable[[Any, str], None]:
    """Keep a screenshot where ``MONAILABEL_ECHO_PICTURES`` says."""

    def keep(page: Any, name: str) -> None:
        if folder := os.environ.get("MONAILABEL_ECHO_PICTURES"):
            page.screenshot(path=str(Path(folder) / f"ohif_{name}.png"))

    return keep
