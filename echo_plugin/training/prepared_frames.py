# SPDX-License-Identifier: Apache-2.0
"""Frames to learn from, prepared once and kept as bytes in memory or in a memory-mapped file.

They pass through ``preprocess``, the path that predictions take, a single time; epochs then read uint8 arrays. What
differs between epochs is in ``augment`` and ``appearance``.

The cache of prepared frames: a file for each cine, so that a new label costs one; the longest unused go first.
"""

from __future__ import annotations

import io
import logging
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from echo_plugin.anatomy import DETECTED_SEPTA
from echo_plugin.answer.preprocess import to_model_input
from echo_plugin.cine import Cine
from echo_plugin.durable import drop_longest_unused, write_atomically
from echo_plugin.errors import TrainingDataError, UnreadableCineError
from echo_plugin.progress import Progress
from echo_plugin.training.datasets import LabelledCine, LabelledFolder, digest_of, unsought_labels

FOLDER = "cines"
MOST_BYTES = 16 * 2**30
"""What a cache may take on the disk: detector, views and defects of some ten thousand cines."""


def kept_path(cache_dir: Path, key: str) -> Path:
    """Return the file of a cine; ``key`` tells its picture, its frames and how they were prepared."""
    return cache_dir / FOLDER / f"{key}.npz"


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


def bound_cache(cache_dir: Path) -> None:
    """Delete the files that were not in use for longest, down to ``MOST_BYTES``."""
    drop_longest_unused((cache_dir / FOLDER).iterdir(), MOST_BYTES)


logger = logging.getLogger(__name__)

Array = NDArray[Any]

PREPARATION = 3
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
        bound_cache(cache_dir)
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
        path = cache_dir and kept_path(cache_dir, digest_of(facts)[:32])
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
    """Return the preparation of whole frames; targets (n, BOX_SLOTS * 5) are x1, y1, x2, y2 model px, class id; NaN.

    A class k that nobody looked for on a frame is -1 - k in its last slots, without a box.
    """

    def prepare(cine: Cine, labels: LabelledCine, frame_indices: tuple[int, ...]) -> tuple[Tensor, Array]:
        pixels, mapping = to_model_input(cine, frame_indices, size_px)
        targets = np.full((len(frame_indices), BOX_SLOTS, 5), np.nan)
        for row, frame_index in enumerate(frame_indices):
            boxes = labels.annotation.boxes_on(frame_index)[:BOX_SLOTS]
            targets[row, : len(boxes), :4] = mapping.to_model(boxes)
            targets[row, : len(boxes), 4] = [DETECTED_SEPTA.index(box.septum) for box in boxes]
            for slot, label in enumerate(unsought_labels(labels.annotation, frame_index), start=1):
                targets[row, -slot, 4] = -1 - label
        return pixels, targets.reshape(len(frame_indices), -1)

    return prepare


def prepare_whole(size_px: int) -> Prepare:
    """Return the preparation of whole frames without targets."""

    def prepare(cine: Cine, labels: LabelledCine, frame_indices: tuple[int, ...]) -> tuple[Tensor, Array]:
        pixels, _ = to_model_input(cine, frame_indices, size_px)
        return pixels, np.zeros((len(frame_indices), 0))

    return prepare
