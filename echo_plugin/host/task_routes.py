# SPDX-License-Identifier: Apache-2.0
"""The routes that do something: /info, /infer, /activelearning, /model."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Body, Form, HTTPException, Request, UploadFile
from fastapi.background import BackgroundTasks
from fastapi.responses import FileResponse
from monailabel.endpoints.infer import send_response

from echo_plugin.errors import ModelNotFoundError
from echo_plugin.host.gatekeeper import is_loopback
from echo_plugin.host.request_parts import echo_app, parse_object, require_no_override, run_heavy, store_upload

router = APIRouter()
Params = Annotated[dict[str, Any] | None, Body()]


class Output(StrEnum):
    """What /infer answers with; nothing asked: file and JSON as multipart, as 3D Slicer expects."""

    IMAGE = "image"
    JSON = "json"
    ALL = "all"


@router.get("/info/", summary="What the server offers")
def info() -> dict[str, Any]:
    """Return models, trainers, strategies, progress and the state of the study folder."""
    return echo_app().info()


@router.post("/infer/{model}", summary="Predict one cine")
async def infer(
    background: BackgroundTasks,
    model: str,
    image: str = "",
    session_id: str = "",
    params: Annotated[str, Form()] = "{}",
    file: UploadFile | None = None,
    output: Output | None = None,
) -> Any:
    """Predict a cine of the study folder (``image``) or, for ``output=json``, one sent along (``file``)."""
    if session_id:
        raise HTTPException(406, "Sessions are not offered; open cines with Next Sample.")
    request = {**require_no_override(parse_object(params), "image", "model"), "model": model, "image": image}
    if file is not None:
        if output is not Output.JSON:
            msg = "An uploaded cine has no rendition to draw on; ask with output=json."
            raise ValueError(msg)
        upload = await run_heavy(lambda: store_upload(file))
        background.add_task(upload.unlink, missing_ok=True)
        request["image"] = upload
    elif not image:
        msg = "Neither an image nor a file was named; image=<id> is accepted."
        raise ValueError(msg)
    try:
        result = await run_heavy(lambda: echo_app().infer(request))
    except BaseException:
        if isinstance(request["image"], Path):  # background tasks run after a good answer only
            request["image"].unlink(missing_ok=True)
        raise
    return send_response(echo_app().datastore(), result, output.value if output else None, background)


@router.post("/activelearning/{strategy}", summary="Choose the next cine")
async def next_sample(http: Request, strategy: str, params: Params = None) -> dict[str, Any]:
    """Return the chosen cine, why it was chosen, its frames worth drawing, and what a viewer needs to load it.

    Without an ``id`` no cine waits; ``reason`` says why, and nothing does when every cine has a label.
    """
    request = {**require_no_override(params or {}, "strategy"), "strategy": strategy}
    sample = await run_heavy(lambda: echo_app().next_sample(request))
    if "id" not in sample:
        return sample
    datastore = echo_app().datastore()
    note = {"strategy": {strategy: {"ts": int(time.time()), "client_id": request.get("client_id")}}}
    await run_heavy(lambda: datastore.update_image_info(sample["id"], note))
    answer = {**datastore.get_image_info(sample["id"]), **sample, "PatientID": _shown_name(sample)}
    if not is_loopback(http.client.host if http.client else None):
        del answer["path"]  # 3D Slicer opens it where it can; elsewhere it only tells how this machine is arranged
    return answer


def _shown_name(sample: dict[str, Any]) -> str:
    """Return the reason with the frames. 3D Slicer calls the volume by ``PatientID``, and shows that in every view."""
    return f"{sample['reason']}; frames {', '.join(map(str, sample['frames']))}"


@router.get("/model/{model}", summary="Download the published weights")
def download_model(model: str) -> FileResponse:
    """Return the safetensors file of a task."""
    return FileResponse(_weights(model), filename=f"{model}.safetensors")


@router.get("/model/info/{model}", summary="Checksum of the published weights")
def model_info(model: str) -> Any:
    """Return checksum and time of publication."""
    _weights(model)
    return echo_app().model_info(model)


def _weights(model: str) -> str:
    path = echo_app().model_file(model)
    if path is None:
        msg = f"No weights are published for {model[:80]!r}; {', '.join(echo_app()._infers)} may have some."
        raise ModelNotFoundError(msg)
    return str(path)
