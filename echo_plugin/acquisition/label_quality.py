# SPDX-License-Identifier: Apache-2.0
"""How well labels agree with a detector that did not learn from them, and which of them a person confirmed.

Three of the scores are ObjectLab's (Tkachenko, Thyagarajan and Mueller 2023, arXiv 2309.00832), computed by cleanlab:
a box that was overlooked, one that is badly located, one whose class was swapped. A heart has one septum of each kind,
which ObjectLab does not know; so two are added here: a septum without any box is doubtful as far as the detector sees
one, though it be far from sure, and a box is doubtful as far as the detector sees nothing there. Of a septum that
nobody looked for on a frame (``FrameBoxes.unsought``) nothing is said there.

Detectors trained with focal loss seldom give the 0.95 at which ObjectLab takes a prediction for sure; the scores that
go in are therefore calibrated to how often boxes are right.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from echo_plugin.acquisition.score_store import Judgement
from echo_plugin.acquisition.uncertainty import Array, Calibration
from echo_plugin.anatomy import DETECTED_SEPTA
from echo_plugin.annotations import Annotation, SeptalBox
from echo_plugin.answer.boxes import operating_score
from echo_plugin.answer.preprocess import FrameMapping, normalise, to_model_input
from echo_plugin.answer.runtime import PublishedNetwork, Runtime
from echo_plugin.errors import AnnotationError, UnreadableCineError
from echo_plugin.geometry import box_iou
from echo_plugin.io.study_folder import StudyFolder
from echo_plugin.measure.boxes import FrameBoxes
from echo_plugin.model_card import ModelCard
from echo_plugin.models.checkpoint import SEPTAL_DETECTOR, build_detector
from echo_plugin.training.datasets import LabelledCine, LabelledFolder, detection_frames, unsought_labels
from echo_plugin.training.provenance import seen_patients

logger = logging.getLogger(__name__)

FRAMES_JUDGED = 24
"""At most so many annotated frames of a cine are judged, evenly spread."""
BATCH = 16

SURE = 0.9
"""Probability from which a prediction speaks against a label that is missing or of another class."""
POSSIBLE = 0.5
"""Probability from which a prediction says where a box of its class should be."""

KINDS = ("overlooked", "badly located", "swapped", "unsupported")
WORDS = {
    "overlooked": "a septum seems to be without a box",
    "badly located": "a box seems to lie badly",
    "swapped": "the septa seem to be swapped",
    "unsupported": "a box seems to be where no septum is",
}


SAME_PX = 0.01
"""3D Slicer returns a box that nobody moved as mm in a volume; in pixels it is off by less than this."""
CONFIRMED_AFTER = timedelta(seconds=60)
"""The same from the same person within this time is Submit pressed twice: no detector has judged the label so soon."""


@dataclass(frozen=True)
class FrameQuality:
    """(N,) scores 0..1 for N frames, by kind of error; low is doubtful. ``overall`` : (N,) the lowest of them."""

    by_kind: dict[str, Array]

    @property
    def overall(self) -> Array:
        """(N,) 0..1: 1 where nothing is doubtful."""
        return np.min([self.by_kind[kind] for kind in KINDS], axis=0)

    def doubts(self, frame: int) -> str:
        """Return in words what is most doubtful of one frame."""
        return WORDS[min(KINDS, key=lambda kind: self.by_kind[kind][frame])]


def label_quality(
    labels: Sequence[FrameBoxes], predictions: Sequence[FrameBoxes], calibration: Calibration
) -> FrameQuality:
    """Return how good the labels of N frames are, judged by the detections on them.

    Parameters
    ----------
    labels, predictions
        Boxes of the same frames, px of the detector's input (ObjectLab's distances are made for such pictures).
        Every box that the detector sees counts, not only the best.
    calibration
        Of the detector's scores.
    """
    from cleanlab.object_detection import rank  # pandas and more: only those who ask for a review wait for it

    if not labels:
        return FrameQuality({kind: np.zeros(0) for kind in KINDS})
    calibrated = (_calibrated(*pair, calibration) for pair in zip(labels, predictions, strict=True))
    pairs = list(zip(labels, calibrated, strict=True))
    inputs = {
        "labels": [{"bboxes": label.boxes, "labels": label.labels} for label, _ in pairs],
        "predictions": [
            [np.column_stack(found.of(septum)).reshape(-1, 5) for septum in range(len(DETECTED_SEPTA))]
            for _, found in pairs
        ],
    }
    scores = {
        "overlooked": rank.compute_overlooked_box_scores(**inputs, high_probability_threshold=SURE),
        "badly located": rank.compute_badloc_box_scores(**inputs, low_probability_threshold=POSSIBLE),
        "swapped": rank.compute_swap_box_scores(**inputs, high_probability_threshold=SURE),
        "unsupported": [_support(*pair) for pair in pairs],
    }
    by_kind = {kind: rank.pool_box_scores_per_image(scores[kind]) for kind in KINDS}
    unseen = np.array([_absence(*pair) for pair in pairs])
    by_kind["overlooked"] = np.minimum(by_kind["overlooked"], unseen)
    return FrameQuality(by_kind)


def _calibrated(label: FrameBoxes, found: FrameBoxes, calibration: Calibration) -> FrameBoxes:
    """Return the detections of the septa that somebody looked for, with how likely each is right as score."""
    keep = ~np.isin(found.labels, label.unsought)
    return FrameBoxes(found.boxes[keep], found.labels[keep], calibration.probabilities(found.scores[keep]))


def _absence(label: FrameBoxes, answer: FrameBoxes) -> float:
    """Return how sure it is that the septa without a box are not in the frame; 1 if every septum has one."""
    absent = [septum for septum in range(len(DETECTED_SEPTA)) if septum not in label.labels]
    return float(1.0 - max((answer.of(septum)[1].max(initial=0.0) for septum in absent), default=0.0))


def _support(label: FrameBoxes, answer: FrameBoxes) -> Array:
    """Return (M,) how much of the detector's belief in a septum lies where each labelled box is."""
    support = np.zeros(len(label.boxes))
    for n, (box, septum) in enumerate(zip(label.boxes, label.labels, strict=True)):
        boxes, scores = answer.of(int(septum))
        if len(boxes):
            overlaps = np.minimum(box_iou(box, boxes)[0] / 0.5, 1.0)
            support[n] = float((overlaps * scores).max())
    return np.sqrt(support)


