# SPDX-License-Identifier: Apache-2.0
"""Making the gallery of a study folder, and keeping it level with labels, files and models.

A case is a cine of a known patient with a defect label on which a septum was found, embedded just as the cines that are
compared with it. What did not change is not embedded again; after a training all is, because embeddings of two networks
cannot be compared.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from echo_plugin.annotations import Annotation
from echo_plugin.answer.gallery import Gallery, PastCase, read_gallery, require_private, write_gallery
from echo_plugin.answer.predict import EchoPipeline
from echo_plugin.durable import file_stamp
from echo_plugin.errors import AnnotationError, EchoError, ModelMismatchError, ModelNotFoundError, UnreadableCineError
from echo_plugin.io.study_folder import CineEntry, StudyFolder
from echo_plugin.measure.verification import OperatingPoint, cross_patient_pairs, operating_point
from echo_plugin.model_card import ModelCard, load_card
from echo_plugin.models.checkpoint import DEFECT_EMBEDDER, SEPTAL_DETECTOR
from echo_plugin.progress import Progress
from echo_plugin.training.datasets import phantom_ids
from echo_plugin.training.provenance import known_patients, names_its_patients

logger = logging.getLogger(__name__)

Vectors = tuple[NDArray[np.float32], NDArray[np.float32]]
Rows = dict[str, tuple[PastCase, Vectors]]
"""Case with its (D,) embedding and signature by image id."""

WRITE_EVERY = 64
"""So many embedded cines are lost at most when somebody interrupts a first run."""
MOST_MEASURED = 3000
"""Of more cases a seeded sample gives the error rates: pairs grow with the square."""


@dataclass(frozen=True)
class GalleryUpdate:
    """What an update did: ``embedded`` cines, ``passed_over`` labelled cines without a septum or a patient id.

    What could not be had just now, as from an archive that does not answer, is neither, and tried at the next update.
    """

    gallery: Gallery
    embedded: int
    passed_over: int


def update_gallery(
    folder: StudyFolder,
    pipeline: EchoPipeline,
    *,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> GalleryUpdate:
    """Bring the gallery of the pipeline level with the labels of ``folder``; return it with what was done.

    Raises
    ------
    ModelNotFoundError
        If no detector or embedder is published.
    ModelMismatchError
        If one is replaced meanwhile; what is written is of one pair of models always.
    ValueError
        If the gallery would lie among the public starter weights.
    """
    require_private(pipeline.gallery.directory)
    embedder = load_card(pipeline.models_dir, DEFECT_EMBEDDER)
    detector = load_card(pipeline.models_dir, SEPTAL_DETECTOR)
    old = _reusable(pipeline, embedder, detector)
    wanted, anonymous = _labelled(folder)
    rows, passed_over, missing = _sort_out(wanted, old)
    kept = len(rows)
    for number, (case, entry) in enumerate(missing):
        if should_stop():
            break
        if progress is not None:
            progress(number, len(missing), entry.path.name)
        try:
            vectors = _embed(folder, pipeline, case.image_id, embedder, detector)
        except (ModelMismatchError, ModelNotFoundError):
            raise
        except (EchoError, OSError) as exc:
            logger.warning("Left out of the gallery until the next update: %s", exc)
            continue
        stamp = case.fingerprint or _fingerprint(entry.path)  # it may have been fetched just now
        if vectors is not None:
            rows[case.image_id] = dataclasses.replace(case, fingerprint=stamp), vectors
        elif stamp:
            passed_over[case.image_id] = stamp
        if number % WRITE_EVERY == WRITE_EVERY - 1:
            so_far = _gallery(rows, passed_over, embedder, detector, old.operating_point)
            write_gallery(pipeline.gallery.directory, so_far)
    if progress is not None:
        progress(len(missing), len(missing), "")
    gallery = _gallery(rows, passed_over, embedder, detector, None)
    gallery = _gallery(rows, passed_over, embedder, detector, measure_operating_point(gallery, embedder, folder))
    if missing or gallery.cases != old.cases or gallery.operating_point != old.operating_point:
        write_gallery(pipeline.gallery.directory, gallery)
        logger.info("Gallery: %d cases, %d of them embedded now", len(gallery.cases), len(rows) - kept)
    return GalleryUpdate(gallery, len(rows) - kept, len(passed_over) + anonymous)


def _reusable(pipeline: EchoPipeline, embedder: ModelCard, detector: ModelCard) -> Gallery:
    """Return the gallery that was made with these models; an empty one where there is none."""
    try:
        old = read_gallery(pipeline.gallery.directory)
    except ModelMismatchError as exc:
        logger.warning("The gallery is made anew: %s", exc)
        old = None
    is_of_these = old is not None and (old.sha256, old.detector_sha256) == (embedder.sha256, detector.sha256)
    if old is None or not is_of_these or old.signatures is None:
        return _gallery({}, {}, embedder, detector, None)
    return old


def _sort_out(
    wanted: list[tuple[PastCase, CineEntry]], old: Gallery
) -> tuple[Rows, dict[str, str], list[tuple[PastCase, CineEntry]]]:
    """Return what is kept of the old gallery, what it passed over, and what has to be embedded.

    A case whose file is not here just now is kept: an archive's instances never change.
    """
    rows, passed_over, missing = Rows(), dict[str, str](), list[tuple[PastCase, CineEntry]]()
    for case, entry in wanted:
        place = old.places.get(case.image_id)
        if place is not None and case.fingerprint in ("", stamp := old.cases[place].fingerprint):
            assert old.signatures is not None
            kept = old.embeddings[place], old.signatures[place]
            rows[case.image_id] = dataclasses.replace(case, fingerprint=stamp), kept
        elif old.passed_over.get(case.image_id) == case.fingerprint:
            passed_over[case.image_id] = case.fingerprint
        else:
            missing.append((case, entry))
    return rows, passed_over, missing


def _gallery(
    rows: Rows, passed_over: dict[str, str], embedder: ModelCard, detector: ModelCard, point: OperatingPoint | None
) -> Gallery:
    ordered = [rows[image_id] for image_id in sorted(rows)]
    none = np.zeros((0, 1), dtype=np.float32)
    embeddings, signatures = (
        np.stack([vectors[part] for _, vectors in ordered]) if ordered else none for part in (0, 1)
    )
    cases = tuple(case for case, _ in ordered)
    return Gallery(embedder.sha256, embeddings, cases, detector.sha256, dict(passed_over), point, signatures)


def _labelled(folder: StudyFolder) -> tuple[list[tuple[PastCase, CineEntry]], int]:
    """Return the cines with a defect label that can show it, and how many more are of an unknown patient."""
    wanted, anonymous = [], 0
    for image_id in folder.annotated_ids():
        entry = folder.entry(image_id)
        try:
            annotation = folder.annotation(image_id)
        except AnnotationError as exc:
            logger.warning("Left out of the gallery: %s", exc)
            continue
        if annotation is None or entry.error is not None or not _shows_its_defect(annotation):
            continue
        if entry.patient_id is None:  # nobody could say which cases are of another patient
            anonymous += 1
            continue
        wanted.append((_case(annotation, entry, entry.patient_id), entry))
    return wanted, anonymous


def _shows_its_defect(annotation: Annotation) -> bool:
    """Whether a defect was named, and nobody said that this cine does not show it or that it has no septum."""
    saw_no_septum = bool(annotation.annotated_frames) and not annotation.boxes
    is_hidden = saw_no_septum or annotation.is_defect_visible is False
    return annotation.defect is not None and not is_hidden and not annotation.is_unusable


def _case(annotation: Annotation, entry: CineEntry, patient_id: str) -> PastCase:
    assert annotation.defect is not None
    return PastCase(
        image_id=entry.image_id,
        patient_id=patient_id,
        defect=annotation.defect,
        view=annotation.view,
        study_instance_uid=entry.study_instance_uid,
        series_instance_uid=entry.series_instance_uid,
        sop_instance_uid=entry.image_id if entry.study_instance_uid is not None else None,
        fingerprint=_fingerprint(entry.path),
    )


def _fingerprint(path: Path) -> str:
    """Return what changes with a file; "" of one that is not here, as a cine that an archive has not sent yet."""
    return "-".join(map(str, file_stamp(path) or ()))


def _embed(
    folder: StudyFolder, pipeline: EchoPipeline, image_id: str, embedder: ModelCard, detector: ModelCard
) -> Vectors | None:
    """Return embedding and signature of a cine; None: no septum was found on it, or it cannot be read."""
    try:
        embedded = pipeline.embed(folder.read_cine(image_id))
    except UnreadableCineError as exc:
        if getattr(exc.__cause__, "errno", None) is not None:  # the system's, not the file's: no such file, no right
            raise
        logger.warning("Left out of the gallery: %s", exc)
        return None
    if (embedded.embedder.sha256, embedded.detector.sha256) != (embedder.sha256, detector.sha256):
        msg = "The models were replaced while the gallery was being made; make it again."
        raise ModelMismatchError(msg)
    return None if embedded.defect.is_whole_frame else (embedded.embedding, embedded.vector)


def measure_operating_point(gallery: Gallery, embedder: ModelCard, folder: StudyFolder) -> OperatingPoint | None:
    """Return threshold and error rates on the embedder's validation patients, else on others it did not learn from.

    None: the card does not say whom it learned from, or too few others are in the gallery.
    """
    signatures = gallery.signatures
    if signatures is None or not names_its_patients(embedder):
        return None
    parts = known_patients(embedder, sorted({case.patient_id for case in gallery.cases}))
    phantoms = phantom_ids(folder.root)
    groups = {
        "validation": [i for i, c in enumerate(gallery.cases) if parts.get(c.patient_id) == "validation"],
        "unseen": [i for i, c in enumerate(gallery.cases) if parts.get(c.patient_id, "test") == "test"],
    }
    for name, places in groups.items():
        if len(places) > MOST_MEASURED:
            places = sorted(np.random.default_rng(0).choice(places, MOST_MEASURED, replace=False).tolist())
        cases = [gallery.cases[i] for i in places]
        classes = sorted({case.defect.value for case in cases})
        pairs = cross_patient_pairs(
            signatures[places].astype(np.float64),
            [classes.index(case.defect.value) for case in cases],
            [case.patient_id for case in cases],
        )
        if pairs.can_be_measured:
            who = "phantoms" if all(case.image_id in phantoms for case in cases) else "patients"
            return operating_point(
                pairs, f"validation {who}" if name == "validation" else f"{who} that were not learned from"
            )
    return None
