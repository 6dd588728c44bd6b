# SPDX-License-Identifier: Apache-2.0
"""A study folder as something to learn from: who is labelled, on which frames; pixels are in ``prepared_frames``.

What of a study folder the phantom made, and the command that made it: no figure on phantoms is called another.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from echo_plugin.anatomy import DETECTED_SEPTA, Defect
from echo_plugin.annotations import Annotation
from echo_plugin.durable import file_stamp
from echo_plugin.errors import AnnotationError, TrainingDataError
from echo_plugin.io.annotation_store import digest_of_label
from echo_plugin.io.label_summaries import summarise
from echo_plugin.io.study_folder import StudyFolder
from echo_plugin.training.splits import patient_defects, require_patient


def phantom_ids(studies: Path) -> frozenset[str]:
    """Return the image ids that the folder's phantom.csv lists; none without that file."""
    try:
        with (studies / "phantom.csv").open(encoding="utf-8", newline="") as table:
            return frozenset(row["image_id"] for row in csv.DictReader(table) if row.get("image_id"))
    except FileNotFoundError:
        return frozenset()


def phantom_command(studies: Path) -> str | None:
    """Return the command that makes the phantoms of the folder again; None: its phantom.json does not say."""
    try:
        made = json.loads((studies / "phantom.json").read_text(encoding="utf-8"))
        command = f"monailabel-echo phantom DIR --patients {made['patients']} --seed {made['seed']}"
        command += f" --frames {made['frames']}"
        if made.get("kind") == "fetal":
            return f"{command} --fetal"
        return command + (f" --views {','.join(made['views'])}" if made["views"] else "")
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelledCine:
    """A cine with its annotation and the patient it is of."""

    image_id: str
    patient_id: str
    frame_count: int
    annotation: Annotation

    @cached_property
    def label_digest(self) -> str:
        """What tells one label of this cine from another: two folders have revision 1 of it with other boxes."""
        return digest_of_label(self.annotation)


@dataclass(frozen=True)
class LabelledFolder:
    """The annotated cines of a study folder; ``phantoms`` : the image ids of those that the phantom made."""

    folder: StudyFolder
    cines: tuple[LabelledCine, ...]
    phantoms: frozenset[str]

    @property
    def is_phantom(self) -> bool:
        """Whether the phantom made every one of them."""
        return all(cine.image_id in self.phantoms for cine in self.cines)

    @property
    def provenance(self) -> str:
        """One phrase for a person: what is learned from here."""
        if self.is_phantom:
            return "phantoms only"
        has_phantoms = any(cine.image_id in self.phantoms for cine in self.cines)
        return "annotations of a study folder" + (", phantoms among them" if has_phantoms else "")

    @property
    def defects(self) -> dict[str, Defect | None]:
        """The defect of every patient."""
        return patient_defects((c.patient_id, c.annotation.defect) for c in self.cines)

    def of_patients(self, patients: Sequence[str]) -> tuple[LabelledCine, ...]:
        """Return the cines of the given patients."""
        wanted = frozenset(patients)
        return tuple(c for c in self.cines if c.patient_id in wanted)

    def facts_of(self, cine: LabelledCine) -> list[object]:
        """Return what tells a cine's file and label, as they are now, from others; ask before the file is read."""
        return [cine.image_id, file_stamp(self.folder.entry(cine.image_id).path), cine.label_digest]


def open_labelled_folder(studies: Path) -> LabelledFolder:
    """Return the annotated cines of a study folder, sorted by image id, without those unusable or of an empty label.

    Raises
    ------
    TrainingDataError, AnnotationError
        If nothing is annotated, or an annotated cine has no patient id, or an annotation cannot be read.
    """
    folder = StudyFolder(studies)
    return _labelled(folder, [_labelled_cine(folder, image_id) for image_id in sorted(folder.annotated_ids())])


def open_judgeable_folder(studies: Path) -> tuple[LabelledFolder, int]:
    """Return the annotated cines, without those that `open_labelled_folder` refuses, and how many those are.

    One label that cannot be used must not keep the others from being judged.

    Raises
    ------
    TrainingDataError
        If no annotated cine is left.
    """
    folder = StudyFolder(studies)
    cines, left_out = [], 0
    for image_id in sorted(folder.annotated_ids()):
        try:
            cines.append(_labelled_cine(folder, image_id))
        except (AnnotationError, TrainingDataError) as exc:
            logger.warning("Label of %s is left out: %s", image_id, exc)
            left_out += 1
    return _labelled(folder, cines), left_out


def _labelled_cine(folder: StudyFolder, image_id: str) -> LabelledCine | None:
    """Return one annotated cine; None: marked unusable, of a label that says nothing, or unreadable."""
    annotation = folder.annotation(image_id)
    entry = folder.entry(image_id)
    if annotation is None or entry.error is not None:
        logger.warning("Cine %s is left out: %s", image_id, entry.error or "its annotation is gone")
        return None
    if annotation.is_unusable or summarise(annotation).is_empty:
        return None
    return LabelledCine(image_id, require_patient(entry.patient_id, image_id), entry.frames or 1, annotation)


def _labelled(folder: StudyFolder, found: Sequence[LabelledCine | None]) -> LabelledFolder:
    cines = tuple(cine for cine in found if cine is not None)
    if not cines:
        msg = f"Study folder {folder.root} holds no annotated cine that can be read; annotate some and submit them."
        raise TrainingDataError(msg)
    return LabelledFolder(folder, cines, phantom_ids(folder.root))


def evenly_chosen(frame_indices: Sequence[int], most: int) -> tuple[int, ...]:
    """Return at most ``most`` of the frame indices, evenly spread, the first and last included."""
    if len(frame_indices) <= most:
        return tuple(frame_indices)
    places = np.linspace(0, len(frame_indices) - 1, most).round().astype(int)
    return tuple(frame_indices[place] for place in places)


def detection_frames(cine: LabelledCine, most: int) -> tuple[int, ...]:
    """Return the annotated frames to learn boxes from: those on which every box names its septum."""
    unnamed = {box.frame_index for box in cine.annotation.boxes if box.septum not in DETECTED_SEPTA}
    return evenly_chosen([f for f in cine.annotation.annotated_frames if f not in unnamed], most)


def unsought_labels(annotation: Annotation, frame_index: int) -> tuple[int, ...]:
    """Return the class ids of the septa of which a frame says nothing; (): a septum without a box is not on it.

    Boxes with a score were worked out by an import, of one wall perhaps; a person who looks at a frame looks for both.
    """
    boxes = annotation.boxes_on(frame_index)
    if any(box.score is None for box in boxes):
        return ()
    found = {box.septum for box in boxes}
    return tuple(label for label, septum in enumerate(DETECTED_SEPTA) if boxes and septum not in found)


def crop_frames(cine: LabelledCine, most: int) -> tuple[int, ...]:
    """Return frames that have a septal box, evenly spread."""
    return evenly_chosen(sorted({box.frame_index for box in cine.annotation.boxes}), most)


def cines_digest(cines: Sequence[LabelledCine]) -> str:
    """Return the SHA-256 over the sorted image ids and what the labels say."""
    return digest_of(sorted([cine.image_id, cine.label_digest] for cine in cines))


def digest_of(content: Sequence[object]) -> str:
    """Return the SHA-256 of the content as JSON."""
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()
