# SPDX-License-Identifier: Apache-2.0
"""Real servers on loopback and one Chromium for the browser tests; skipped, visibly, where either is missing."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydicom import dcmread

from echo_plugin.anatomy import View
from echo_plugin.io.study_folder import StudyFolder
from echo_plugin.phantom.study import write_phantom_study_folder
from tests.browser.reader import Reader

REPOSITORY = Path(__file__).resolve().parents[2]
START_LIMIT_S = 600
PATIENTS_LABELLED, PATIENTS_NEW, FRAMES = 4, 5, 8
MISLABELLED = 2
"""The last labelled cines have each septum called by the other's name."""
OTHER_SEPTUM = {"interatrial": "interventricular", "interventricular": "interatrial"}
OBLONG_MM = [0.5, 0.25]
"""Spacing of rows, then of columns, in the header of one new cine."""
FLAGS = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]


@dataclass
class Served:
    """The server's address, and the folder that it serves, opened from outside."""

    url: str
    studies: StudyFolder = field(repr=False)
    new: list[str] = field(repr=False)
    """Cines that nobody has labelled, one for each test that labels one; the second has oblong pixels."""
    several: list[str] = field(repr=False)
    """The cines of a study that has more than one; nobody has labelled them."""

    def ask(self, path: str, method: str = "GET", body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self.url}/{path}", data=data, method=method, headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)

    def wait_for_past_cases(self) -> None:
        """Return once the labelled cines are kept as past cases, which the server does by the way."""
        deadline = time.monotonic() + START_LIMIT_S
        while not self.ask(f"echo/predictions/{self.new[0]}", "POST")["nearest"]:
            assert time.monotonic() < deadline, "no past case was kept"
            time.sleep(0.5)


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of the system's Chromium."""
    pytest.importorskip("playwright", reason="playwright drives the browser")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    return found


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some labelled patients to learn from, some that nobody has labelled, and a study of several cines."""
    root = tmp_path_factory.mktemp("browser") / "studies"
    write_phantom_study_folder(root, patients=PATIENTS_LABELLED, seed=41, views=[View.A4C], frames=FRAMES)
    for name, patients, views in (("new", PATIENTS_NEW, [View.A4C]), ("several", 1, [View.A4C, View.PSAX_AV])):
        made = tmp_path_factory.mktemp(name) / "studies"
        write_phantom_study_folder(made, patients=patients, seed=42 + len(views), views=views, frames=FRAMES)
        (root / name).mkdir()
        for number, cine in enumerate(sorted(made.glob("*/*.dcm"))):
            dataset = dcmread(cine)
            if (name, number) == ("new", 1):
                dataset.PixelSpacing = OBLONG_MM
            dataset.save_as(root / name / f"cine_{number}.dcm")
    for path in sorted((root / "annotations").glob("*.json"))[-MISLABELLED:]:
        said = json.loads(path.read_text())
        for box in said["boxes"]:
            box["septum"] = OTHER_SEPTUM[box["septum"]]
        path.write_text(json.dumps(said))
    return root


def in_folder(folder: StudyFolder, name: str) -> list[str]:
    return [i for i in folder.image_ids() if folder.entry(i).path.parent.name == name]


@pytest.fixture(scope="session")
def start_serving(chromium, tmp_path_factory) -> Iterator[Callable[..., str]]:
    """Start ``monailabel-echo serve`` with a copy of the starter weights; the viewer comes from the cache or npm."""
    cache = tmp_path_factory.mktemp("cache")
    viewer = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "monailabel-echo" / "ohif"
    viewer.mkdir(parents=True, exist_ok=True)
    (cache / "monailabel-echo").mkdir()
    (cache / "monailabel-echo" / "ohif").symlink_to(viewer)
    processes: list[subprocess.Popen] = []

    def start(*arguments: object) -> str:
        models = tmp_path_factory.mktemp("models") / "model"
        shutil.copytree(REPOSITORY / "apps" / "echo" / "model", models)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        log = cache / f"server_{port}.log"
        command = [sys.executable, "-m", "echo_plugin", "serve", *arguments, "--models", models, "--port", port]
        with log.open("wb") as stream:
            process = subprocess.Popen(
                list(map(str, command)),
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd=REPOSITORY,
                env={**os.environ, "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"},
            )
        processes.append(process)
        url = f"http://127.0.0.1:{port}"
        _wait_until_ready(process, url, log)
        return url

    yield start
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)


@pytest.fixture(scope="session")
def served(start_serving, phantoms) -> Served:
    url, folder = start_serving("--studies", phantoms), StudyFolder(phantoms)
    return Served(url, folder, in_folder(folder, "new"), in_folder(folder, "several"))


def _wait_until_ready(process: subprocess.Popen, url: str, log: Path) -> None:
    """Return once the viewer's page answers: asked while the libraries load, the connection is refused."""
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


@pytest.fixture(scope="module")  # while it is open no other test of this thread can run an event loop of its own
def browser(chromium) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    flags = [*FLAGS, "--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else FLAGS
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def at_work(browser) -> Iterator[Callable[..., Reader]]:
    """Let a reader sit down at a window of their own on the server at ``url``; nobody may see an error."""
    readers = []

    def sit_down(url: str, name: str = "reader-1") -> Reader:
        readers.append(Reader(browser, url, name))
        return readers[-1]

    yield sit_down
    complaints = [complaint for reader in readers for complaint in reader.complaints]
    for reader in readers:
        reader.close()
    assert not complaints


@pytest.fixture
def reader_at_work(at_work, served) -> Callable[..., Reader]:
    """``reader_at_work("name")`` is at work on the server of the study folder."""
    return lambda *name: at_work(served.url, *name)


@pytest.fixture
def keep_picture() -> Callable[[Any, str], None]:
    """Keep a screenshot, of 128 colours, where ``MONAILABEL_ECHO_PICTURES`` says."""

    def keep(page: Any, name: str) -> None:
        if folder := os.environ.get("MONAILABEL_ECHO_PICTURES"):
            picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
            picture.quantize(128, dither=Image.Dither.NONE).save(Path(folder) / f"ohif_{name}.png", optimize=True)

    return keep