def match_boxes(labels: Sequence[FrameBoxes], predictions: Sequence[FrameBoxes]) -> Array:
    """Return (M, 3), a row for each septum of each frame that is labelled or seen there; none for one not looked for.

    Columns: the septum, the score of its best detection (0: none), that one's IoU with its label (NaN: not labelled).
    """
    rows = []
    for label, answer in zip(labels, predictions, strict=True):
        for septum in sorted(set(range(len(DETECTED_SEPTA))) - set(label.unsought)):
            true = label.boxes[label.labels == septum]
            boxes, scores = answer.of(septum)
            if not len(true) and not len(scores):
                continue
            best = int(scores.argmax()) if len(scores) else -1
            overlap = np.nan if not len(true) else 0.0 if best < 0 else float(box_iou(boxes[best], true).max())
            rows.append((float(septum), 0.0 if best < 0 else float(scores[best]), overlap))
    return np.array(rows, dtype=np.float64).reshape(-1, 3)


@dataclass(frozen=True)
class JudgedCine:
    """The annotated frames of one cine with labels and detections, px of the detector's input.

    ``detector`` : which one, of the key that its scores are kept by. ``operating_score`` : of its card; None: not said.
    The pictures are not kept: there may be thousands of cines.
    """

    cine: LabelledCine
    frame_indices: tuple[int, ...]
    labels: tuple[FrameBoxes, ...]
    predictions: tuple[FrameBoxes, ...]
    input_size_px: int
    detector: str
    operating_score: float | None

    @property
    def matches(self) -> Array:
        """(M, 3), see ``match_boxes``."""
        return match_boxes(self.labels, self.predictions)


class LabelJudge:
    """The published detector of one folder, run on frames that are labelled."""

    def __init__(self, models: Path, *, device: str = "auto") -> None:
        self._runtime = Runtime.on(device)
        self._network = PublishedNetwork(models, SEPTAL_DETECTOR, build_detector, self._runtime)

    def detect(self, folder: LabelledFolder, cine: LabelledCine) -> JudgedCine:
        """Return labels and detections of the annotated frames of a cine on which every box names its septum.

        Raises
        ------
        UnreadableCineError, ModelNotFoundError
            If the cine cannot be decoded or no detector is published.
        """
        frames = detection_frames(cine, FRAMES_JUDGED)
        with self._network.lock, torch.inference_mode():
            card, detector = self._network.get()
            pixels, mapping = to_model_input(
                folder.folder.read_cine(cine.image_id), frames, card.input_size_px, device=self._runtime.device
            )
            found = [
                FrameBoxes(
                    frame["boxes"].double().cpu().numpy(),
                    frame["labels"].cpu().numpy(),
                    frame["scores"].double().cpu().numpy(),
                )
                for start in range(0, len(frames), BATCH)
                for frame in detector(normalise(pixels[start : start + BATCH], self._runtime.dtype))
            ]
        labels = tuple(_labels(cine, frame, mapping) for frame in frames)
        size, key = card.input_size_px, card.sha256[:16]
        return JudgedCine(cine, frames, labels, tuple(found), size, key, operating_score(card))


