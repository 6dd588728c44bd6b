# SPDX-License-Identifier: Apache-2.0
"""The routes of /ohif (the viewer, from the user's cache) and /ohif-ext (our mode and panel, plain ES modules)."""

from __future__ import annotations

import html
import json
import mimetypes
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
from fastapi import APIRouter, HTTPException
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response

from echo_plugin.host.ohif_package import BASE_PATH, VIEWER, ViewerUnavailableError

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
