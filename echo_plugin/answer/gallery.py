# SPDX-License-Identifier: Apache-2.0
"""Past cases to compare with: their embeddings and known defects, and which lie nearest.

Embeddings can tell patients apart, so a gallery is patient data: its file is readable by its owner only, lies beside
the models of the studies and never among the starter weights; ``evidence.gallery_update`` makes it. One safetensors
file holds the embeddings and, as bytes, the JSON index of the cases, so that both change in one step.

The nearest are found exactly, by a matrix product, or in a large gallery by faiss (extra "faiss"), which uses every
processor; up to a hundred thousand cases it saves nothing (tests/benchmarks/search_gallery.py).
"""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from echo_plugin.anatomy import Defect, View
from echo_plugin.durable import make_directory, write_atomically
from echo_plugin.errors import ModelMismatchError
from echo_plugin.geometry import FloatArray
from echo_plugin.measure.verification import OperatingPoint
from echo_plugin.model_card import STARTERS

MOST_BY_PRODUCT = 100_000
"""Of more rows an index is made, if faiss is there."""

Rows = NDArray[np.float32]
Places = NDArray[np.intp]


def large_index(embeddings: Rows) -> Any:
    """Return faiss's exact index of (N, D) rows; None: there are too few for one, or faiss is not installed."""
    if len(embeddings) <= MOST_BY_PRODUCT:
        return None
    try:
        import faiss
    except ImportError:
        return None
    index = faiss.IndexFlatIP(embeddings.shape[1])
    index.add(np.ascontiguousarray(embeddings))
    return index


def ranked(embeddings: Rows, index: Any, query: Rows, count: int, left_out: Places) -> tuple[Places, FloatArray]:
    """Return the places of the up to ``count`` most similar rows, the most similar first, and their similarities.

    ``left_out`` : places that take no part. ``index`` : of `large_index`.
    """
    if index is not None:
        wide = min(count + len(left_out), len(embeddings))
        found, places = (part[0] for part in index.search(query[None], wide))
        keep = ~np.isin(places, left_out)
        return places[keep][:count].astype(np.intp), found[keep][:count].astype(np.float64)
    similarities = embeddings @ query
    similarities[left_out] = -np.inf
    order = best_first(similarities, count)
    return order, similarities[order].astype(np.float64)


def best_first(similarities: Rows, count: int) -> Places:
    """Return the places of the ``count`` highest, highest first and of equals the earlier first; -inf is left out."""
    if count < len(similarities):
        best = np.sort(np.argpartition(-similarities, count)[:count])
    else:
        best = np.arange(len(similarities))
    best = best[np.isfinite(similarities[best])]
    order: Places = best[np.argsort(-similarities[best], kind="stable")]
    return order


logger = logging.getLogger(__name__)

GALLERY_FILE = "defect_gallery.safetensors"
SAME_PICTURE = 1.0 - 1e-6
"""From this similarity on two embeddings are of the same pixels."""


@dataclass(frozen=True)
class PastCase:
    """A labelled cine; ``fingerprint`` changes with its file, the UIDs are None where it is no DICOM file."""

    image_id: str
    patient_id: str = field(repr=False)
    defect: Defect
    view: View | None = None
    study_instance_uid: str | None = None
    series_instance_uid: str | None = None
    sop_instance_uid: str | None = None
    fingerprint: str = ""


@dataclass(frozen=True)
class NearestCase:
    """A past case with ``similarity``, the cosine of the two embeddings, -1..1."""

    case: PastCase
    similarity: float


@dataclass(frozen=True)
class Gallery:
    """N past cases: ``embeddings`` (N, D) float32 of unit length, from the embedder whose weights have ``sha256``.

    ``detector_sha256`` : of the weights that found the septa. ``passed_over`` : fingerprint by image id of labelled
    cines without a septum to embed. ``operating_point`` : when two cases count as one defect; None: not known.
    ``signatures`` : (N, D) by which that is told, see ``DefectEmbedder.signature``; None: of an earlier version.
    """

    sha256: str
    embeddings: NDArray[np.float32] = field(repr=False)
    cases: tuple[PastCase, ...] = field(repr=False)
    detector_sha256: str = ""
    passed_over: Mapping[str, str] = field(default_factory=dict, repr=False)
    operating_point: OperatingPoint | None = None
    signatures: NDArray[np.float32] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        lengths = {len(rows) for rows in (self.embeddings, self.signatures) if rows is not None}
        if self.embeddings.ndim != 2 or lengths != {len(self.cases)}:
            msg = (
                f"Gallery has embeddings {self.embeddings.shape} and {len(self.cases)} cases;"
                " one (N, D) row for each case is accepted."
            )
            raise ValueError(msg)

    @cached_property
    def patients(self) -> NDArray[np.int_]:
        """(N,) 0..P-1, the patient of each case."""
        numbers: dict[str, int] = {}
        return np.array([numbers.setdefault(case.patient_id, len(numbers)) for case in self.cases], dtype=int)

    @cached_property
    def places(self) -> dict[str, int]:
        """The place 0..N-1 of each image id."""
        return {case.image_id: place for place, case in enumerate(self.cases)}

    def nearest(
        self, embedding: NDArray[np.float32], count: int, *, image_id: str, patient_id: str | None
    ) -> tuple[NearestCase, ...]:
        """Return the best case of each of up to ``count`` nearest other patients, the nearest first.

        Parameters
        ----------
        embedding
            (D,) of unit length, from the same embedder.
        image_id, patient_id
            Of the cine that is compared: every case of its patient, and of who has the same picture, is left out.
            None: not known; the patient that the gallery has for the image is taken then.
        """
        if not self.cases:  # whose embeddings have no width either
            return ()
        place = self.places.get(image_id)
        own = self.cases[place].patient_id if patient_id is None and place is not None else patient_id
        left_out = list(self._places_of.get(own or "", [])) + ([] if place is None else [place])
        wide = count
        while True:  # a patient with many similar cines takes one place only
            wide = min(4 * wide, len(self.cases))
            order, similarities = ranked(self.embeddings, self._index, embedding, wide, np.unique(left_out).astype(int))
            is_own = np.isin(self.patients[order], self.patients[order[similarities >= SAME_PICTURE]])
            order, similarities = order[~is_own], similarities[~is_own]
            _, firsts = np.unique(self.patients[order], return_index=True)
            if len(firsts) >= count or wide == len(self.cases):
                break
        chosen = np.sort(firsts)[:count]
        near = np.clip(similarities[chosen], -1.0, 1.0).tolist()
        return tuple(NearestCase(self.cases[i], value) for i, value in zip(order[chosen], near, strict=True))

    @cached_property
    def _index(self) -> Any:
        return large_index(self.embeddings)

    @cached_property
    def _places_of(self) -> dict[str, list[int]]:
        places: dict[str, list[int]] = {}
        for place, case in enumerate(self.cases):
            places.setdefault(case.patient_id, []).append(place)
        return places


