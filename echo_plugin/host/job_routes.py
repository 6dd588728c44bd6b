# SPDX-License-Identifier: Apache-2.0
"""The routes of work in processes of their own: /train and /batch."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, HTTPException
from monailabel.interfaces.tasks.batch_infer import BatchInferImageType
from monailabel.utils.async_tasks.task import AsyncTask

from echo_plugin.errors import ModelNotFoundError
from echo_plugin.host.jobs import start_job
from echo_plugin.host.request_parts import echo_app, require_no_override
from echo_plugin.host.tasks.batch import require_batch
from echo_plugin.host.tasks.train import CineTrainer
from echo_plugin.host.training_job import last_job

router = APIRouter()
Params = Annotated[dict[str, Any] | None, Body()]

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
    trainer = echo_app()._trainers.get(job["request"].get("model"))
    progress = trainer.stats() if trainer else {}
    return {**job, "details": list(job.get("details", [])), "progress": progress}


def _last_training() -> dict[str, Any] | None:
    """Return the latest training that an earlier server ran here; None: there was none."""
    ran = {name: facts for name, trainer in echo_app()._trainers.items() if "started_at" in (facts := trainer.stats())}
    if not ran:
        return None
    name = max(ran, key=lambda name: ran[name]["started_at"])
    return last_job(name, ran[name])


@router.post("/train/{model}", summary="Start a training")
def train(model: str, params: Params = None, enqueue: bool = False) -> Any:
    """Start training in a process of its own; refused in one sentence when it cannot succeed."""
    app = echo_app()
    trainer = app._trainers.get(model)
    if not isinstance(trainer, CineTrainer):
        msg = f"Trainer {model[:80]!r} is unknown; {', '.join(app._trainers)} are offered."
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
    trainer = echo_app()._trainers.get(job["request"].get("model"))
    if isinstance(trainer, CineTrainer):
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
    if model not in app._infers:
        msg = f"Model {model[:80]!r} is unknown; {', '.join(app._infers)} are offered."
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
