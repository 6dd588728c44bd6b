# SPDX-License-Identifier: Apache-2.0
"""What an evaluation shows: precision and recall, and where the model was most wrong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from echo_plugin.anatomy import DETECTED_SEPTA
from echo_plugin.annotations import DefectPrediction
from echo_plugin.boxes.matching import froc, precision_recall
from echo_plugin.boxes.metrics import FrameBoxes, best_overlaps, matched_boxes
from echo_plugin.cine import ByteArray, Cine
from echo_plugin.geometry import FloatArray
from echo_plugin.held_out import HeldOut
from echo_plugin.io.sector import tissue_region
from echo_plugin.preprocess import crop_square, to_model_input
from echo_plugin.report import Picture

WORST = 8
THUMBNAIL_PX = 192
FOUND_FROM = 0.3


def surest(answer: FrameBoxes) -> FrameBoxes:
    """Return the best box of each septum, where it is sure enough to be shown."""
    keep = []
    for label in range(len(DETECTED_SEPTA)):
        places = np.flatnonzero((answer.labels == label) & (answer.scores >= FOUND_FROM))
        keep += [int(places[answer.scores[places].argmax()])] if len(places) else []
    return FrameBoxes(answer.boxes[keep], answer.labels[keep], answer.scores[keep])


def recall_curves(
    answers: Sequence[FrameBoxes], truths: Sequence[FrameBoxes]
) -> dict[str, tuple[FloatArray, FloatArray]]:
    """Return by septum (recall, precision) as the score threshold falls."""
    curves = {}
    for label, septum in enumerate(DETECTED_SEPTA):
        matched = matched_boxes(answers, truths, label)
        precision, recall = precision_recall(matched, np.ones((1, len(truths))))
        curves[septum.value] = (recall[0], precision[0])
    return curves


def froc_curves(
    answers: Sequence[FrameBoxes], truths: Sequence[FrameBoxes]
) -> dict[str, tuple[FloatArray, FloatArray]]:
    """Return by septum (false boxes per frame, sensitivity) as the score threshold falls."""
    curves = {}
    for label, septum in enumerate(DETECTED_SEPTA):
        matched = matched_boxes(answers, truths, label)
        false, sensitivity = froc(matched, np.ones((1, len(truths))))
        curves[septum.value] = (false[0], sensitivity[0])
    return curves


def worst_overlaps(answers: Sequence[FrameBoxes], truths: Sequence[FrameBoxes]) -> list[tuple[int, float]]:
    """Return the places of the frames whose surest boxes lie worst, and their IoU, worst first."""
    overlaps = np.stack([best_overlaps(answers, truths, label) for label in range(len(DETECTED_SEPTA))])
    lowest = np.where(np.isfinite(overlaps), overlaps, np.inf).min(axis=0)
    return [(int(i), float(lowest[i])) for i in np.argsort(lowest)[:WORST] if np.isfinite(lowest[i])]


def worst_cines(
    chosen: HeldOut, probabilities: FloatArray, truth: NDArray[np.int_], classes: Sequence[str]
) -> list[Picture]:
    """Return a middle frame of the cines whose true class got the least probability."""
    pictures = []
    right = probabilities[np.arange(len(truth)), truth]
    for i in np.argsort(right)[:WORST]:
        cine = chosen.labelled.folder.read_cine(chosen.cines[i].image_id)
        pixels, _ = to_model_input(cine, [cine.frame_count // 2], THUMBNAIL_PX)
        said = classes[int(probabilities[i].argmax())]
        title = f"{chosen.cines[i].image_id[-16:]}\n{classes[truth[i]]}: {right[i]:.2f}, said {said}"
        pictures.append(Picture(pixels[0].numpy(), None, None, title))
    return pictures


def embedded_picture(cine: Cine, defect: DefectPrediction, size_px: int) -> ByteArray:
    """Return (S, S) uint8: what was embedded of one frame, or the middle frame where no septum was found."""
    if not defect.crops:
        pixels: ByteArray = to_model_input(cine, [cine.frame_count // 2], size_px)[0][0].numpy()
        return pixels
    box = max(defect.crops, key=lambda crop: crop.score or 0.0)
    frame = cine.read_frames([box.frame_index])[0]
    square = (box.x1, box.y1, box.x2, box.y2)
    crop: ByteArray = crop_square(frame, square, size_px, region=tissue_region(cine)).numpy()  # no burned-in text
    return crop
