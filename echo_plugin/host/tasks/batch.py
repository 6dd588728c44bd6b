# SPDX-License-Identifier: Apache-2.0
"""Batch inference: keep a prediction of every cine, with or without a GPU; one bad cine does not stop the others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from monailabel.interfaces.tasks.batch_infer import BatchInferTask

from echo_plugin.errors import EchoError
from echo_plugin.host.datastore import ORIGINAL, EchoDatastore
from echo_plugin.host.infer_task import parse_asked_frames

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
