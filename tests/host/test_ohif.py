# SPDX-License-Identifier: Apache-2.0
"""OHIF comes from its package once, checked and moved to /ohif/; without it everything else works."""

import io
import json
import shutil
import subprocess
import tarfile
import threading

import anyio
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from echo_plugin.host.routes import HEAVY, ohif, run_heavy
from echo_plugin.host.routes.ohif import (
    TARBALL,
    ViewerPackage,
    ViewerUnavailableError,
    fetch,
    require_integrity,
    unpack,
)

FILES = {
    "package/package.json": "{}",
    "package/dist/index.html": '<script>window.PUBLIC_URL="/"</script><link href="/app.css"><a href="//x.org/">'
    '<script src="/app.js"></script>',
    "package/dist/app.js": '/******/ __webpack_require__.p = "/";fetch("/dicom-web")',
    "package/dist/app.css": "@font-face{src:url(/f.woff2)} b{background:url(data:x)}",
    "package/dist/app.js.map": "large",
    "package/dist/ort/model.onnx": "larger",
    "package/dist/manifest.json": '{"icons": [{"src": "/assets/i.png"}]}',
    "package/dist/../../escaped.js": "x",
}


@pytest.fixture
def tarball(tmp_path, monkeypatch):
    """A package that looks like OHIF's, whose hash is the expected one."""
    path = tmp_path / "made.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in FILES.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    import base64
    import hashlib

    digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    monkeypatch.setattr(ohif.require_integrity, "__defaults__", (f"sha512-{digest}",))
    return path


@pytest.fixture
def package(tmp_path, tarball) -> ViewerPackage:
    """The viewer, whose package somebody has put into the cache."""
    viewer = ViewerPackage(tmp_path / "cache")
    viewer.cache.mkdir(parents=True)
    (viewer.cache / TARBALL).write_bytes(tarball.read_bytes())
    return viewer


@pytest.fixture
def browser(package, monkeypatch) -> TestClient:
    monkeypatch.setattr(ohif, "VIEWER", package)
    app = FastAPI()
    app.include_router(ohif.router)
    return TestClient(app)


def test_a_package_is_moved_below_its_path(tarball, tmp_path):
    unpack(tarball, tmp_path / "viewer")

    html, script, style, manifest = (
        (tmp_path / "viewer" / name).read_text() for name in ("index.html", "app.js", "app.css", "manifest.json")
    )
    assert 'PUBLIC_URL="/ohif/"' in html
    assert 'href="/ohif/app.css"' in html
    assert 'href="//x.org/"' in html
    assert '__webpack_require__.p = "/ohif/"' in script
    assert 'fetch("/dicom-web")' in script
    assert style == "@font-face{src:url(/ohif/f.woff2)} b{background:url(data:x)}"
    assert json.loads(manifest) == {"icons": [{"src": "/ohif/assets/i.png"}]}


