# SPDX-License-Identifier: Apache-2.0
"""What the panel in OHIF asks for: what is offered, a study's cines, the next cine, the training.

A cine is named by its SOP Instance UID, a frame by its 0-based index. Predictions and annotations are in the modules
beside this one; starting and stopping a training is ``/train/``, as for every other client.
"""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Body, HTTPException

from echo_plugin.anatomy import DETECTED_SEPTA, PAEDIATRIC, Defect
from echo_plugin.errors import UnknownImageError, UnreadableCineError
from echo_plugin.host.doubtful_labels import doubtful_labels
from echo_plugin.host.job_routes import train_status
from echo_plugin.host.panel_routes_annotation import router as annotation_router
from echo_plugin.host.panel_routes_picture import router as picture_router
from echo_plugin.host.panel_routes_prediction import router as prediction_router
from echo_plugin.host.request_parts import echo_app, run_heavy
from echo_plugin.host.submission import readable_annotation
from echo_plugin.io.study_folder import CineEntry

router = APIRouter(prefix="/echo", tags=["panel"])
for part in (annotation_router, picture_router, prediction_router):
    router.include_router(part)


@router.get("/about", summary="What the panel can offer")
def about() -> dict[str, Any]:
    """Return the published models with what they learned from, the words of an annotation, strategies, trainers."""
    app = echo_app()
    return {
        "models": {
            name: {
                "version": card.version,
                "trained_on": card.trained_on,
                "intended_use": card.intended_use,
                "limits": card.limits,
            }
            for name, card in app.pipeline.cards().items()
        },
        "septa": [septum.value for septum in DETECTED_SEPTA],
        "views": [view.value for view in PAEDIATRIC],
        "defects": [defect.value for defect in Defect],
        "strategies": {name: strategy.info()["description"] for name, strategy in app._strategies.items()},
        "trainers": {name: trainer.info()["description"] for name, trainer in app._trainers.items()},
    }


@router.get("/cines", summary="The cines of a study")
def cines(study: str) -> list[dict[str, Any]]:
    """Return the readable cines of a study, in the order of the folder, and how far their annotation is."""
    datastore = echo_app().datastore()
    entries = [datastore.studies.entry(image_id) for image_id in datastore.list_images()]
    return [_facts(entry) for entry in entries if entry.study_instance_uid == study]


@router.get("/cines/{image_id}", summary="One cine")
def cine(image_id: str) -> dict[str, Any]:
    """Return where a cine is found in DICOMweb and how far its annotation is."""
    return _facts(echo_app().datastore().images.entry(image_id))


def _facts(entry: CineEntry) -> dict[str, Any]:
    annotation = readable_annotation(echo_app().datastore().studies, entry.image_id)
    return {
        "image_id": entry.image_id,
        "study_instance_uid": entry.study_instance_uid,
        "series_instance_uid": entry.series_instance_uid,
        "frames": entry.frames,
        "height": entry.height,
        "width": entry.width,
        "frame_time_ms": entry.frame_time_ms,
        "revision": annotation.revision if annotation else 0,
        "author": annotation.author if annotation else None,
        "annotated_frames": list(annotation.annotated_frames) if annotation else [],
    }


@router.post("/next", summary="Choose the next cine")
async def next_cine(
    strategy: Annotated[str | None, Body()] = None, client_id: Annotated[str | None, Body()] = None
) -> dict[str, Any]:
    """Return a cine with the reason for it and the frames worth drawing; empty when every cine has a label.

    Where cines wait but are all with other annotators, or no label is doubtful, there is a ``reason`` and no
    ``image_id``. Without a ``strategy`` the first of those offered is taken. Unlike ``/activelearning`` it makes no
    volume, which only 3D Slicer needs.
    """
    request = {"strategy": strategy or next(iter(echo_app()._strategies)), "client_id": client_id}
    return await run_heavy(lambda: _choose(request))


def _choose(request: dict[str, Any]) -> dict[str, Any]:
    app, name = echo_app(), request["strategy"]
    if name not in app._strategies:
        msg = f"Strategy {name[:80]!r} is unknown; {', '.join(app._strategies)} are offered."
        raise UnknownImageError(msg)
    images = app.datastore().images
    while (chosen := app._strategies[name](request, app.datastore())) is not None:
        if "id" not in chosen:
            return dict(chosen)
        image_id = chosen["id"]
        try:
            images.read(image_id).read_frames([0])
        except UnreadableCineError as exc:
            images.set_aside(image_id, str(exc))
            continue
        shown = {"ts": int(time.time()), "client_id": request.get("client_id")}
        images.add_notes(image_id, {"strategy": {name: shown}})
        frames = chosen.get("frames") or []
        return {**_facts(images.entry(image_id)), "strategy": name, "reason": chosen.get("reason"), "show": frames}
    return {}


@router.get("/suspicious", summary="Labels that look like mistakes")
def suspicious(limit: int = 10) -> list[dict[str, Any]]:
    """Return the cines whose label and detector disagree most, the worst first, with the doubtful frames.

    A label that was confirmed (submitted once more as it was) is not among them.
    """
    app = echo_app()
    with app.waiting.pool.reading() as pool:
        worst = doubtful_labels(pool, app.waiting)[: max(limit, 0)]
    return [
        {
            **_facts(app.datastore().images.entry(judgement.image_id)),
            "quality": round(judgement.quality, 3),
            "reason": judgement.words,
            "show": sorted(judgement.frames),
        }
        for judgement in worst
    ]


@router.get("/training", summary="How far the training is")
def training() -> dict[str, Any]:
    """Return the latest training of this server with its progress; empty before the first."""
    try:
        job: dict[str, Any] = train_status()
    except HTTPException:
        return {}
    return {"model": job["request"].get("model"), "status": job["status"], "progress": job["progress"]}
