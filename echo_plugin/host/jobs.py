# SPDX-License-Identifier: Apache-2.0
"""Work in processes of its own, one of a kind at a time; MONAI Label starts, remembers and kills them.

Batch inference: keep a prediction of every cine, with or without a GPU; one bad cine does not stop the others.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from monailabel.interfaces.tasks.batch_infer import BatchInferTask
from monailabel.utils.async_tasks.task import AsyncTask

from echo_plugin.errors import EchoError
from echo_plugin.host.datastore import ORIGINAL, EchoDatastore
from echo_plugin.host.infer_tasks import parse_asked_frames

STARTING = threading.Lock()
"""Held while a job is started: of two requests at once, one starts it and the other is told so."""


class JobRunningError(EchoError):
    """Work of this kind is being done already; wait for it or stop it."""


def is_at_work(method: str) -> bool:
    """Whether a job of the kind ``train`` or ``batch_infer`` runs or is about to."""
    latest, _ = AsyncTask.status(method)
    return latest is not None and latest["status"] in ("SUBMITTED", "RUNNING")


def start_job(
    method: str, request: dict[str, Any], *, enqueue: bool = False, before: Callable[[], None] | None = None
) -> dict[str, Any]:
    """Start a job, after calling ``before``, and return it as MONAI Label describes it.

    Raises
    ------
    JobRunningError
        If one of its kind is at work, unless it may ``enqueue``.
    """
    with STARTING:
        if is_at_work(method) and not enqueue:
            msg = f"A {method} job is running already; wait for it or stop it."
            raise JobRunningError(msg)
        if before is not None:
            before()
        job, sentence = AsyncTask.run(method, request=request, enqueue=enqueue)
        if job is None:  # one that was stopped is about to end
            raise JobRunningError(sentence)
        return job


logger = logging.getLogger(__name__)


def require_batch(request: Mapping[str, Any], datastore: EchoDatastore) -> list[str]:
    """Return the ids of the images that a batch is about, sorted.

    Raises
    ------
    AnnotationError, ValueError
        If a parameter of the request is malformed.
    """
    parse_asked_frames(request.get("frames"))
    limit = request.get("max_batch_size") or 0
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 0:
        msg = f"Batch inference: max_batch_size is {str(limit)[:40]!r}; 0 (no limit) or a whole number is accepted."
        raise ValueError(msg)
    return sorted(BatchInferTask().get_images(request, datastore))[: limit or None]


class CineBatchInfer(BatchInferTask):
    """Predict many cines, one after the other.

    MONAI Label sends ``device``, ``multi_gpu``, ``gpus`` and ``max_workers`` with every request and divides by the
    number of GPUs. The pipeline was told its device when the server started and holds one model, so these have no say.
    """

    def __call__(
        self, request: Mapping[str, Any], datastore: EchoDatastore, infer: Callable[..., dict[str, Any]]
    ) -> dict[str, Any]:
        """Return per image id a summary of its prediction, or ``{"error": sentence}``.

        MONAI Label writes what is returned into its log as one line; the predictions themselves are in the datastore.
        """
        image_ids = require_batch(request, datastore)
        results: dict[str, Any] = {}
        for number, image_id in enumerate(image_ids, start=1):
            asked = {**request, "image": image_id, "save_label": True, "label_tag": ORIGINAL}
            try:
                result = infer(asked, datastore)
            except (EchoError, ValueError) as exc:
                logger.warning("Cine %d of %d failed: %s", number, len(image_ids), exc)
                results[image_id] = {"error": str(exc)}
                continue
            Path(result["file"]).unlink(missing_ok=True)
            results[image_id] = _summary(result["params"])
            logger.info("Cine %d of %d predicted", number, len(image_ids))
        return results


def _summary(answer: Mapping[str, Any]) -> dict[str, Any]:
    view, defect = answer["view"], answer["defect"]
    return {"boxes": len(answer["boxes"]), "view": view and view["view"], "defect": defect and defect["defect"]}
