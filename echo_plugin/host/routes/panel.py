# SPDX-License-Identifier: Apache-2.0
"""The routes of /echo: what our panel in OHIF asks for.

A cine is named by its SOP Instance UID, a frame by its 0-based index. An annotation is read and written as its
canonical JSON: a write names the revision that was changed, and if somebody saved meanwhile, nothing is stored and the
answer (409) holds what they saved. Starting and stopping a training is ``/train/``, as for every other client.
"""

from __future__ import annotations

import dataclasses
import io
import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, HTTPException, Query, Response
from fastapi.responses import JSONResponse
from PIL import Image
from pydantic import BaseModel

from echo_plugin.anatomy import DETECTED_SEPTA, PAEDIATRIC, Defect
from echo_plugin.annotations import Annotation
from echo_plugin.errors import AnnotationConflictError, AnnotationError, ModelNotFoundError, UnknownImageError
from echo_plugin.evidence.explain import Explanation
from echo_plugin.host.infer_tasks import predict_cine
from echo_plugin.host.next_cine import DEFAULT_STRATEGY, choose_cine, doubtful_labels
from echo_plugin.host.routes import echo_app, run_heavy
from echo_plugin.host.routes.slicer import train_status
from echo_plugin.host.submission import annotator, readable_annotation, save_revised, store_submission
from echo_plugin.io.annotation_store import annotation_to_json
from echo_plugin.io.sector import tissue_region
from echo_plugin.io.study_folder import CineEntry
from echo_plugin.models.checkpoint import DEFECT_EMBEDDER, SEPTAL_DETECTOR, VIEW_CLASSIFIER

router = APIRouter(prefix="/echo", tags=["panel"])

MODELS_OF_TASK = {
    "view": {VIEW_CLASSIFIER},
    "boxes": {SEPTAL_DETECTOR},
    "defect": {SEPTAL_DETECTOR, DEFECT_EMBEDDER},
}
SIDE_PX = 160
EXPLANATION = "X-Explanation"
"""The header beside a picture; pages of other origins are allowed to read it."""
What = Annotated[Literal["annotation", "prediction"], Query(description="What the report says.")]


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
        "strategies": {name: strategy.info()["description"] for name, strategy in app.strategies.items()},
        "trainers": {name: trainer.info()["description"] for name, trainer in app.trainers.items()},
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


@router.get("/annotations/{image_id}", summary="The annotation of a cine")
def annotation(image_id: str) -> dict[str, Any]:
    """Return the annotation; one of revision 0 that says nothing where there is none."""
    return _current(echo_app().datastore().images.resolve(image_id))


@router.put("/annotations/{image_id}", summary="Submit an annotation")
def submit(image_id: str, document: Annotated[dict[str, Any], Body()]) -> Any:
    """Store an annotation as the next revision and return it as stored.

    ``document.revision`` is the one that was changed, ``document.author`` who did it.
    """
    datastore = echo_app().datastore()
    image_id = datastore.images.resolve(image_id)
    for field in ("revision", "author"):
        if document.get(field) is None:
            msg = f"Annotation of {image_id} has no {field}; the revision it is based on and its author are needed."
            raise AnnotationError(msg)
    info = {"user": document["author"], "revision": document["revision"]}
    content = json.dumps({**document, "author": str(document["author"])}).encode()
    try:
        saved = store_submission(datastore.studies, image_id, content, info)
    except AnnotationConflictError as exc:
        return JSONResponse({"detail": str(exc), "current": _current(image_id)}, status_code=409)
    echo_app().on_save_label(image_id, image_id)
    return _document(saved)


def _current(image_id: str) -> dict[str, Any]:
    return _document(readable_annotation(echo_app().datastore().studies, image_id) or Annotation(image_id))


def _document(saved: Annotation) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(annotation_to_json(saved))
    return document


@router.post("/predictions/{image_id}", summary="Predict a cine")
async def predict(image_id: str) -> dict[str, Any]:
    """Return boxes of all frames, view, and defect with its evidence: as much as there are models for."""
    return await run_heavy(lambda: _predict(image_id))


def _predict(image_id: str) -> dict[str, Any]:
    app = echo_app()
    tasks = _tasks_with_models()
    if not tasks:
        msg = f"No model is published in {app.models_dir}; train the septal detector, then predict."
        raise ModelNotFoundError(msg)
    cine = app.datastore().images.read(image_id)
    prediction = predict_cine(app.pipeline, cine, tasks)
    answer = prediction.to_json(cine, "")
    del answer["path"]  # folders are often named after patients
    for case in answer["nearest"]:
        case["study_instance_uid"] = _study_of(case["image_id"])
    return answer


def _tasks_with_models() -> list[str]:
    published = set(echo_app().pipeline.cards())
    return [task for task, models in MODELS_OF_TASK.items() if models <= published]


def _study_of(image_id: str) -> str | None:
    """Return the study in which a past case can be opened; None: it is not in this folder."""
    try:
        return echo_app().datastore().images.entry(image_id).study_instance_uid
    except UnknownImageError:
        return None


