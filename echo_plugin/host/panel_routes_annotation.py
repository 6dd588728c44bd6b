# SPDX-License-Identifier: Apache-2.0
"""The annotation of a cine, read and written by the panel as its canonical JSON.

A write names the revision that was changed. If somebody saved meanwhile, nothing is stored, and the answer (409) holds
what they saved, so that the panel can show both.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Body
from fastapi.responses import JSONResponse

from echo_plugin.annotations import Annotation
from echo_plugin.errors import AnnotationConflictError, AnnotationError
from echo_plugin.host.request_parts import echo_app
from echo_plugin.host.submission import readable_annotation, store_submission
from echo_plugin.io.annotation_file import annotation_to_json

router = APIRouter(prefix="/annotations")


@router.get("/{image_id}", summary="The annotation of a cine")
def annotation(image_id: str) -> dict[str, Any]:
    """Return the annotation; one of revision 0 that says nothing where there is none."""
    return _current(echo_app().datastore().images.resolve(image_id))


@router.put("/{image_id}", summary="Submit an annotation")
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
