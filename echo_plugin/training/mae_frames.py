# SPDX-License-Identifier: Apache-2.0
"""Frames without labels: whatever can be read below some folders, decoded once into a memory-mapped file.

Patients are split as in every training, so that those who will measure a later model are not learned from here either.
A file that names no patient counts as a patient of its own, under its image id.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from echo_plugin.answer.batch import find_cine_files
from echo_plugin.answer.preprocess import to_model_input
from echo_plugin.cine import Cine, escape_path, is_uid
from echo_plugin.durable import file_stamp, replace_atomically
from echo_plugin.errors import AnnotationError, TrainingDataError, UnreadableCineError
from echo_plugin.io.cine_file import read_cine
from echo_plugin.io.patients_file import PATIENTS_FILE, read_parts, read_patients
from echo_plugin.progress import Progress
from echo_plugin.training.datasets import PREPARATION, digest_of, evenly_chosen, phantom_ids
from echo_plugin.training.splits import PARTS, Split

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class UnlabelledCine:
    """A file to learn from. ``is_nameless`` : neither it nor a folder names anybody; ``patient_id`` is its image id.

    ``part`` : that of the split which its data set comes with; None: there is none.
    """

    path: Path = field(repr=False)
    image_id: str
    patient_id: str = field(repr=False)
    frame_indices: tuple[int, ...]
    part: str | None = None
    is_nameless: bool = False


@dataclass(frozen=True)
class UnlabelledFrames:
    """``pixels`` (N, S, S) uint8, memory-mapped; ``cine`` (N,) index into the cines they were made of."""

    pixels: Tensor
    cine: Tensor

    def of(self, cines: Sequence[bool]) -> Tensor:
        """Return the indices of the frames of the cines that are True."""
        return torch.where(torch.tensor(cines, dtype=torch.bool)[self.cine])[0]


def find_unlabelled(folders: Sequence[Path], most_frames: int, *, without: Path) -> tuple[UnlabelledCine, ...]:
    """Return every cine below the folders, with at most ``most_frames`` of its frames, evenly spread.

    Headers are read, pixels are not. Who is on a cine says its header, or the nearest patients.csv above it that names
    it, also where that lies above the folder. A file that is met twice, by a link or by its SOP Instance UID, keeps
    what either place knows of it. A file that cannot be read is named in a warning and left out; what lies below
    ``without``, where the training writes pictures, is passed over.

    Raises
    ------
    FileNotFoundError
        If a folder does not exist or holds nothing that can be a cine.
    TrainingDataError
        If no file can be read.
    AnnotationError
        If a patients.csv is malformed.
    """
    cines: dict[Path, UnlabelledCine] = {}
    table = functools.cache(_read_table)
    for folder in folders:
        for path in find_cine_files([folder]):
            file = path.resolve()
            if without.resolve() in file.parents:
                continue
            try:
                cine = read_cine(path)
            except (UnreadableCineError, OSError) as exc:
                logger.warning("File %s is left out: %s", path.name, exc)
                continue
            relative = path.relative_to(folder) if folder.is_dir() else Path(path.name)
            image_id = cine.sop_instance_uid or escape_path(PurePosixPath(relative.as_posix()))
            patient, part = _identity(path, cine, table)
            frames = evenly_chosen(range(cine.frame_count), most_frames)
            if file in cines:
                patient = patient if cines[file].is_nameless else cines[file].patient_id
                part = max(filter(None, (cines[file].part, part)), key=PARTS.index, default=None)
            cines[file] = UnlabelledCine(path, image_id, patient or image_id, frames, part, patient is None)
    if not cines:
        msg = f"None of the files below {', '.join(folder.name for folder in folders)} can be read as ultrasound."
        raise TrainingDataError(msg)
    return _named_by_copies([cines[path] for path in sorted(cines)])


def _named_by_copies(cines: Sequence[UnlabelledCine]) -> tuple[UnlabelledCine, ...]:
    """Return the cines, those without a name as the patient's whom another of their UID names; count the nameless."""
    names = {c.image_id: c.patient_id for c in cines if not c.is_nameless and is_uid(c.image_id)}
    named = tuple(
        replace(cine, patient_id=names[cine.image_id], is_nameless=False)
        if cine.is_nameless and cine.image_id in names
        else cine
        for cine in cines
    )
    if count := sum(cine.is_nameless for cine in named):
        logger.warning("%d of %d files name no patient: each counts as a patient of its own.", count, len(cines))
    return named


Table = tuple[Mapping[str, str], Mapping[str, str]]
"""What a patients.csv says: the patient by image id, the part of the split by patient."""


