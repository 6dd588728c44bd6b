# SPDX-License-Identifier: Apache-2.0
"""The routes of the evidence: two cines compared, the cines of a patient joined, what a defect was read from."""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter, Response
from pydantic import BaseModel

from echo_plugin.defects.explain import Explanation
from echo_plugin.host.request_parts import echo_app, run_heavy

router = APIRouter(prefix="/echo")

EXPLANATION = "X-Explanation"
"""The header beside a picture; pages of other origins are allowed to read it."""


class TwoCines(BaseModel):
    """The image ids of two cines of the study folder."""

    first: str
    second: str


@router.post("/verify", summary="Whether two cines show the same defect type")
async def verify(cines: TwoCines) -> dict[str, Any]:
    """Return similarity, threshold, verdict and the error rates at the threshold."""
    return await run_heavy(lambda: echo_app().compare(cines.first, cines.second).to_json())


@router.get("/patient", summary="Which defect the cines of one patient show together")
async def patient(image: str) -> dict[str, Any]:
    """Return the defect of the patient of a cine from all its cines, and whether they agree; null: no answer."""
    answer = await run_heavy(lambda: echo_app().join_patient(image))
    return {"patient_defect": None if answer is None else answer.to_json()}


@router.get("/explain", summary="What of a frame speaks for the defect", response_class=Response)
async def explain(image: str, frame: int | None = None) -> Response:
    """Return a PNG: the frame (0-based; none: the one that speaks loudest) with the heat of Grad-CAM in its crop.

    The header ``X-Explanation`` says, as JSON, which frame it is and the answer that it explains, which is made anew.
    """
    return await run_heavy(lambda: _to_response(echo_app().explain(image, frame)))


def _to_response(found: Explanation) -> Response:
    answer = {"defect": found.defect.defect.value, "probability": found.defect.probability}
    about = json.dumps({"frame_index": found.frame_index} | answer)
    return Response(found.to_png(), media_type="image/png", headers={"Cache-Control": "no-store", EXPLANATION: about})
