# SPDX-License-Identifier: Apache-2.0
"""How well the labels of a frame agree with what a detector that did not learn from them sees there.

Three of the scores are ObjectLab's (Tkachenko, Thyagarajan and Mueller 2023, arXiv 2309.00832), computed by cleanlab:
a box that was overlooked, one that is badly located, one whose class was swapped. A heart has one septum of each kind,
which ObjectLab does not know; so two are added here: a septum without any box is doubtful as far as the detector sees
one, though it be far from sure, and a box is doubtful as far as the detector sees nothing there. Of a septum that
nobody looked for on a frame (``FrameBoxes.unsought``) nothing is said there.

Detectors trained with focal loss seldom give the 0.95 at which ObjectLab takes a prediction for sure; the scores that
go in are therefore calibrated to how often boxes are right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from echo_plugin.acquisition.evidence import Array
from echo_plugin.acquisition.uncertainty import Calibration
from echo_plugin.anatomy import DETECTED_SEPTA
from echo_plugin.boxes.metrics import FrameBoxes
from echo_plugin.geometry import box_iou

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
    sure = [_calibrated(answer, label.unsought, calibration) for label, answer in zip(labels, predictions, strict=True)]
    inputs = {
        "labels": [{"bboxes": label.boxes, "labels": label.labels} for label in labels],
        "predictions": [
            [np.column_stack(answer.of(septum)).reshape(-1, 5) for septum in range(len(DETECTED_SEPTA))]
            for answer in sure
        ],
    }
    scores = {
        "overlooked": rank.compute_overlooked_box_scores(**inputs, high_probability_threshold=SURE),
        "badly located": rank.compute_badloc_box_scores(**inputs, low_probability_threshold=POSSIBLE),
        "swapped": rank.compute_swap_box_scores(**inputs, high_probability_threshold=SURE),
        "unsupported": [_support(label, answer) for label, answer in zip(labels, sure, strict=True)],
    }
    by_kind = {kind: rank.pool_box_scores_per_image(scores[kind]) for kind in KINDS}
    unseen = np.array([_absence(label, answer) for label, answer in zip(labels, sure, strict=True)])
    by_kind["overlooked"] = np.minimum(by_kind["overlooked"], unseen)
    return FrameQuality(by_kind)


def _calibrated(answer: FrameBoxes, unsought: tuple[int, ...], calibration: Calibration) -> FrameBoxes:
    """Return the detections of the septa that somebody looked for, with how likely each is right as score."""
    keep = ~np.isin(answer.labels, unsought)
    return FrameBoxes(answer.boxes[keep], answer.labels[keep], calibration.probabilities(answer.scores[keep]))


def _absence(label: FrameBoxes, answer: FrameBoxes) -> float:
    """Return how sure it is that the septa without a box are not in the frame; 1 if every septum has one."""
    absent = [septum for septum in range(len(DETECTED_SEPTA)) if septum not in label.labels]
    return float(1.0 - max((answer.of(septum)[1].max(initial=0.0) for septum in absent), default=0.0))


def _support(label: FrameBoxes, answer: FrameBoxes) -> Array:
    """Return (M,) how much of the detector's belief in a septum lies where each labelled box is."""
    support = np.zeros(len(label.boxes))
    for place, (box, septum) in enumerate(zip(label.boxes, label.labels, strict=True)):
        boxes, scores = answer.of(int(septum))
        if len(boxes):
            overlaps = np.minimum(box_iou(box, boxes)[0] / 0.5, 1.0)
            support[place] = float((overlaps * scores).max())
    return np.sqrt(support)


def judged_boxes(labels: Sequence[FrameBoxes], predictions: Sequence[FrameBoxes]) -> Array:
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