def require_private(directory: Path) -> None:
    """Raise ValueError if ``directory`` is that of the starter weights, which everybody may read."""
    if directory.resolve() == STARTERS:
        msg = (
            f"A gallery is patient data and {directory} holds the public starter weights;"
            " keep it in another folder of models, such as .echo_models in the study folder."
        )
        raise ValueError(msg)


def write_gallery(directory: Path, gallery: Gallery) -> None:
    """Put the gallery into ``directory`` in one step, readable by its owner only.

    Raises
    ------
    ValueError
        If the directory is that of the starter weights.
    """
    require_private(directory)
    point = gallery.operating_point
    index = {
        "sha256": gallery.sha256,
        "detector_sha256": gallery.detector_sha256,
        "passed_over": dict(gallery.passed_over),
        "operating_point": None if point is None else dataclasses.asdict(point),
        "cases": [_row(case) for case in gallery.cases],
    }
    text = np.frombuffer(json.dumps(index, separators=(",", ":")).encode(), dtype=np.uint8)
    embeddings = np.ascontiguousarray(gallery.embeddings, dtype=np.float32)
    make_directory(directory)
    tensors: dict[str, NDArray[Any]] = {"embeddings": embeddings, "index": text}
    if gallery.signatures is not None:
        tensors["signatures"] = np.ascontiguousarray(gallery.signatures, dtype=np.float32)
    write_atomically(directory / GALLERY_FILE, save(tensors), mode=0o600)


def read_gallery(directory: Path) -> Gallery | None:
    """Return the gallery in ``directory``; None: there is none.

    Raises
    ------
    ModelMismatchError
        If the file is damaged.
    """
    try:
        content = (directory / GALLERY_FILE).read_bytes()
    except FileNotFoundError:
        return None
    try:
        tensors = load(content)
        index = json.loads(tensors["index"].tobytes())
        point = index["operating_point"]
        return Gallery(
            index["sha256"],
            tensors["embeddings"],
            tuple(_case(row) for row in index["cases"]),
            index["detector_sha256"],
            index["passed_over"],
            None if point is None else OperatingPoint(**point),
            tensors.get("signatures"),
        )
    except (SafetensorError, KeyError, TypeError, ValueError) as exc:
        msg = f"Gallery {GALLERY_FILE} is not valid ({exc}); delete it and make it anew with `monailabel-echo gallery`."
        raise ModelMismatchError(msg) from exc


def _row(case: PastCase) -> list[str | None]:
    view = None if case.view is None else case.view.value
    uids = (case.study_instance_uid, case.series_instance_uid, case.sop_instance_uid)
    return [case.image_id, case.patient_id, case.defect.value, view, *uids, case.fingerprint]


def _case(row: list[Any]) -> PastCase:
    image_id, patient_id, defect, view, *rest = row
    return PastCase(image_id, patient_id, Defect(defect), None if view is None else View(view), *rest)


class KeptGallery:
    """The gallery of a directory, read anew when its file has changed; safe to ask from several threads."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock = threading.Lock()
        self._read: tuple[tuple[int, int, int] | None, Gallery | None] = (None, None)

    def of(self, sha256: str) -> Gallery | None:
        """Return the gallery made with the embedder of that digest; None: there is none, or it is of another.

        Raises
        ------
        ModelMismatchError
            If the file is damaged.
        """
        with self._lock:
            stamp = self._stamp()
            if stamp != self._read[0]:
                self._read = (stamp, read_gallery(self.directory))
                if self._read[1] is not None and self._read[1].sha256 != sha256:
                    logger.warning("The gallery is of another embedder than is published: no past case is compared")
            gallery = self._read[1]
        return gallery if gallery is not None and gallery.sha256 == sha256 else None

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            status = (self.directory / GALLERY_FILE).stat()
        except FileNotFoundError:
            return None
        return status.st_mtime_ns, status.st_ino, status.st_size
