# SPDX-License-Identifier: Apache-2.0
"""The routes of /datastore: images and labels in and out."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, HTTPException, Query, Request, UploadFile
from fastapi.background import BackgroundTasks
from fastapi.responses import FileResponse

from echo_plugin.host.gatekeeper import is_loopback
from echo_plugin.host.request_parts import echo_app, parse_object, run_heavy, store_upload

logger = logging.getLogger(__name__)

router = APIRouter(prefix="/datastore")
FormParams = Annotated[str, Form()]


class Listing(StrEnum):
    """What /datastore/ lists."""

    TRAIN = "train"
    STATS = "stats"
    ALL = "all"


@router.get("/", summary="Images and labels")
def listing(output: Listing = Listing.STATS) -> Any:
    """Return counts, every image with its labels, or the pairs to train on."""
    datastore = echo_app().datastore()
    return {Listing.STATS: datastore.status, Listing.ALL: datastore.json, Listing.TRAIN: datastore.datalist}[output]()


@router.get("/image", summary="Download a cine as a volume")
async def download_image(image: str) -> FileResponse:
    """Return the volume that a viewer loads, made at the first request."""
    path = Path(await run_heavy(lambda: echo_app().datastore().get_image_uri(image)))
    return FileResponse(path, media_type="application/octet-stream", filename=path.name)


@router.head("/image", summary="Whether a cine is there")
async def check_image(image: str, check_sum: str | None = None) -> dict[str, str]:
    """Answer 200 when the cine exists (and its volume has the ``SHA256:`` checksum), else 404."""
    path = Path(await run_heavy(lambda: echo_app().datastore().get_image_uri(image)))
    if check_sum and hashlib.sha256(path.read_bytes()).hexdigest() != check_sum.removeprefix("SHA256:"):
        raise HTTPException(404, f"Image {image} has another checksum.")
    return {}


@router.put("/", include_in_schema=False)
@router.put("/image", summary="Upload a cine")
def upload_image(
    file: Annotated[UploadFile, File()],
    image: str | None = None,
    params: FormParams = "{}",
) -> dict[str, str]:
    """Add a cine to the study folder and return its id."""
    name = image or Path(file.filename or "").stem
    with _stored(file) as upload:
        return {"image": echo_app().datastore().add_image(name, str(upload), parse_object(params))}


@contextmanager
def _stored(file: UploadFile) -> Iterator[Path]:
    upload = store_upload(file)
    try:
        yield upload
    finally:
        upload.unlink(missing_ok=True)


@router.delete("/", include_in_schema=False)
@router.delete("/image", summary="Take out a cine")
def remove_image(id: str) -> dict[str, str]:
    """Take a cine out of the study folder; its file and its annotation are kept aside there."""
    echo_app().datastore().remove_image(id)
    return {}


@router.get("/image/info", summary="Facts of a cine")
def image_info(image: str) -> dict[str, Any]:
    """Return frames, size, frame time and notes."""
    return echo_app().datastore().get_image_info(image)


@router.put("/image/info", summary="Add notes to a cine")
def update_image_info(image: str, info: FormParams = "{}") -> None:
    """Add notes; those of the same name are replaced."""
    echo_app().datastore().update_image_info(image, parse_object(info, "info"))


@router.put("/label", summary="Submit a label")
def save_label(
    image: str,
    label: Annotated[UploadFile, File()],
    params: FormParams = "{}",
    tag: str = "final",
) -> dict[str, Any]:
    """Store markups from 3D Slicer, or an annotation JSON, as a new revision; ``params.client_id`` is its author."""
    app = echo_app()
    suffix = "".join(Path(label.filename or "").suffixes[-2:])[-20:]
    with tempfile.TemporaryDirectory() as folder:
        upload = Path(folder) / f"label{suffix}"
        upload.write_bytes(label.file.read())
        label_id = app.datastore().save_label(image, str(upload), tag, parse_object(params))
    app.on_save_label(image, label_id)
    return {"image": image, "label": label_id, **app.datastore().get_label_info(label_id, tag)}


@router.get("/label", summary="Download a label")
async def download_label(label: str, tag: str = "final") -> FileResponse:
    """Return a markups file for 3D Slicer."""
    path = Path(await run_heavy(lambda: echo_app().datastore().get_label_uri(label, tag)))
    return FileResponse(path, media_type="application/json", filename=path.name)


@router.head("/label", summary="Whether a label is there")
async def check_label(image: str, tag: str = "final") -> dict[str, str]:
    """Answer 200 when there is a label, else 404."""
    await run_heavy(lambda: echo_app().datastore().get_label_uri(image, tag))
    return {}


@router.delete("/label", summary="Withdraw a label")
def remove_label(id: str, tag: str) -> dict[str, str]:
    """Withdraw a label; its history is kept."""
    echo_app().datastore().remove_label(id, tag)
    return {}


@router.get("/label/info", summary="Facts of a label")
def label_info(label: str, tag: str = "final") -> dict[str, Any]:
    """Return revision, author, time and a summary."""
    return echo_app().datastore().get_label_info(label, tag)


@router.get("/dataset", summary="Download the labelled cines")
def download_dataset(
    http: Request, background: BackgroundTasks, limit_cases: Annotated[int | None, Query(ge=1)] = None
) -> FileResponse:
    """Return a ZIP of labelled cines with their annotations, as they are on disk: to this machine only."""
    if not is_loopback(http.client.host if http.client else None):
        raise HTTPException(403, "The archive holds the files as they are, with names of patients; fetch it locally.")
    path = Path(echo_app().datastore().get_dataset_archive(limit_cases))
    background.add_task(path.unlink, missing_ok=True)
    return FileResponse(path, media_type="application/zip", filename="dataset.zip")
