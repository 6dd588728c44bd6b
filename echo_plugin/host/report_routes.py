# SPDX-License-Identifier: Apache-2.0
"""The route that stores reports when a person asks for them; ``serve --sr auto`` stores them without being asked."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query

from echo_plugin.host.panel_routes_prediction import MODELS_OF_TASK
from echo_plugin.host.request_parts import echo_app, run_heavy

router = APIRouter(prefix="/echo")
What = Annotated[Literal["annotation", "prediction"], Query(description="What the report says.")]


@router.post("/reports", summary="Store structured reports")
async def store_reports(image: str, what: What = "annotation") -> dict[str, list[str]]:
    """Store what a person drew on a cine, or what the models say of it now, as DICOM SR; return the SOP UIDs."""
    app = echo_app()

    def report() -> list[str]:
        images = app.datastore().images
        image_id = images.resolve(image)
        if what == "annotation":
            return app.reports.of_annotation(image_id)
        published = set(app.pipeline.cards())
        tasks = [task for task, needed in MODELS_OF_TASK.items() if needed <= published]
        return app.reports.of_prediction(image_id, app.pipeline.predict(images.read(image_id), tasks=tasks))

    return {"stored": await run_heavy(report)}
