# SPDX-License-Identifier: Apache-2.0
"""A structured report that a person saved in a viewer becomes the next revision of the annotations it is about."""

from __future__ import annotations

import logging
from dataclasses import replace

from echo_plugin.annotations import Annotation, SeptalBox
from echo_plugin.errors import AnnotationConflictError
from echo_plugin.host.submission import SAVE_ATTEMPTS, readable_annotation
from echo_plugin.io.dicom_sr_read import boxes_of_person, is_ours, read_report
from echo_plugin.io.study_folder import StudyFolder

logger = logging.getLogger(__name__)

DEFAULT_AUTHOR = "OHIF report"


def annotate_from_report(studies: StudyFolder, content: bytes) -> list[Annotation]:
    """Store the boxes of a report that a person saved; return the annotations, none for a report of ours.

    On each frame that the report has boxes on they replace those there; what was said of other frames, of view and of
    defect stays. The report itself is kept verbatim in the history.

    Raises
    ------
    AnnotationError
        If the report is malformed, or a box cannot be on the cine it names; cines before it are stored.
    """
    report = read_report(content)
    if is_ours(report):
        return []
    said = boxes_of_person(report)
    known = set(studies.image_ids())
    return [
        _save(studies, image_id, boxes, said.author or DEFAULT_AUTHOR, content)
        for image_id, boxes in said.boxes.items()
        if image_id in known
    ]


def _save(studies: StudyFolder, image_id: str, boxes: tuple[SeptalBox, ...], author: str, content: bytes) -> Annotation:
    for attempt in range(SAVE_ATTEMPTS):
        current = readable_annotation(studies, image_id) or Annotation(image_id)
        try:
            saved = studies.save_annotation(
                merged(current, boxes),
                author=author,
                based_on_revision=current.revision,
                upload=content,
                upload_suffix=".dcm",
            )
        except AnnotationConflictError:
            if attempt == SAVE_ATTEMPTS - 1:
                raise
            continue  # somebody saved in between: the frames of the report are put into that revision
        logger.info("Report on %s: revision %d with %d boxes", image_id, saved.revision, len(saved.boxes))
        return saved
    raise AssertionError


def merged(current: Annotation, boxes: tuple[SeptalBox, ...]) -> Annotation:
    """Return ``current`` with the boxes of a report in place of its own on the frames that the report is about."""
    frames = {box.frame_index for box in boxes}
    kept = [box for box in current.boxes if box.frame_index not in frames]
    ordered = sorted([*kept, *boxes], key=lambda box: box.frame_index)
    return replace(
        current, boxes=tuple(ordered), annotated_frames=tuple(sorted(frames | set(current.annotated_frames)))
    )
