# SPDX-License-Identifier: Apache-2.0
"""A study folder as something to learn from: who is labelled, on which frames, and those frames, prepared once.

Frames pass through ``preprocess``, the path that predictions take, a single time; epochs then read uint8 arrays, from
memory or a memory-mapped file. What differs between epochs is in ``augment``. The cache has a file for each cine, so
that a new label costs one; the longest unused go first. What the phantom made is told from all else here, so that no
figure on phantoms is called another.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from echo_plugin.anatomy import DETECTED_SEPTA, Defect
from echo_plugin.annotations import Annotation
from echo_plugin.answer.preprocess import to_model_input
from echo_plugin.cine import Cine
from echo_plugin.durable import drop_longest_unused, file_stamp, write_atomically
from echo_plugin.errors import AnnotationError, TrainingDataError, UnreadableCineError
from echo_plugin.io.annotation_store import digest_of_label
from echo_plugin.io.label_summaries import summarise
from echo_plugin.io.study_folder import StudyFolder
from echo_plugin.progress import Progress
from echo_plugin.training.splits import patient_defects, require_patient

logger = logging.getLogger(__name__)
Array = NDArray[Any]


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


FOLDER = "cines"
MOST_BYTES = 16 * 2**30
"""What a cache may take on the disk: detector, views and defects of some ten thousand cines."""


def read_kept(path: Path) -> tuple[Array, Array] | None:
    """Return pixels and targets, noting that they are in use; None: not there, or damaged."""
    try:
        with np.load(path) as arrays:
            found = arrays["pixels"], arrays["targets"]
        os.utime(path)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return found


def keep(path: Path, pixels: Array, targets: Array) -> None:
    """Write pixels and targets of a cine."""
    content = io.BytesIO()
    np.savez(content, pixels=pixels, targets=targets)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content.getvalue(), mode=0o600)


PREPARATION = 4
"""Raised when the preparation of pixels changes, so that older caches are not read."""

BOX_SLOTS = 4
"""Boxes kept per frame; a frame has one for each septum, seldom more."""


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

    def readable(self, parts: Mapping[str, Sequence[LabelledCine]]) -> dict[str, list[LabelledCine]]:
        """Return the cines of each part without those that could not be read.

        Raises
        ------
        TrainingDataError
            If a part that has cines has none left.
        """
        there = {self.cines[i].image_id for i in set(self.cine.tolist())}
        left = {part: [cine for cine in cines if cine.image_id in there] for part, cines in parts.items()}
        for part, cines in left.items():
            if parts[part] and not cines:
                msg = (
                    f"None of the {len(parts[part])} labelled cines of the {part} patients could be read; see the log."
                )
                raise TrainingDataError(msg)
        return left


Prepare = Callable[[Cine, LabelledCine, tuple[int, ...]], tuple[Tensor, Array]]
"""(cine, its labels, frame indices) -> pixels (n, S, S) uint8 and targets (n, E) float32.

