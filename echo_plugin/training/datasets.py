# SPDX-License-Identifier: Apache-2.0
"""A study folder as something to learn from: who is labelled, and their pixels, prepared once and kept as bytes.

Frames pass through ``preprocess``, the path that predictions take, a single time; epochs then read uint8 arrays from
memory or from a memory-mapped cache. What differs between epochs is in ``augment`` and ``appearance``.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from echo_plugin.anatomy import DETECTED_SEPTA, Defect
from echo_plugin.annotations import Annotation
from echo_plugin.cine import Cine
from echo_plugin.errors import TrainingDataError, UnreadableCineError
from echo_plugin.io.sector import tissue_region
from echo_plugin.io.study_folder import StudyFolder
from echo_plugin.preprocess import CONTEXT_MARGIN, crop_square, septal_square, to_model_input
from echo_plugin.training.splits import patient_defects, require_patient

logger = logging.getLogger(__name__)

Array = NDArray[Any]
Progress = Callable[[int, int, str], None]

PREPARATION = 2
"""Raised when the preparation of pixels changes, so that older caches are not read."""

BOX_SLOTS = 4
"""Boxes kept per frame; a frame has one for each septum, seldom more."""


@dataclass(frozen=True)
class LabelledCine:
    """A cine with its annotation and the patient it is of."""

    image_id: str
    patient_id: str
    frame_count: int
    annotation: Annotation


@dataclass(frozen=True)
class LabelledFolder:
    """The annotated cines of a study folder; ``is_phantom`` : made by the phantom (phantom.csv lies in it)."""

    folder: StudyFolder
    cines: tuple[LabelledCine, ...]
    is_phantom: bool

    @property
    def defects(self) -> dict[str, Defect | None]:
        """The defect of every patient."""
        return patient_defects((c.patient_id, c.annotation.defect) for c in self.cines)

    def of_patients(self, patients: Sequence[str]) -> tuple[LabelledCine, ...]:
        """Return the cines of the given patients."""
        wanted = frozenset(patients)
        return tuple(c for c in self.cines if c.patient_id in wanted)


def open_labelled_folder(studies: Path) -> LabelledFolder:
    """Return the annotated cines of a study folder, sorted by image id.

    Raises
    ------
    TrainingDataError
        If nothing is annotated, or an annotated cine has no patient id.
    """
    folder = StudyFolder(studies)
    cines = []
    for image_id in sorted(folder.annotated_ids()):
        annotation = folder.annotation(image_id)
        entry = folder.entry(image_id)
        if annotation is None or entry.error is not None:
            logger.warning("Cine %s is left out: %s", image_id, entry.error or "its annotation is gone")
            continue
        patient = require_patient(entry.patient_id, image_id)
        cines.append(LabelledCine(image_id, patient, entry.frames or 1, annotation))
    if not cines:
        msg = f"Study folder {studies} holds no annotated cine that can be read; annotate some and submit them."
        raise TrainingDataError(msg)
    return LabelledFolder(folder, tuple(cines), is_phantom=(studies / "phantom.csv").is_file())


@dataclass(frozen=True)
class PreparedFrames:
    """``pixels`` (N, S, S) uint8; ``targets`` (N, E) float32; ``cine`` (N,) index into ``cines``."""

    pixels: Tensor
    targets: Tensor
    cine: Tensor
    cines: tuple[LabelledCine, ...]

    def of(self, cines: Sequence[LabelledCine]) -> Tensor:
        """Return the indices of the frames of the given cines."""
        wanted = {c.image_id for c in cines}
        keep = torch.tensor([c.image_id in wanted for c in self.cines], dtype=torch.bool)
        return torch.where(keep[self.cine])[0]


Prepare = Callable[[Cine, LabelledCine, tuple[int, ...]], tuple[Tensor, Array]]
"""(cine, its labels, frame indices) -> pixels (n, S, S) uint8 and targets (n, E) float32."""


def prepare_frames(
    labelled: LabelledFolder,
    choice: Sequence[tuple[LabelledCine, tuple[int, ...]]],
    prepare: Prepare,
    *,
    name: str,
    cache_dir: Path | None,
    progress: Progress | None = None,
) -> PreparedFrames:
    """Decode and prepare the chosen frames of each cine once; a cache of the same labels is read instead.

    ``name`` tells caches of one folder apart: task and size.
    """
    key = _digest([PREPARATION, name, [[c.image_id, c.annotation.revision, list(f)] for c, f in choice]])[:24]
    paths = [cache_dir / f"{name}-{key}.{part}.npy" for part in ("pixels", "targets", "cine")] if cache_dir else []
    cines = tuple(c for c, _ in choice)
    if paths and all(path.is_file() for path in paths):
        arrays = [np.load(path, mmap_mode="c") for path in paths]
    else:
        arrays = _prepare_all(labelled, choice, prepare, progress)
        for path, array in zip(paths, arrays, strict=False):
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            with partial.open("wb") as file:
                np.save(file, array)
            partial.replace(path)
    pixels, targets, cine = (torch.from_numpy(np.asarray(array)) for array in arrays)
    return PreparedFrames(pixels, targets, cine, cines)


def _prepare_all(
    labelled: LabelledFolder,
    choice: Sequence[tuple[LabelledCine, tuple[int, ...]]],
    prepare: Prepare,
    progress: Progress | None,
) -> list[Array]:
    pixels: list[Array] = []
    targets: list[Array] = []
    owners: list[Array] = []
    for index, (labels, frame_indices) in enumerate(choice):
        try:
            cine_pixels, cine_targets = prepare(labelled.folder.read_cine(labels.image_id), labels, frame_indices)
        except (UnreadableCineError, OSError) as exc:
            logger.warning("Cine %s is left out: %s", labels.image_id, exc)
            continue
        pixels.append(cine_pixels.numpy())
        targets.append(cine_targets.astype(np.float32))
        owners.append(np.full(len(cine_pixels), index, dtype=np.int64))
        if progress is not None:
            progress(index + 1, len(choice), "reading cines")
    if not pixels:
        msg = f"None of the {len(choice)} labelled cines could be read; see the log for each."
        raise TrainingDataError(msg)
    return [np.concatenate(parts) for parts in (pixels, targets, owners)]


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


def prepare_detection(size_px: int) -> Prepare:
    """Return the preparation of whole frames; targets (n, BOX_SLOTS * 5) are x1, y1, x2, y2 model px, class id; NaN."""

    def prepare(cine: Cine, labels: LabelledCine, frame_indices: tuple[int, ...]) -> tuple[Tensor, Array]:
        pixels, mapping = to_model_input(cine, frame_indices, size_px)
        targets = np.full((len(frame_indices), BOX_SLOTS, 5), np.nan)
        for row, frame_index in enumerate(frame_indices):
            boxes = labels.annotation.boxes_on(frame_index)[:BOX_SLOTS]
            targets[row, : len(boxes), :4] = mapping.to_model(boxes)
            targets[row, : len(boxes), 4] = [DETECTED_SEPTA.index(box.septum) for box in boxes]
        return pixels, targets.reshape(len(frame_indices), -1)

    return prepare


def crop_frames(cine: LabelledCine, most: int) -> tuple[int, ...]:
    """Return frames that have a septal box, evenly spread."""
    return evenly_chosen(sorted({box.frame_index for box in cine.annotation.boxes}), most)


def prepare_crops(size_px: int, room: float) -> Prepare:
    """Return the preparation of crops round the true septa, ``room`` times as wide as a prediction sees them.

    ``size_px`` : the side of these wide crops. Their middle 1/room is what ``preprocess.crop_septa`` cuts.
    """
    margin = (room * (1 + 2 * CONTEXT_MARGIN) - 1) / 2

    def prepare(cine: Cine, labels: LabelledCine, frame_indices: tuple[int, ...]) -> tuple[Tensor, Array]:
        region = tissue_region(cine)
        frames = cine.read_frames(frame_indices)
        squares = [septal_square(labels.annotation.boxes_on(f), margin) for f in frame_indices]
        crops = [crop_square(f, s, size_px, region=region) for f, s in zip(frames, squares, strict=True)]
        return torch.stack(crops), np.zeros((len(crops), 0))

    return prepare


def prepare_whole(size_px: int) -> Prepare:
    """Return the preparation of whole frames without targets."""

    def prepare(cine: Cine, labels: LabelledCine, frame_indices: tuple[int, ...]) -> tuple[Tensor, Array]:
        pixels, _ = to_model_input(cine, frame_indices, size_px)
        return pixels, np.zeros((len(frame_indices), 0))

    return prepare


def cines_digest(cines: Sequence[LabelledCine]) -> str:
    """Return the SHA-256 over the sorted image ids and annotation revisions."""
    return _digest(sorted([cine.image_id, cine.annotation.revision] for cine in cines))


def _digest(content: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()
