# SPDX-License-Identifier: Apache-2.0
"""What an annotator submits becomes the next revision of the cine's annotation, or one sentence on why not."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

from echo_plugin.annotations import Annotation
from echo_plugin.cine import Cine
from echo_plugin.errors import AnnotationConflictError, AnnotationError
from echo_plugin.io.annotation_store import annotation_from_json
from echo_plugin.io.markups import annotated_frames, boxes_from_markups
from echo_plugin.io.study_folder import StudyFolder
from echo_plugin.io.volume import rendition_geometry

_NOT_IN_A_NAME = re.compile(r"[^\w .@+-]")


def annotator(request: Mapping[str, Any]) -> str | None:
    """Return the name by which a client calls its annotator, fit to be stored; None: it says none."""
    name = str(request.get("user") or request.get("client_id") or "")
    return _NOT_IN_A_NAME.sub("", name)[:64].strip() or None


logger = logging.getLogger(__name__)

SAVE_ATTEMPTS = 10
LARGEST_LABEL_BYTES = 64 << 20
"""Several thousand frames with two boxes each; as Python objects it takes twenty times as much memory."""


def store_submission(studies: StudyFolder, image_id: str, content: bytes, info: Mapping[str, Any]) -> Annotation:
    """Store a markups file or an annotation JSON and return the annotation as saved.

    Parameters
    ----------
    studies
        Where it is stored.
    image_id
        The cine it is about.
    content
        The file as it came; kept verbatim in the history.
    info
        ``user`` or ``client_id``: the author. ``annotated_frames``: 0-based frames that were looked at.
        ``unusable``: whether nobody should learn from the cine; not said: as before.
        ``revision``: the one the change was based on; a newer one is then a conflict. 3D Slicer names none, and its
        submission follows whatever is there.

    Raises
    ------
    AnnotationError
        If the content cannot be a label; nothing has been stored.
    AnnotationConflictError
        If ``revision`` is given and not the stored one.
    """
    if len(content) > LARGEST_LABEL_BYTES:
        msg = f"Label of {image_id} has {len(content) >> 20} MiB; up to {LARGEST_LABEL_BYTES >> 20} are accepted."
        raise AnnotationError(msg)
    return save_revised(
        studies,
        image_id,
        lambda current: _parse(content, current, studies.read_cine(image_id), info),
        author=annotator(info),
        based_on=_revision(image_id, info.get("revision")),
        upload=content,
    )


def save_revised(
    studies: StudyFolder,
    image_id: str,
    revise: Callable[[Annotation], Annotation],
    *,
    author: str | None,
    based_on: int | None = None,
    upload: bytes | None = None,
    upload_suffix: str = ".json",
) -> Annotation:
    """Store what ``revise`` makes of the annotation that is there, and return it as saved.

    ``based_on`` : the revision that somebody looked at; None: whatever is there, also if others save meanwhile.

    Raises
    ------
    AnnotationConflictError
        If ``based_on`` is given and not the stored one.
    """
    for _ in range(SAVE_ATTEMPTS):
        current = readable_annotation(studies, image_id) or Annotation(image_id)
        base, revised = current.revision if based_on is None else based_on, revise(current)
        try:
            saved = studies.save_annotation(
                revised, author=author, based_on_revision=base, upload=upload, upload_suffix=upload_suffix
            )
        except AnnotationConflictError:
            if based_on is not None:
                raise
            continue  # another annotator saved in between: that revision is revised
        logger.info("Label of %s: revision %d with %d boxes", image_id, saved.revision, len(saved.boxes))
        return saved
    msg = f"Label of {image_id}: others saved {SAVE_ATTEMPTS} revisions meanwhile; submit again."
    raise AnnotationConflictError(msg)


def readable_annotation(studies: StudyFolder, image_id: str) -> Annotation | None:
    """Return the annotation of a cine; one that cannot be read counts as none, and is kept in history when replaced."""
    try:
        return studies.annotation(image_id)
    except AnnotationError as exc:
        logger.warning("Counted as no label: %s", exc)
        return None


def _parse(content: bytes, current: Annotation, cine: Cine, info: Mapping[str, Any]) -> Annotation:
    image_id = current.image_id
    try:
        text = content.decode("utf-8-sig")
        is_markups = "markups" in json.loads(text)
    except (ValueError, TypeError, RecursionError) as exc:
        msg = f"Label of {image_id} is no JSON object; a Slicer markups file or an annotation is accepted."
        raise AnnotationError(msg) from exc
    if not is_markups:
        annotation = annotation_from_json(text, source=f"Label of {image_id}")
        if annotation.image_id != image_id:
            msg = f"Label of {image_id} is an annotation of {annotation.image_id}; submit it for that image."
            raise AnnotationError(msg)
        return annotation
    boxes = boxes_from_markups(text, rendition_geometry(cine))
    asked = _asked_frames(image_id, info.get("annotated_frames"))
    frames = annotated_frames(boxes, cine.frame_count, asked)
    if asked is None:  # 3D Slicer cannot name the frames that showed no septum: those of the label before stay
        frames = tuple(sorted({*frames, *_empty_frames(current)}))
    unusable = info.get("unusable", current.is_unusable)
    return dataclasses.replace(current, boxes=boxes, annotated_frames=frames, is_unusable=unusable)


def _empty_frames(annotation: Annotation) -> set[int]:
    """Return the frames without a box beside those with one.

    A label without any box says "no septum here" as a whole; boxes drawn afterwards take that back.
    """
    boxed = {box.frame_index for box in annotation.boxes}
    return set(annotation.annotated_frames) - boxed if boxed else set()


def _asked_frames(image_id: str, frames: object) -> list[int] | None:
    if frames is None:
        return None
    if isinstance(frames, list) and all(isinstance(f, int) and not isinstance(f, bool) for f in frames):
        return frames
    msg = f"Label of {image_id}: annotated_frames is {str(frames)[:40]!r}; a list of 0-based frames is accepted."
    raise AnnotationError(msg)


def _revision(image_id: str, revision: object) -> int | None:
    if revision is None or (isinstance(revision, int) and not isinstance(revision, bool)):
        return revision
    msg = f"Label of {image_id}: revision is {str(revision)[:40]!r}; the number of the one it is based on is accepted."
    raise AnnotationError(msg)
