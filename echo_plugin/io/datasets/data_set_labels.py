# SPDX-License-Identifier: Apache-2.0
"""What a data set says of a cine, saved as an annotation where nobody else has said anything."""

from __future__ import annotations

from echo_plugin.annotations import Annotation
from echo_plugin.errors import AnnotationConflictError, AnnotationError, UnreadableCineError
from echo_plugin.io.datasets.placed_files import PlacedCine
from echo_plugin.io.datasets.source_cine import LeftOut
from echo_plugin.io.study_folder import StudyFolder


def save_labels(folder: StudyFolder, image_id: str, placed: PlacedCine, name: str, left_out: list[LeftOut]) -> int:
    """Save what the data set ``name`` says of a cine, and return how many boxes of it the folder has.

    Where an earlier import alone has spoken, and without boxes, those that the data set has now are added. Whatever
    else it says otherwise now is told in ``left_out``.
    """
    cine, weak, author = placed.cine, placed.weak, f"import {name}"
    if weak.problem:
        left_out.append(LeftOut(f"{cine.place} (boxes)", weak.problem))
    if cine.view is None and cine.defect is None and not weak.boxes:
        return 0
    try:
        revisions, current = folder.history(image_id), folder.annotation(image_id)
    except AnnotationError as exc:
        left_out.append(LeftOut(f"{cine.place} (labels)", str(exc)))
        return 0
    if current is None and revisions:
        left_out.append(LeftOut(f"{cine.place} (labels)", "a person took back what was said of it"))
        return 0
    if current is not None and current.author != author:
        return 0
    if current is None:
        return _save(folder, image_id, placed, author, left_out)
    is_same = (current.view, current.defect) == (cine.view, cine.defect)
    if not is_same:
        left_out.append(LeftOut(f"{cine.place} (labels)", "those there are others than the data set's, and stay"))
    if weak.problem or set(current.boxes) == set(weak.boxes):
        return len(current.boxes)
    if is_same and len(revisions) == 1 and not current.boxes:
        return _save(folder, image_id, placed, author, left_out, current=current)
    told = "the boxes there are others than the data set's, and stay"
    left_out.append(LeftOut(f"{cine.place} (boxes)", told))
    return len(current.boxes)


def _save(
    folder: StudyFolder,
    image_id: str,
    placed: PlacedCine,
    author: str,
    left_out: list[LeftOut],
    *,
    current: Annotation | None = None,
) -> int:
    """Save an annotation in the place of ``current``, if nobody is faster; return the number of its boxes."""
    cine, weak = placed.cine, placed.weak
    frames = tuple(sorted({box.frame_index for box in weak.boxes}))
    full = Annotation(image_id, weak.boxes, frames, cine.view, cine.defect)
    try:
        folder.save_annotation(full, author=author, based_on_revision=current.revision if current else 0)
    except AnnotationConflictError:
        return 0
    except (AnnotationError, UnreadableCineError) as exc:
        if not weak.boxes:
            raise
        left_out.append(LeftOut(f"{cine.place} (boxes)", str(exc)))
        if current is None:
            plain = Annotation(image_id, view=cine.view, defect=cine.defect)
            folder.save_annotation(plain, author=author, based_on_revision=0)
        return 0
    return len(weak.boxes)