def test_the_spacing_along_a_row_is_that_of_columns(tmp_path):
    """The two functions as the package has them, of an image whose columns are twice as close as its rows."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js is not installed")
    tarball = tmp_path / "made.tgz"
    with tarfile.open(tarball, "w:gz") as archive:
        info = tarfile.TarInfo("package/dist/app.js")
        info.size = len(CORNERSTONE)
        archive.addfile(info, io.BytesIO(CORNERSTONE.encode()))

    unpack(tarball, tmp_path / "viewer")

    asked = "console.log(JSON.stringify([imageToWorldCoords('', [4.5, 2.5]), worldToImageCoords('', [1, 1, 0])]))"
    script = (tmp_path / "viewer" / "app.js").read_text() + asked
    done = subprocess.run([node, "-e", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[1, 1, 0], [4.5, 2.5]]


CORNERSTONE = """
const plane = {
  rowCosines: [1, 0, 0], columnCosines: [0, 1, 0], imagePositionPatient: [0, 0, 0],
  columnPixelSpacing: 0.25, rowPixelSpacing: 0.5,
};
const _meta = { get: () => plane };
const eR = {
  vt: () => [0, 0, 0], Om: (a, b) => a.reduce((sum, one, n) => sum + one * b[n], 0),
  Ln: (out, a, b, scale) => out.forEach((_, n) => { out[n] = a[n] + scale * b[n]; }),
  jb: (out, a, b) => out.forEach((_, n) => { out[n] = a[n] - b[n]; }),
};
function imageToWorldCoords(imageId, imageCoords) {
    const { columnCosines, rowCosines, imagePositionPatient: origin, } = _meta.get('imagePlaneModule', imageId);
    let { columnPixelSpacing, rowPixelSpacing } = plane;
    const imageCoordsInWorld = eR.vt();
    eR.Ln(imageCoordsInWorld, origin, rowCosines, rowPixelSpacing * (imageCoords[0] - 0.5));
    eR.Ln(imageCoordsInWorld, imageCoordsInWorld, columnCosines, columnPixelSpacing * (imageCoords[1] - 0.5));
    return Array.from(imageCoordsInWorld);
}
function worldToImageCoords(imageId, worldCoords) {
    const { columnCosines, rowCosines, imagePositionPatient: origin, } = _meta.get('imagePlaneModule', imageId);
    let { columnPixelSpacing, rowPixelSpacing } = plane;
    const newOrigin = eR.vt();
    eR.Ln(newOrigin, origin, columnCosines, -columnPixelSpacing / 2);
    eR.Ln(newOrigin, newOrigin, rowCosines, -rowPixelSpacing / 2);
    const sub = eR.vt();
    eR.jb(sub, worldCoords, newOrigin);
    const rowDistance = eR.Om(sub, rowCosines);
    const columnDistance = eR.Om(sub, columnCosines);
    const imageCoords = [
        rowDistance / rowPixelSpacing,
        columnDistance / columnPixelSpacing,
    ];
    return imageCoords;
}
"""


def test_models_maps_and_what_would_leave_the_folder_are_left_out(tarball, tmp_path):
    unpack(tarball, tmp_path / "viewer")

    names = sorted(path.name for path in tmp_path.rglob("*") if path.is_file() and path != tarball)
    assert names == ["app.css", "app.js", "index.html", "manifest.json"]


def test_a_package_with_another_hash_is_refused(tarball):
    tarball.write_bytes(tarball.read_bytes() + b"x")

    with pytest.raises(ViewerUnavailableError, match=r"has the hash sha512-.* is expected"):
        require_integrity(tarball)


def test_a_refused_package_leaves_nothing_to_serve(package):
    (package.cache / TARBALL).write_bytes(b"something else")

    with pytest.raises(ViewerUnavailableError, match=f"could not be fetched: .*{TARBALL}"):
        package.wait()

    assert not package.is_ready
    assert sorted(path.name for path in package.cache.iterdir()) == ["fetch.lock", TARBALL]


def test_a_second_start_needs_neither_network_nor_npm(package, monkeypatch):
    package.wait()
    (package.cache / TARBALL).unlink()
    monkeypatch.setattr(ohif, "npm_command", _no_npm)

    again = ViewerPackage(package.cache.parent)
    again.start()

    assert again.is_ready
    assert again.wait() == package.folder


def _no_npm():
    msg = "npm is not installed"
    raise ViewerUnavailableError(msg)


def test_without_npm_it_is_said_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(ohif.shutil, "which", lambda _: None)
    monkeypatch.setattr(ohif.importlib.util, "find_spec", lambda _: None)
    package = ViewerPackage(tmp_path)

    with pytest.raises(
        ViewerUnavailableError, match=r"npm is not installed .*monailabel-echo\[ohif\].* npm pack|pack"
    ) as no:
        package.wait()

    assert f"`npm pack @ohif/app@{ohif.VERSION}`" in str(no.value)
    assert "3D Slicer works without it" in str(no.value)


def test_what_npm_says_is_passed_on(tmp_path, monkeypatch):
    def fails(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "npm error code ENOTFOUND\n")

    monkeypatch.setattr(ohif, "npm_command", lambda: ["npm"])
    monkeypatch.setattr(ohif.subprocess, "run", fails)

    with pytest.raises(ViewerUnavailableError, match=r"npm ended with 1 .*ENOTFOUND"):
        fetch(tmp_path / "cache", tmp_path / "cache" / "viewer")


def test_what_an_ended_server_left_is_cleared_away(package):
    (package.cache / "fetching-old").mkdir()

    package.wait()

    assert not (package.cache / "fetching-old").exists()


@pytest.mark.parametrize("path", ["", "index.html", "echo?StudyInstanceUIDs=1.2", "local/deep/page"])
def test_every_page_of_the_viewer_is_its_index(browser, path):
    answer = browser.get(f"/ohif/{path}")

    assert answer.status_code == 200
    assert "PUBLIC_URL" in answer.text


def test_files_have_types_that_browsers_run(browser):
    assert browser.get("/ohif/app.js").headers["content-type"].startswith("text/javascript")
    assert browser.get("/ohif/app.css").headers["content-type"].startswith("text/css")
    assert browser.get("/ohif/no-such.js").status_code == 404


@pytest.mark.parametrize("path", ["..%2F..%2Fmade.tgz", "%2e%2e/fetch.lock", "..%2ffetch.lock", "%00", "/etc/passwd"])
def test_no_path_leads_out_of_the_viewer(browser, path):
    answer = browser.get(f"/ohif/{path}")

    assert answer.status_code == 404 or "PUBLIC_URL" in answer.text
    assert browser.get(f"/ohif-ext/{path}").status_code == 404


def test_the_configuration_names_this_server_and_our_mode(browser):
    text = browser.get("/ohif/app-config.js").text

    config = json.loads(text.removeprefix("window.config = ").rstrip().removesuffix(";"))
    assert config["routerBasename"] == "/ohif/"
    assert config["dataSources"][0]["configuration"]["wadoRoot"] == "/dicom-web"
    for mode in config["modes"]:
        assert browser.get(mode).headers["content-type"].startswith("text/javascript")


def test_a_viewer_that_cannot_be_fetched_is_a_page_that_says_so(browser, package):
    (package.cache / TARBALL).write_bytes(b"something else")

    answer = browser.get("/ohif/")

    assert answer.status_code == 503
    assert "could not be fetched" in answer.text


def test_what_npm_says_is_text_on_that_page(browser, package, monkeypatch):
    def fails(*_):
        raise ViewerUnavailableError("npm ended with 1 (<anonymous>).")

    monkeypatch.setattr(ohif, "fetch", fails)

    assert "(&lt;anonymous&gt;)" in browser.get("/ohif/").text


def test_pages_that_wait_for_the_viewer_keep_nobody_from_predicting(package, monkeypatch):
    started, may_end = threading.Event(), threading.Event()

    def slow(*places) -> None:
        started.set()
        assert may_end.wait(60)
        fetch(*places)

    monkeypatch.setattr(ohif, "VIEWER", package)
    monkeypatch.setattr(ohif, "fetch", slow)
    answers = []

    async def page() -> None:
        answers.append(await ohif.viewer_file(""))

    async def visit() -> str:
        async with anyio.create_task_group() as group:
            for _ in range(HEAVY.total_tokens + 1):
                group.start_soon(page)
            await anyio.to_thread.run_sync(started.wait)
            try:
                with anyio.fail_after(20):
                    predicted = await run_heavy(lambda: "predicted")
                assert not answers
            finally:
                may_end.set()
        return predicted

    assert anyio.run(visit) == "predicted"
    assert [answer.status_code for answer in answers] == [200, 200, 200]
