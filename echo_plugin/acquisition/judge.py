# SPDX-License-Identifier: Apache-2.0
"""Labels beside what a detector says of the same frames: one judgement for each annotated cine."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from echo_plugin.acquisition.evidence import Array
from echo_plugin.acquisition.label_quality import FrameQuality, judged_boxes, label_quality
from echo_plugin.acquisition.score_store import Judgement
from echo_plugin.acquisition.uncertainty import Calibration
from echo_plugin.anatomy import DETECTED_SEPTA
from echo_plugin.boxes.metrics import FrameBoxes
from echo_plugin.boxes.tracks import operating_score
from echo_plugin.errors import UnreadableCineError
from echo_plugin.model_card import ModelCard
from echo_plugin.models.checkpoint import SEPTAL_DETECTOR
from echo_plugin.models.from_card import build_detector
from echo_plugin.preprocess import FrameMapping, normalise, to_model_input
from echo_plugin.runtime import PublishedNetwork, Runtime
from echo_plugin.training.datasets import LabelledCine, LabelledFolder, detection_frames, unsought_labels
from echo_plugin.training.provenance import seen_patients

logger = logging.getLogger(__name__)

FRAMES_JUDGED = 24
"""At most so many annotated frames of a cine are looked at, evenly spread."""

BATCH = 16


@dataclass(frozen=True)
class JudgedCine:
    """The annotated frames of one cine with labels and detections, px of the detector's input.

    ``operating_score`` : of its card; None: not said. The pictures are not kept: there may be thousands of cines.
    """

    cine: LabelledCine
    frame_indices: tuple[int, ...]
    labels: tuple[FrameBoxes, ...]
    predictions: tuple[FrameBoxes, ...]
    input_size_px: int
    models: str
    operating_score: float | None

    @property
    def judged(self) -> Array:
        """(M, 3), see ``judged_boxes``."""
        return judged_boxes(self.labels, self.predictions)


class LabelJudge:
    """The published detector of one folder, asked about frames that are labelled."""

    def __init__(self, models: Path, *, device: str = "auto") -> None:
        self._runtime = Runtime.on(device)
        self._network = PublishedNetwork(models, SEPTAL_DETECTOR, build_detector, self._runtime)

    def look(self, folder: LabelledFolder, cine: LabelledCine) -> JudgedCine:
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
            answers: list[FrameBoxes] = []
            for start in range(0, len(frames), BATCH):
                for found in detector(normalise(pixels[start : start + BATCH], self._runtime.dtype)):
                    answers.append(
                        FrameBoxes(
                            found["boxes"].double().cpu().numpy(),
                            found["labels"].cpu().numpy(),
                            found["scores"].double().cpu().numpy(),
                        )
                    )
        labels = tuple(_labels(cine, frame, mapping) for frame in frames)
        return JudgedCine(
            cine,
            frames,
            labels,
            tuple(answers),
            card.input_size_px,
            card.sha256[:16],
            operating_score(card),
        )


def _labels(cine: LabelledCine, frame_index: int, mapping: FrameMapping) -> FrameBoxes:
    boxes = cine.annotation.boxes_on(frame_index)
    return FrameBoxes(
        mapping.to_model(boxes),
        np.array([DETECTED_SEPTA.index(box.septum) for box in boxes], dtype=np.int64),
        np.ones(len(boxes)),
        unsought=unsought_labels(cine.annotation, frame_index),
    )


def look_at_each(judge: LabelJudge, labelled: LabelledFolder, cines: Iterable[LabelledCine]) -> Iterator[JudgedCine]:
    """Yield what a detector says of the cines; one that cannot be read is named in a warning and passed over."""
    for cine in cines:
        try:
            yield judge.look(labelled, cine)
        except UnreadableCineError as exc:
            logger.warning("Label of %s is not judged: %s", cine.image_id, exc)


def unseen_cines(card: ModelCard, labelled: LabelledFolder) -> list[LabelledCine]:
    """Return the cines with boxes to judge of patients that a card lists neither as learned from nor as chosen by."""
    seen = seen_patients(card, (cine.patient_id for cine in labelled.cines), labelled.folder.entries())
    return [cine for cine in labelled.cines if cine.patient_id not in seen and detection_frames(cine, 1)]


def frame_quality(judged: JudgedCine, calibration: Calibration) -> FrameQuality:
    """Return the quality of each annotated frame of a cine."""
    return label_quality(judged.labels, judged.predictions, calibration)


def judgement(judged: JudgedCine, quality: FrameQuality, calibration: Calibration) -> Judgement:
    """Return what is thought of a cine: its most doubtful frame speaks for it. ``quality`` is by the calibration."""
    overall = quality.overall
    order = [int(place) for place in np.argsort(overall, kind="stable")[:3]]
    return Judgement(
        judged.cine.image_id,
        judged.cine.annotation.revision,
        judged.models,
        float(overall.min()),
        tuple(judged.frame_indices[place] for place in order),
        quality.doubts(order[0]),
        judged.judged,
        calibration.fitted_to,
    )