Without frame indices it chooses frames itself, by what it finds in the cine."""


def prepare_frames(
    labelled: LabelledFolder,
    choice: Sequence[tuple[LabelledCine, tuple[int, ...]]],
    prepare: Prepare,
    *,
    name: str,
    cache_dir: Path | None,
    progress: Progress | None = None,
) -> PreparedFrames:
    """Decode and prepare the chosen frames of each cine; those that a cache has of the same file and label are read.

    ``name`` tells caches of one folder apart: task, size, and, where ``prepare`` chooses the frames, how. With a cache
    the pixels are a memory-mapped file of this training's own, joined from it, else they are in memory.
    """
    found = _each_cine(labelled, choice, prepare, name, cache_dir, progress)
    pixels, targets, cine = _in_memory(found) if cache_dir is None else _in_a_file(found, cache_dir)
    if cache_dir is not None:
        drop_longest_unused((cache_dir / FOLDER).iterdir(), MOST_BYTES)
    return PreparedFrames(
        torch.from_numpy(np.asarray(pixels)),
        torch.from_numpy(np.concatenate(targets)),
        torch.from_numpy(np.concatenate(cine)),
        tuple(c for c, _ in choice),
    )


def _each_cine(
    labelled: LabelledFolder,
    choice: Sequence[tuple[LabelledCine, tuple[int, ...]]],
    prepare: Prepare,
    name: str,
    cache_dir: Path | None,
    progress: Progress | None,
) -> Iterator[tuple[int, Array, Array]]:
    """Yield (index into ``choice``, pixels, targets) of every cine that can be read; none is an error."""
    is_empty = True
    for index, (labels, frame_indices) in enumerate(choice):
        facts = [PREPARATION, name, *labelled.facts_of(labels), list(frame_indices)]
        path = cache_dir and cache_dir / FOLDER / f"{digest_of(facts)[:32]}.npz"
        kept = read_kept(path) if path else None
        if kept is None:
            try:
                pixels, targets = prepare(labelled.folder.read_cine(labels.image_id), labels, frame_indices)
            except (UnreadableCineError, OSError) as exc:
                logger.warning("Cine %s is left out: %s", labels.image_id, exc)
                continue
            kept = pixels.numpy(), targets.astype(np.float32)
            if path:
                keep(path, *kept)
        is_empty = False
        yield index, *kept
        if progress is not None:
            progress(index + 1, len(choice), "reading cines")
    if is_empty:
        msg = f"None of the {len(choice)} labelled cines could be read; see the log for each."
        raise TrainingDataError(msg)


def _in_memory(found: Iterator[tuple[int, Array, Array]]) -> tuple[Array, list[Array], list[Array]]:
    """Return the pixels of all cines in one array, and by cine its targets and its number, once for each frame."""
    rows = list(found)
    owners = [np.full(len(pixels), index, dtype=np.int64) for index, pixels, _ in rows]
    return np.concatenate([pixels for _, pixels, _ in rows]), [targets for *_, targets in rows], owners


def _in_a_file(found: Iterator[tuple[int, Array, Array]], folder: Path) -> tuple[Array, list[Array], list[Array]]:
    """Return what `_in_memory` does, the pixels mapped from a file without a name that ends with the training."""
    folder.mkdir(parents=True, exist_ok=True)
    targets, owners = [], []
    with tempfile.TemporaryFile(dir=folder) as file:
        for index, cine_pixels, cine_targets in found:
            file.write(cine_pixels.tobytes())
            targets.append(cine_targets)
            owners.append(np.full(len(cine_pixels), index, dtype=np.int64))
        file.flush()
        shape = (sum(len(part) for part in owners), *cine_pixels.shape[1:])
        pixels = np.memmap(file, np.uint8, "c", shape=shape) if shape[0] else np.zeros(shape, dtype=np.uint8)
    return pixels, targets, owners


def prepare_detection(size_px: int) -> Prepare:
    """Return the preparation of whole frames; targets (n, BOX_SLOTS * 5 + K) are read by `boxes_of`, `unsought_of`."""

    def prepare(cine: Cine, labels: LabelledCine, frame_indices: tuple[int, ...]) -> tuple[Tensor, Array]:
        pixels, mapping = to_model_input(cine, frame_indices, size_px)
        targets = np.full((len(frame_indices), BOX_SLOTS, 5), np.nan)
        unsought = np.zeros((len(frame_indices), len(DETECTED_SEPTA)))
        for row, frame_index in enumerate(frame_indices):
            boxes = labels.annotation.boxes_on(frame_index)[:BOX_SLOTS]
            targets[row, : len(boxes), :4] = mapping.to_model(boxes)
            targets[row, : len(boxes), 4] = [DETECTED_SEPTA.index(box.septum) for box in boxes]
            unsought[row, list(unsought_labels(labels.annotation, frame_index))] = 1
        return pixels, np.concatenate([targets.reshape(len(frame_indices), -1), unsought], axis=1)

    return prepare


def boxes_of(frames: PreparedFrames, items: Tensor) -> Tensor:
    """Return (n, BOX_SLOTS, 5) of the frames ``items``: x1, y1, x2, y2, px of the input, and class id; NaN: no box."""
    return frames.targets[items, : BOX_SLOTS * 5].reshape(len(items), BOX_SLOTS, 5)


def unsought_of(frames: PreparedFrames, items: Tensor) -> Tensor:
    """Return (n, K) bool: the classes that nobody looked for on the frames ``items``."""
    return frames.targets[items, BOX_SLOTS * 5 :] > 0


def prepare_whole(size_px: int) -> Prepare:
    """Return the preparation of whole frames without targets."""

    def prepare(cine: Cine, labels: LabelledCine, frame_indices: tuple[int, ...]) -> tuple[Tensor, Array]:
        pixels, _ = to_model_input(cine, frame_indices, size_px)
        return pixels, np.zeros((len(frame_indices), 0))

    return prepare