@router.get("/pictures/{image_id}", summary="A small picture of a frame")
async def picture(
    image_id: str,
    frame_index: int | None = None,
    box: str | None = Query(None, description="x1,y1,x2,y2 in px of the file; what lies outside is cut off"),
) -> Response:
    """Return a PNG of the tissue region of a frame (None: the middle one), or of a box in it."""
    content = await run_heavy(lambda: _png(image_id, frame_index, box))
    return Response(content, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})


def _png(image_id: str, frame_index: int | None, box: str | None) -> bytes:
    cine = echo_app().datastore().images.read(image_id)
    frame = cine.read_frames([cine.frame_count // 2 if frame_index is None else frame_index])[0]
    region = tissue_region(cine)
    image = Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame)
    whole = (region.x1, region.y1, region.x2, region.y2)
    image = image.crop(whole if box is None else _within(_parse_box(box), image.width, image.height))
    image.thumbnail((SIDE_PX, SIDE_PX))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def _within(box: tuple[float, float, float, float], width_px: int, height_px: int) -> tuple[int, int, int, int]:
    """Return the part of a box that lies in the picture, so that none is larger than the file's own."""
    x1, x2 = (min(max(round(x), 0), width_px) for x in box[::2])
    y1, y2 = (min(max(round(y), 0), height_px) for y in box[1::2])
    if x1 >= x2 or y1 >= y2:
        msg = f"Parameter 'box' lies outside of the picture; one in its {width_px} x {height_px} px is accepted."
        raise ValueError(msg)
    return x1, y1, x2, y2


def _parse_box(text: str) -> tuple[float, float, float, float]:
    try:
        x1, y1, x2, y2 = (float(part) for part in text.split(","))
        is_box = max(abs(end) for end in (x1, y1, x2, y2)) < 1e5 and x2 - x1 >= 1 and y2 - y1 >= 1
    except ValueError:
        is_box = False
    if not is_box:
        msg = f"Parameter 'box' is {text[:40]!r}; four numbers x1,y1,x2,y2 of at least one pixel are accepted."
        raise ValueError(msg)
    return x1, y1, x2, y2


@router.post("/next", summary="Choose the next cine")
async def next_cine(
    strategy: Annotated[str | None, Body()] = None, client_id: Annotated[str | None, Body()] = None
) -> dict[str, Any]:
    """Return a cine with the reason for it and the frames worth drawing; empty when every cine has a label.

    Where cines wait but are all with other annotators, or no label is doubtful, there is a ``reason`` and no
    ``image_id``. Without a ``strategy`` the first of those offered is taken. Unlike ``/activelearning`` it makes no
    volume, which only 3D Slicer needs.
    """
    app, images = echo_app(), echo_app().datastore().images
    request = {"strategy": strategy or DEFAULT_STRATEGY, "client_id": client_id}

    def choose() -> dict[str, Any]:
        def open_cine(image_id: str) -> object:
            return images.read(image_id).read_frames([0])

        chosen = choose_cine(app.strategies, request, app.datastore(), open_cine)
        if "id" not in chosen:
            return chosen
        entry = images.entry(chosen["id"])
        why = {"strategy": request["strategy"], "reason": chosen["reason"], "show": chosen["frames"]}
        return {**_facts(entry), **why}

    return await run_heavy(choose)


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


@router.get("/scores", summary="How far the scoring of cines is")
def scores() -> dict[str, Any]:
    """Return ``state``, cines ``done`` of ``total``, ``eta_s``, whose scores ``choices_by`` and ``message``, if any."""
    return echo_app().score_keeper.progress()


@router.put("/lease", summary="Take a cine that was chosen from a list")
def take(image: str, client_id: str | None = None) -> dict[str, Any]:
    """Return whether the cine ``is_yours`` now; it is shown to nobody else for a while. Else ``reason`` says why."""
    app = echo_app()
    return app.waiting.take(app.datastore().images.resolve(image), annotator({"client_id": client_id}))


@router.put("/unusable", summary="Mark a cine as of no use, or take that back")
def mark_unusable(image: str, unusable: bool = True, client_id: str | None = None) -> dict[str, Any]:
    """Store a revision that says so: it is not shown to annotators and nothing learns from it. Its labels stay."""
    datastore = echo_app().datastore()
    image_id = datastore.images.resolve(image)
    saved = save_revised(
        datastore.studies,
        image_id,
        lambda current: dataclasses.replace(current, is_unusable=unusable),
        author=annotator({"client_id": client_id}),
    )
    echo_app().waiting.submitted(image_id)
    return {"image": image_id, "unusable": saved.is_unusable, "revision": saved.revision, "author": saved.author}


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


@router.post("/reports", summary="Store structured reports")
async def store_reports(image: str, what: What = "annotation") -> dict[str, list[str]]:
    """Store what a person drew on a cine, or what the models say of it now, as DICOM SR; return the SOP UIDs."""
    app = echo_app()

    def report() -> list[str]:
        images = app.datastore().images
        image_id = images.resolve(image)
        if what == "annotation":
            return app.reports.of_annotation(image_id)
        prediction = app.pipeline.predict(images.read(image_id), tasks=_tasks_with_models())
        return app.reports.of_prediction(image_id, prediction)

    return {"stored": await run_heavy(report)}
