# SPDX-License-Identifier: Apache-2.0
"""How good the septal detector is while it is trained and when it is published: on validation and on test patients."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from echo_plugin.anatomy import DETECTED_SEPTA
from echo_plugin.boxes.matching import average_precision
from echo_plugin.boxes.metrics import FrameBoxes, detection_metrics, matched_boxes
from echo_plugin.geometry import FloatArray
from echo_plugin.metrics import Cohort
from echo_plugin.model_card import Metric
from echo_plugin.preprocess import normalise
from echo_plugin.training.loop import lower_precision
from echo_plugin.training.prepared_frames import BOX_SLOTS, PreparedFrames


def true_boxes(frames: PreparedFrames, items: Tensor) -> list[FrameBoxes]:
    """Return the annotated boxes of the frames ``items``, px of the input."""
    truths = []
    for target in frames.targets[items].reshape(len(items), BOX_SLOTS, 5).double().numpy():
        known = target[np.isfinite(target).all(axis=1)]
        unsought = tuple(int(-1 - label) for label in target[:, 4] if label < 0)
        truths.append(FrameBoxes(known[:, :4], known[:, 4].astype(int), np.ones(len(known)), unsought=unsought))
    return truths


@torch.no_grad()
def detect(model: nn.Module, pixels: Tensor, *, batch_size: int = 32) -> list[FrameBoxes]:
    """Return the detections on (N, S, S) uint8 frames, px of the input."""
    device = next(model.parameters()).device
    answers: list[FrameBoxes] = []
    for first in range(0, len(pixels), batch_size):
        inputs = normalise(pixels[first : first + batch_size].to(device)).contiguous(memory_format=torch.channels_last)
        with lower_precision(device):
            found = model.eval()(inputs)
        answers += [
            FrameBoxes(f["boxes"].double().cpu().numpy(), f["labels"].cpu().numpy(), f["scores"].double().cpu().numpy())
            for f in found
        ]
    return answers


def measure_on_validation(model: nn.Module, frames: PreparedFrames, items: Tensor) -> float:
    """Return the mean of AP50 and AP75 over the septa that the validation frames show."""
    answers, truths = detect(model, frames.pixels[items]), true_boxes(frames, items)
    values = []
    for label in range(len(DETECTED_SEPTA)):
        for iou in (0.5, 0.75):
            matched = matched_boxes(answers, truths, label, iou)
            values.append(average_precision(matched, np.ones((1, len(truths))))[0])
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def operating_score(model: nn.Module, frames: PreparedFrames, items: Tensor) -> float:
    """Return the score from which validation boxes have the best F1 at IoU 0.5; 0.3 where none is right."""
    answers, truths = detect(model, frames.pixels[items]), true_boxes(frames, items)
    best = []
    for label in range(len(DETECTED_SEPTA)):
        matched = matched_boxes(answers, truths, label)
        order = np.argsort(-matched.scores)
        hits, total = np.cumsum(matched.is_hit[order]), matched.truths.sum()
        f1 = 2 * hits / (np.arange(1, len(order) + 1) + total)
        if len(order) and hits[-1]:
            best.append(matched.scores[order][int(f1.argmax())])
    return float(np.clip(np.mean(best), 0.1, 0.6)) if best else 0.3


def measure_on_test(
    model: nn.Module, frames: PreparedFrames, items: Tensor, medians: FloatArray | None, split: str, seed: int
) -> dict[str, Metric]:
    """Return the figures on test patients; {}: there are none. ``medians`` : of the baseline, if any."""
    patients = tuple(frames.cines[int(cine)].patient_id for cine in frames.cine[items])
    if not patients:
        return {}
    return detection_metrics(
        Cohort(patients, split, seed), detect(model, frames.pixels[items]), true_boxes(frames, items), medians
    )