def _labels(cine: LabelledCine, frame_index: int, mapping: FrameMapping) -> FrameBoxes:
    boxes = cine.annotation.boxes_on(frame_index)
    return FrameBoxes(
        mapping.to_model(boxes),
        np.array([DETECTED_SEPTA.index(box.septum) for box in boxes], dtype=np.int64),
        np.ones(len(boxes)),
        unsought=unsought_labels(cine.annotation, frame_index),
    )


def detect_each(judge: LabelJudge, labelled: LabelledFolder, cines: Iterable[LabelledCine]) -> Iterator[JudgedCine]:
    """Yield labels and detections of the cines; one that cannot be read is named in a warning and passed over."""
    for cine in cines:
        try:
            yield judge.detect(labelled, cine)
        except UnreadableCineError as exc:
            logger.warning("Label of %s is not judged: %s", cine.image_id, exc)


def unseen_cines(card: ModelCard, labelled: LabelledFolder) -> list[LabelledCine]:
    """Return the cines with boxes to judge of patients that a card lists neither as learned from nor as chosen by."""
    seen = seen_patients(card, (cine.patient_id for cine in labelled.cines))
    return [cine for cine in labelled.cines if cine.patient_id not in seen and detection_frames(cine, 1)]


def judge_label(judged: JudgedCine, calibration: Calibration) -> tuple[Judgement, FrameQuality]:
    """Return what is thought of a cine, for which its most doubtful frame speaks, and the quality of each frame."""
    quality = label_quality(judged.labels, judged.predictions, calibration)
    overall = quality.overall
    order = np.argsort(overall, kind="stable")[:3].tolist()
    judgement = Judgement(
        judged.cine.image_id,
        judged.cine.annotation.revision,
        judged.detector,
        float(overall.min()),
        tuple(judged.frame_indices[n] for n in order),
        quality.doubts(order[0]),
        judged.matches,
        calibration.fitted_to,
    )
    return judgement, quality


def is_same_label(one: Annotation, other: Annotation) -> bool:
    """Return whether two annotations are the same, whoever saved them and when."""
    ours, theirs = (sorted(annotation.boxes, key=_order) for annotation in (one, other))
    rest = [replace(a, boxes=(), author=None, saved_at=None, revision=0) for a in (one, other)]
    return (
        rest[0] == rest[1]
        and [(box.frame_index, box.septum) for box in ours] == [(box.frame_index, box.septum) for box in theirs]
        and all(np.abs(a.xyxy - b.xyxy).max() < SAME_PX for a, b in zip(ours, theirs, strict=True))
    )


def _order(box: SeptalBox) -> tuple[object, ...]:
    return box.frame_index, box.septum.value, *box.xyxy


class Confirmed:
    """Tells which labels a person has looked at again and submitted as they were; those are not doubted once more.

    Whether the label was shown as doubtful then is not known, for judgements are kept of the latest revision only. Who
    saved each revision and when is. The history is read once for each revision.
    """

    def __init__(self, studies: StudyFolder) -> None:
        self._studies = studies
        self._known: dict[str, tuple[int, bool]] = {}

    def __call__(self, image_id: str, revision: int) -> bool:
        """Return whether this revision says what was looked at again; no if the history cannot be read.

        Another person submitted it as it was, or the same one `CONFIRMED_AFTER`; nothing changed since.
        """
        if revision < 2:
            return False
        known = self._known.get(image_id)
        if known is None or known[0] != revision:
            known = self._known[image_id] = (revision, self._was_confirmed(image_id, revision))
        return known[1]

    def _was_confirmed(self, image_id: str, revision: int) -> bool:
        try:
            history = [a for a in self._studies.history(image_id) if a.revision <= revision]
        except AnnotationError:
            return False
        return bool(history) and history[-1].revision == revision and _was_looked_at_again(history)


def _was_looked_at_again(history: Sequence[Annotation]) -> bool:
    for later, earlier in pairwise(reversed(history)):
        if not is_same_label(later, earlier):
            return False
        if earlier.author != later.author or earlier.saved_at is None or later.saved_at is None:
            return True  # what has no time did not come by Submit
        if later.saved_at - earlier.saved_at >= CONFIRMED_AFTER:
            return True
    return False
