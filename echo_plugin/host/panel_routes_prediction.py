# SPDX-License-Identifier: Apache-2.0
"""What the models say of a cine, for the panel: boxes, view and defect in one answer."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import APIRouter

from echo_plugin.errors import EchoError, ModelNotFoundError, UnknownImageError, UnreadableCineError
from echo_plugin.host.request_parts import echo_app, run_heavy
from echo_plugin.models.checkpoint import DEFECT_EMBEDDER, SEPTAL_DETECTOR, VIEW_CLASSIFIER

logger = logging.getLogger(__name__)

router = APIRouter(prefix="/predictions")

MODELS_OF_TASK = {
    "view": {VIEW_CLASSIFIER},
    "boxes": {SEPTAL_DETECTOR},
    "defect": {SEPTAL_DETECTOR, DEFECT_EMBEDDER},
}


@router.post("/{image_id}", summary="Predict a cine")
async def predict(image_id: str) -> dict[str, Any]:
    """Return boxes of all frames, view, and defect with its evidence: as much as there are models for."""
    return await run_heavy(lambda: _predict(image_id))


def _predict(image_id: str) -> dict[str, Any]:
    app = echo_app()
    published = set(app.pipeline.cards())
    tasks = [task for task, models in MODELS_OF_TASK.items() if models <= published]
    if not tasks:
        msg = f"No model is published in {app.models_dir}; train the septal detector, then predict."
        raise ModelNotFoundError(msg)
    cine = app.datastore().images.read(image_id)
    try:
        prediction = app.pipeline.predict(cine, tasks=tasks)
    except (EchoError, ValueError, IndexError):
        raise  # these name the cine already
    except Exception as exc:
        msg = f"Cine {cine.image_id} could not be predicted ({type(exc).__name__}); the server's log says more."
        logger.exception(msg)
        raise UnreadableCineError(msg) from exc
    answer = prediction.to_json(cine, "")
    del answer["path"]  # folders are often named after patients
    for case in answer["nearest"]:
        case["study_instance_uid"] = _study_of(case["image_id"])
    return answer


def _study_of(image_id: str) -> str | None:
    """Return the study in which a past case can be opened; None: it is not in this folder."""
    try:
        return echo_app().datastore().images.entry(image_id).study_instance_uid
    except UnknownImageError:
        return None
