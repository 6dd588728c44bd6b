# SPDX-License-Identifier: Apache-2.0
"""The ASGI app (``--uvicorn_app echo_plugin.host.server:app``): MONAI Label's API as 3D Slicer's module speaks it.

The routes have MONAI Label's paths, parameters and answers, and run in threads, so that one slow prediction keeps
nobody waiting. Left out, because they hand out or take in files without looking: the DICOM proxy, sessions, model
upload, the whole-slide routes, the bundled OHIF and ``/reload``. Beside them are ``/dicom-web`` and ``/ohif``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse, JSONResponse, Response
from monailabel.config import settings
from monailabel.endpoints.logs import get_logs
from monailabel.interfaces.exception import MONAILabelException
from monailabel.utils.async_tasks.task import AsyncTask

from echo_plugin import __version__
from echo_plugin.errors import (
    AnnotationConflictError,
    EchoError,
    ModelMismatchError,
    ModelNotFoundError,
    TrainingDataError,
    UnknownImageError,
)
from echo_plugin.host.folders import log_file
from echo_plugin.host.jobs import JobRunningError
from echo_plugin.host.middleware import LOOPBACK_ORIGIN, TrustedPagesOnly, UploadLimit
from echo_plugin.host.pacs import PacsError
from echo_plugin.host.routes import archive, dicomweb, echo_app, ohif, panel, slicer

logger = logging.getLogger(__name__)

UPLOAD_LIMIT_MIB = 512
STATUS_OF_ERROR: tuple[tuple[type[Exception], int], ...] = (
    (UnknownImageError, 404),
    (ModelNotFoundError, 404),
    (AnnotationConflictError, 409),
    (TrainingDataError, 409),
    (JobRunningError, 409),
    (ModelMismatchError, 500),
    (PacsError, 502),
    (EchoError, 422),
    (MONAILabelException, 400),
    (ValueError, 400),
    (IndexError, 400),
)
"""The first class that fits decides; each of these carries one sentence for a person."""

WELCOME = """<!doctype html><html lang="en"><title>monailabel-echo</title>
<body style="font-family: sans-serif; max-width: 40em; margin: 2em auto">
<h1>monailabel-echo</h1>
<p>This server is running. In 3D Slicer open the module <b>MONAI Label</b>, enter this page's address as the server,
press the arrow beside it, then <b>Next Sample</b>. Drag the boxes, or draw with <b>Markups &gt; ROI</b> and name the
new control point IAS or IVS; <b>Submit Label</b> stores them.</p>
<p>In a browser: <a href="/ohif/">OHIF</a>.</p>
<p><a href="/info/">What it offers</a>, <a href="/docs">its API</a>. Research only: not for clinical use.</p>
</body></html>"""


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    """Build the app before the first request, and end what it started with it."""
    if settings.MONAI_LABEL_AUTH_ENABLE:
        msg = "MONAI_LABEL_AUTH_ENABLE is set, but this server has no sign-in; unset it and let a proxy sign in."
        raise EchoError(msg)
    instance = echo_app()
    instance.server_mode(True)
    instance.on_init_complete()
    yield
    instance.score_keeper.stop()
    instance.gallery_keeper.stop()
    for method in ("train", "batch_infer"):
        AsyncTask.stop(method)


def answer_error(_request: Request, exc: Exception) -> JSONResponse:
    """Return the sentence of an error with the status that fits it."""
    status = next(status for kind, status in STATUS_OF_ERROR if isinstance(exc, kind))
    return JSONResponse({"detail": str(getattr(exc, "msg", None) or exc)}, status_code=status)


def answer_invalid(_request: Request, exc: Exception) -> JSONResponse:
    """Return one sentence on the first malformed parameter."""
    assert isinstance(exc, RequestValidationError)
    first = exc.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:]) or "body"
    return JSONResponse({"detail": f"Parameter {where!r}: {first['msg']}."}, status_code=422)


def answer_failure(request: Request, exc: Exception) -> JSONResponse:
    """Return that it is the server's fault, without its insides; the log has them."""
    sentence = f"{request.url.path} failed inside the server ({type(exc).__name__}); its log says more."
    return JSONResponse({"detail": sentence}, status_code=500)


def build_app() -> FastAPI:
    """Return the server; what it serves is named by MONAI Label's settings."""
    origins = [str(origin).rstrip("/") for origin in settings.MONAI_LABEL_CORS_ORIGINS]
    limit_mib = int(os.environ.get("MONAILABEL_ECHO_UPLOAD_MIB") or UPLOAD_LIMIT_MIB)
    app = FastAPI(title="monailabel-echo", version=__version__, lifespan=lifespan, redoc_url=None)
    for kind, _ in STATUS_OF_ERROR:
        app.add_exception_handler(kind, answer_error)
    app.add_exception_handler(RequestValidationError, answer_invalid)
    app.add_exception_handler(Exception, answer_failure)
    app.add_middleware(UploadLimit, limit_bytes=limit_mib << 20)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_origin_regex=LOOPBACK_ORIGIN,
        allow_methods=["GET", "HEAD", "POST", "PUT", "DELETE"],
        allow_headers=["Content-Type"],
        expose_headers=[panel.EXPLANATION],
    )
    app.add_middleware(TrustedPagesOnly, origins=origins)  # outermost: added last
    app.include_router(slicer.router)
    app.include_router(panel.router)
    if settings.MONAI_LABEL_APP_CONF.get("pacs"):  # first come, first served: it takes every address below /dicom-web
        app.include_router(archive.router)
    app.include_router(dicomweb.router)
    app.include_router(ohif.router)

    @app.get("/logs/", summary="Last lines of the log")
    def logs(lines: int = 300) -> Response:
        return get_logs(str(log_file(echo_app().datastore().cache)), max(lines, 1), html=False, text=True, refresh=0)

    @app.get("/", include_in_schema=False)
    def welcome() -> Response:
        return HTMLResponse(WELCOME)

    return app


app = build_app()
