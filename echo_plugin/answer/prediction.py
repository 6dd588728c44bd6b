# SPDX-License-Identifier: Apache-2.0
"""What the models say about one cine, and its JSON: the contract of ``predict --json`` and of the host."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echo_plugin.annotations import DefectPrediction, SeptalBox, ViewPrediction
from echo_plugin.answer.gallery import NearestCase
from echo_plugin.cine import Cine
from echo_plugin.model_card import ModelCard

TASKS = ("view", "boxes", "defect")
"""What a cine can be asked for."""
RAW_BOXES = "raw_boxes"
ASKABLE = (*TASKS, RAW_BOXES, "nearest")
"""With every box of the detector in place of those linked over time, and the nearest past cases by themselves, which
``defect`` brings too."""


@dataclass(frozen=True)
class CinePrediction:
    """What the models say about one cine; ``view`` and ``defect`` are None when they were not asked for.

    ``models`` : card by task name (detector, defects, views) of those that were run. ``has_no_septum`` : none was found
    to read a defect from or to compare with past cases; False where neither was asked for.
    """

    boxes: tuple[SeptalBox, ...]
    view: ViewPrediction | None
    defect: DefectPrediction | None
    nearest: tuple[NearestCase, ...]
    models: Mapping[str, ModelCard]
    timings_ms: Mapping[str, float]
    has_no_septum: bool = False

    def to_json(self, cine: Cine, path: Path | str) -> dict[str, Any]:
        """Return the JSON-ready entry of this cine, read from ``path``."""
        return {
            "path": str(path),
            "image_id": cine.image_id,
            "frames": cine.frame_count,
            "height": cine.height,
            "width": cine.width,
            "frame_time_ms": cine.frame_time_ms,
            "view": _view_json(self.view),
            "boxes": [_box_json(box) for box in self.boxes],
            "defect": _defect_json(self.defect),
            "nearest": [_nearest_json(near) for near in self.nearest],
            "models": {
                task: {"name": card.name, "version": card.version, "trained_on": card.trained_on}
                for task, card in self.models.items()
            },
            "timings_ms": {step: round(ms, 1) for step, ms in self.timings_ms.items()},
        }


@dataclass(frozen=True)
class CineEmbedding:
    """What one cine looks like and says of the defect, and the cards of the models behind it.

    ``vector`` (D,) float32 of unit length: its cosine with another tells how likely both have one defect.
    ``embedding`` (D,) float32 of unit length: the network's own, by which cases that look alike are found.
    ``evidence`` (K,) : what the cine says of its patient, see ``DefectRule.evidence``.
    """

    vector: NDArray[np.float32] = field(repr=False)
    embedding: NDArray[np.float32] = field(repr=False)
    evidence: NDArray[np.float64] = field(repr=False)
    defect: DefectPrediction
    embedder: ModelCard = field(repr=False)
    detector: ModelCard = field(repr=False)


@dataclass
class Progress:
    """What one prediction has used so far: milliseconds by step, and the cards of the models by task."""

    timings_ms: dict[str, float] = field(default_factory=dict)
    models: dict[str, ModelCard] = field(default_factory=dict)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Add the time that the block takes to ``step``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.timings_ms[step] = self.timings_ms.get(step, 0.0) + 1000 * (time.perf_counter() - start)


def require_askable(tasks: Sequence[str], frame_indices: Sequence[int] | None) -> None:
    """Raise ValueError if a task is unknown, or frames are asked for but none is named."""
    unknown = sorted(set(tasks) - set(ASKABLE))
    if unknown:
        msg = f"Task {unknown[0]!r} is unknown; {', '.join(ASKABLE)} are accepted."
        raise ValueError(msg)
    if frame_indices is not None and len(frame_indices) == 0:
        msg = "Frames [] name no frame; 0-based indices, or None for every frame, are accepted."
        raise ValueError(msg)


def _view_json(view: ViewPrediction | None) -> dict[str, Any] | None:
    if view is None:
        return None
    return {
        "view": view.view.value,
        "probability": view.probability,
        "probabilities": {v.value: p for v, p in view.probabilities.items()},
        "frame_indices": list(view.frame_indices),
        "is_still": view.is_still,
        "is_standard": view.is_standard,
    }


def _box_json(box: SeptalBox) -> dict[str, Any]:
    return {
        "frame_index": int(box.frame_index),
        "x1": box.x1,
        "y1": box.y1,
        "x2": box.x2,
        "y2": box.y2,
        "septum": box.septum.value,
        "score": box.score,
    }


def _defect_json(defect: DefectPrediction | None) -> dict[str, Any] | None:
    if defect is None:
        return None
    return {
        "defect": defect.defect.value,
        "probability": defect.probability,
        "probabilities": {d.value: p for d, p in defect.probabilities.items()},
        "angles_deg": {d.value: angle for d, angle in defect.angles_deg.items()},
        "frame_indices": list(defect.frame_indices),
        "is_whole_frame": defect.is_whole_frame,
        "abstained": defect.abstained,
        "crops": [_box_json(crop) for crop in defect.crops],
    }


def _nearest_json(near: NearestCase) -> dict[str, Any]:
    """Return a past case with what a viewer needs to open it: the image id, and the UIDs if it is a DICOM file.

    Who it is of is nobody's business there.
    """
    case = near.case
    return {
        "image_id": case.image_id,
        "defect": case.defect.value,
        "similarity": near.similarity,
        "view": None if case.view is None else case.view.value,
        "study_instance_uid": case.study_instance_uid,
        "series_instance_uid": case.series_instance_uid,
        "sop_instance_uid": case.sop_instance_uid,
    }
