# SPDX-License-Identifier: Apache-2.0
"""The routes that 3D Slicer's MONAI Label module asks for, with MONAI Label's paths, parameters and answers.

/datastore: images and labels in and out; /info, /infer, /activelearning, /model: what does something; /train and
/batch: work in processes of its own.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Body, File, Form, HTTPException, Query, Request, UploadFile
from fastapi.background import BackgroundTasks
from fastapi.responses import FileResponse
from monailabel.endpoints.infer import send_response
from monailabel.interfaces.tasks.batch_infer import BatchInferImageType
from monailabel.utils.async_tasks.task import AsyncTask

from echo_plugin.errors import ModelNotFoundError
from echo_plugin.host.folders import file_digest
from echo_plugin.host.infer_tasks import require_batch
from echo_plugin.host.jobs import last_job, start_job
from echo_plugin.host.middleware import is_loopback
from echo_plugin.host.routes import echo_app, parse_object, require_no_override, run_heavy, store_upload

logger = logging.getLogger(__name__)

router = APIRouter()
FormParams = Annotated[str, Form()]


class Listing(StrEnum):
    """What /datastore/ lists."""

    TRAIN = "train"
    STATS = "stats"
    ALL = "all"


@router.get("/datastore/", summary="Images and labels")
def listing(output: Listing = Listing.STATS) -> Any:
    """Return counts, every image with its labels, or the pairs to train on."""
    datastore = echo_app().datastore()
    return {Listing.STATS: datastore.status, Listing.ALL: datastore.json, Listing.TRAIN: datastore.datalist}[output]()


@router.get("/datastore/image", summary="Download a cine as a volume")
async def download_image(image: str) -> FileResponse:
    """Return the volume that a viewer loads, made at the first request."""
    path = Path(await run_heavy(lambda: echo_app().datastore().get_image_uri(image)))
    return FileResponse(path, media_type="application/octet-stream", filename=path.name)


@router.head("/datastore/image", summary="Whether a cine is there")
async def check_image(image: str, check_sum: str | None = None) -> dict[str, str]:
    """Answer 200 when the cine exists (and its volume has the ``SHA256:`` checksum), else 404."""
    path = Path(await run_heavy(lambda: echo_app().datastore().get_image_uri(image)))
    if check_sum and file_digest(path) != check_sum.removeprefix("SHA256:"):
        raise HTTPException(404, f"Image {image} has another checksum.")
    return {}


@router.put("/datastore/", include_in_schema=False)
@router.put("/datastore/image", summary="Upload a cine")
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


@router.delete("/datastore/", include_in_schema=False)
@router.delete("/datastore/image", summary="Take out a cine")
def remove_image(id: str) -> dict[str, str]:
    """Take a cine out of the study folder; its file and its annotation are kept aside there."""
    echo_app().datastore().remove_image(id)
    return {}


@router.get("/datastore/image/info", summary="Facts of a cine")
def image_info(image: str) -> dict[str, Any]:
    """Return frames, size, frame time and notes."""
    return echo_app().datastore().get_image_info(image)


@router.put("/datastore/image/info", summary="Add notes to a cine")
def update_image_info(image: str, info: FormParams = "{}") -> None:
    """Add notes; those of the same name are replaced."""
    echo_app().datastore().update_image_info(image, parse_object(info, "info"))


@router.put("/datastore/label", summary="Submit a label")
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


@router.get("/datastore/label", summary="Download a label")
async def download_label(label: str, tag: str = "final") -> FileResponse:
    """Return a markups file for 3D Slicer."""
    path = Path(await run_heavy(lambda: echo_app().datastore().get_label_uri(label, tag)))
    return FileResponse(path, media_type="application/json", filename=path.name)


@router.head("/datastore/label", summary="Whether a label is there")
async def check_label(image: str, tag: str = "final") -> dict[str, str]:
    """Answer 200 when there is a label, else 404."""
    await run_heavy(lambda: echo_app().datastore().get_label_uri(image, tag))
    return {}


@router.delete("/datastore/label", summary="Withdraw a label")
def remove_label(id: str, tag: str) -> dict[str, str]:
    """Withdraw a label; its history is kept."""
    echo_app().datastore().remove_label(id, tag)
    return {}


@router.get("/datastore/label/info", summary="Facts of a label")
def label_info(label: str, tag: str = "final") -> dict[str, Any]:
    """Return revision, author, time and a summary."""
    return echo_app().datastore().get_label_info(label, tag)


@router.get("/datastore/dataset", summary="Download the labelled cines")
def download_dataset(
    http: Request, background: BackgroundTasks, limit_cases: Annotated[int | None, Query(ge=1)] = None
) -> FileResponse:
    """Return a ZIP of labelled cines with their annotations, as they are on disk: to this machine only."""
    if not is_loopback(http.client.host if http.client else None):
        raise HTTPException(403, "The archive holds the files as they are, with names of patients; fetch it locally.")
    path = Path(echo_app().datastore().get_dataset_archive(limit_cases))
    background.add_task(path.unlink, missing_ok=True)
    return FileResponse(path, media_type="application/zip", filename="dataset.zip")


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
    facts = echo_app().datastore().get_image_info(sample["id"])
    # 3D Slicer calls the volume by ``PatientID``, and shows that in every view
    shown = f"{sample['reason']}; frames {', '.join(map(str, sample['frames']))}"
    answer = {**facts, **sample, "PatientID": shown}
    if not is_loopback(http.client.host if http.client else None):
        del answer["path"]  # 3D Slicer opens it where it can; elsewhere it only tells how this machine is arranged
    return answer


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
        msg = f"No weights are published for {model[:80]!r}; {', '.join(echo_app().tasks)} may have some."
        raise ModelNotFoundError(msg)
    return str(path)


# Nothing else of a request reaches MONAI Label's subprocess: it would add ``bundle_path`` to the import path, and a
# ``gpus`` that is no text would leave the job SUBMITTED, and every later one refused, for ever.
TRAIN_PARAMS = ("epochs", "seed", "device")
BATCH_PARAMS = ("frames", "max_batch_size", "label_tag", "labels")


@router.get("/train/", summary="State of the training")
def train_status(all: bool = False, check_if_running: bool = False) -> Any:
    """Return the latest training (or all) with its last lines and its progress; 404 when there is none."""
    state, sentence = AsyncTask.status("train", all, check_if_running)
    if state is None and not check_if_running and (last := _last_training()) is not None:
        return [last] if all else last
    if state is None:
        raise HTTPException(404, sentence)
    return [_with_progress(job) for job in state] if all else _with_progress(state)


def _with_progress(job: dict[str, Any]) -> dict[str, Any]:
    trainer = echo_app().trainers.get(job["request"].get("model"))
    progress = trainer.stats() if trainer else {}
    return {**job, "details": list(job.get("details", [])), "progress": progress}


def _last_training() -> dict[str, Any] | None:
    """Return the latest training that an earlier server ran here; None: there was none."""
    ran = {name: facts for name, trainer in echo_app().trainers.items() if "started_at" in (facts := trainer.stats())}
    if not ran:
        return None
    name = max(ran, key=lambda name: ran[name]["started_at"])
    return last_job(name, ran[name])


@router.post("/train/{model}", summary="Start a training")
def train(model: str, params: Params = None, enqueue: bool = False) -> Any:
    """Start training in a process of its own; refused in one sentence when it cannot succeed."""
    app = echo_app()
    trainer = app.trainers.get(model)
    if trainer is None:
        msg = f"Trainer {model[:80]!r} is unknown; {', '.join(app.trainers)} are offered."
        raise ModelNotFoundError(msg)
    request = _chosen(require_no_override(params or {}, "model"), TRAIN_PARAMS)
    trainer.require_trainable(app.datastore(), request)
    return start_job(
        "train", {"model": model, **request}, enqueue=enqueue, before=None if enqueue else trainer.submitted
    )


@router.delete("/train/", summary="Stop the training")
def stop_training() -> Any:
    """Stop the training that runs; the published model stays as it is."""
    job = _stop("train")
    trainer = echo_app().trainers.get(job["request"].get("model"))
    if trainer is not None:
        trainer.stopped()
    return job


@router.get("/batch/infer", summary="State of the batch inference")
def batch_status(all: bool = False, check_if_running: bool = False) -> Any:
    """Return the latest batch inference (or all); 404 when there is none."""
    state, sentence = AsyncTask.status("batch_infer", all, check_if_running)
    if state is None:
        raise HTTPException(404, sentence)
    return state


@router.post("/batch/infer/{model}", summary="Predict many cines")
def batch_infer(
    model: str,
    images: BatchInferImageType = BatchInferImageType.IMAGES_ALL,
    params: Params = None,
    run_sync: bool = False,
) -> Any:
    """Predict all, labelled or unlabelled cines in a process of its own; predictions are kept as label ``original``."""
    app = echo_app()
    if model not in app.tasks:
        msg = f"Model {model[:80]!r} is unknown; {', '.join(app.tasks)} are offered."
        raise ModelNotFoundError(msg)
    chosen = _chosen(require_no_override(params or {}, "model", "images", "image"), BATCH_PARAMS)
    request = {"model": model, "images": images.value, **chosen}
    require_batch(request, app.datastore())
    return app.batch_infer(request) if run_sync else start_job("batch_infer", request)


@router.delete("/batch/infer", summary="Stop the batch inference")
def stop_batch() -> Any:
    """Stop the batch inference that runs; what is predicted stays."""
    return _stop("batch_infer")


def _chosen(params: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: params[name] for name in names if name in params}


def _stop(method: str) -> dict[str, Any]:
    job = AsyncTask.stop(method)
    if job is None:
        raise HTTPException(404, f"No {method} job is running.")
    # 3D Slicer shows the last of the lines, and fails if there is none
    return {**job, "details": [*job.get("details", []), "Stopped on request."]}