def _read_table(directory: Path) -> Table:
    try:
        return read_patients(directory / PATIENTS_FILE), read_parts(directory / PATIENTS_FILE)
    except AnnotationError as exc:
        msg = f"Folder {directory.name}: {exc}"
        raise AnnotationError(msg) from exc


def _identity(path: Path, cine: Cine, table: Callable[[Path], Table]) -> tuple[str | None, str | None]:
    """Return the patient on a cine and the part that a data set has it in, each None where nothing says so."""
    patient, part = (cine.patient_id or "").strip() or None, None
    place = path.absolute()
    for directory in place.parents:
        patients, parts = table(directory)
        if patient is None and patients:
            own_id = escape_path(PurePosixPath(place.relative_to(directory).as_posix()))
            patient = patients.get(cine.sop_instance_uid or own_id) or patients.get(own_id)
        part = part or parts.get(patient or "")
    return patient, part


def parts_given(cines: Sequence[UnlabelledCine]) -> dict[str, str]:
    """Return, by patient, the part of the data set's own split; of two parts, the one further from learning."""
    parts: dict[str, str] = {}
    for cine in cines:
        if cine.part is not None:
            found = parts.get(cine.patient_id, cine.part)
            parts[cine.patient_id] = max(found, cine.part, key=PARTS.index)
    return parts


def parts_of(cines: Sequence[UnlabelledCine], split: Split) -> Mapping[str, list[bool]]:
    """Return, for each part, whether each cine is in it."""
    named = {part: frozenset(getattr(split, part)) for part in PARTS}
    return {part: [cine.patient_id in patients for cine in cines] for part, patients in named.items()}


def provenance_of(cines: Sequence[UnlabelledCine], images: Sequence[Path]) -> str:
    """Return one phrase for a person: what is learned from."""
    made = frozenset[str]().union(*(phantom_ids(folder) for folder in images))
    if all(cine.image_id in made for cine in cines):
        return "phantoms only, without labels"
    return "frames without labels" + (", phantoms among them" if any(c.image_id in made for c in cines) else "")


def cines_key(cines: Sequence[UnlabelledCine]) -> str:
    """Return the SHA-256 over the sorted image ids."""
    return digest_of(sorted(cine.image_id for cine in cines))


def decode_frames(
    cines: Sequence[UnlabelledCine], size_px: int, directory: Path, name: str, progress: Progress | None = None
) -> UnlabelledFrames:
    """Return the frames of all cines as ``size_px`` squares, from ``directory`` if the same are there already.

    They are patients' pictures: the files are the user's alone to read. A cine that cannot be decoded is named in a
    warning and left out.

    Raises
    ------
    TrainingDataError
        If no frame can be decoded.
    """
    stamps = [[str(c.path), *(file_stamp(c.path) or ()), list(c.frame_indices)] for c in cines]
    key = digest_of([PREPARATION, size_px, stamps])[:24]
    pixels_path, cine_path = (directory / f"{name}-frames-{key}.{part}.npy" for part in ("pixels", "cine"))
    if not cine_path.is_file():
        directory.mkdir(parents=True, exist_ok=True)
        owners = replace_atomically(
            pixels_path, lambda partial: _decode_all(cines, size_px, partial, progress), mode=0o600
        )
        replace_atomically(cine_path, lambda partial: np.save(partial, owners), mode=0o600)  # last: all is there
    owners = np.load(cine_path)
    if not len(owners):
        msg = f"None of the {len(cines)} cines could be decoded; see the log for each."
        raise TrainingDataError(msg)
    pixels = np.load(pixels_path, mmap_mode="c")[: len(owners)]
    return UnlabelledFrames(torch.from_numpy(np.asarray(pixels)), torch.from_numpy(owners))


def _decode_all(
    cines: Sequence[UnlabelledCine], size_px: int, path: Path, progress: Progress | None
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Write the squares of all cines to ``path``; return which cine each is of."""
    count = sum(len(cine.frame_indices) for cine in cines)
    shape = (count, size_px, size_px)
    pixels = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)  # type: ignore[no-untyped-call]
    owners: list[int] = []
    for index, cine in enumerate(cines):
        try:
            squares, _ = to_model_input(read_cine(cine.path), cine.frame_indices, size_px)
        except (UnreadableCineError, OSError) as exc:
            logger.warning("Cine %s is left out: %s", cine.image_id, exc)
            continue
        pixels[len(owners) : len(owners) + len(squares)] = squares.numpy()
        owners += [index] * len(squares)
        if progress is not None:
            progress(index + 1, len(cines), "reading frames")
    pixels.flush()
    return np.array(owners, dtype=np.int64)
