# SPDX-License-Identifier: Apache-2.0
"""The routes round the choice of the next cine: /echo/scores, /echo/lease, /echo/unusable."""

from __future__ import annotations

import dataclasses
from typing import Any

from fastapi import APIRouter

from echo_plugin.annotations import Annotation
from echo_plugin.host.request_parts import echo_app
from echo_plugin.host.request_text import annotator
from echo_plugin.host.submission import readable_annotation

router = APIRouter(prefix="/echo")


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
    current = readable_annotation(datastore.studies, image_id) or Annotation(image_id)
    saved = datastore.studies.save_annotation(
        dataclasses.replace(current, is_unusable=unusable),
        author=annotator({"client_id": client_id}),
        based_on_revision=current.revision,
    )
    echo_app().waiting.submitted(image_id)
    return {"image": image_id, "unusable": saved.is_unusable, "revision": saved.revision, "author": saved.author}
