# SPDX-License-Identifier: Apache-2.0
"""Two cines against each other: have they the same defect type? (verification, as between two faces)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from echo_plugin.annotations import DefectPrediction
from echo_plugin.answer.predict import EchoPipeline
from echo_plugin.cine import Cine
from echo_plugin.errors import ModelMismatchError
from echo_plugin.measure.verification import OperatingPoint

NO_THRESHOLD = (
    "No threshold is known for these models; make a gallery (`monailabel-echo gallery`) with labelled patients that the"
    " embedder did not learn from."
)
SAME_PATIENT = "Both cines are of one patient; the error rates are those of pairs of different patients."
WHOLE_FRAME = "No septum was found on one of the cines, so whole frames were compared."
NO_ANSWER = "Cine {image_id} gets no answer by itself: {reason}."


@dataclass(frozen=True)
class Comparison:
    """Two cines: ``similarity`` is the cosine of their embeddings, -1..1; ``point``: the threshold; None: not known."""

    image_ids: tuple[str, str]
    defects: tuple[DefectPrediction, DefectPrediction]
    similarity: float
    point: OperatingPoint | None
    is_same_patient: bool

    @property
    def is_same_defect(self) -> bool | None:
        """Whether the similarity reaches the threshold; None: no threshold is known."""
        return None if self.point is None else self.similarity >= self.point.threshold

    @property
    def notes(self) -> list[str]:
        """What a reader must know to judge the answer."""
        found = [NO_THRESHOLD] if self.point is None else []
        found += [SAME_PATIENT] if self.is_same_patient else []
        found += [WHOLE_FRAME] if any(d.is_whole_frame for d in self.defects) else []
        told = dict(zip(self.image_ids, self.defects, strict=True))
        return found + [
            NO_ANSWER.format(image_id=image_id, reason=defect.abstained)
            for image_id, defect in told.items()
            if defect.abstained is not None
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON-ready answer; no key of it names a patient."""
        point = self.point
        return {
            "cines": [
                {"image_id": image_id, "defect": defect.defect.value, "probability": defect.probability}
                for image_id, defect in zip(self.image_ids, self.defects, strict=True)
            ],
            "similarity": self.similarity,
            "same_defect": self.is_same_defect,
            "threshold": None if point is None else point.threshold,
            "false_acceptance_rate": None if point is None else point.far,
            "false_rejection_rate": None if point is None else point.frr,
            "measured_on": None if point is None else point.measured_on,
            "measured_patients": None if point is None else point.patients,
            "measured_pairs": None if point is None else point.pairs,
            "notes": self.notes,
        }

    def describe(self) -> str:
        """Return the answer in words."""
        both = " and ".join(
            f"{i} ({d.defect.value} {d.probability:.2f})" for i, d in zip(self.image_ids, self.defects, strict=True)
        )
        point = self.point
        if point is None:
            lines = [f"Similarity {self.similarity:.3f} of {both}."]
        else:
            verdict = "Same defect type" if self.is_same_defect else "Different defect types"
            lines = [
                f"{verdict}: similarity {self.similarity:.3f}, threshold {point.threshold:.3f}; {both}.",
                f"At this threshold {point.far:.1%} of pairs of different defects are called the same and"
                f" {point.frr:.1%} of pairs of one defect different (threshold chosen and measured on {point.pairs}"
                f" pairs of {point.patients} {point.measured_on}).",
            ]
        return "\n".join([*lines, *self.notes])


def compare_cines(pipeline: EchoPipeline, first: Cine, second: Cine) -> Comparison:
    """Return how alike the septa of two cines are.

    Raises
    ------
    ModelNotFoundError, ModelMismatchError
        If detector or embedder are not published, do not fit their cards, or are replaced between the two cines.
    """
    one, other = pipeline.embed(first), pipeline.embed(second)
    if any(a.sha256 != b.sha256 for a, b in ((one.embedder, other.embedder), (one.detector, other.detector))):
        msg = f"The models were replaced between cine {first.image_id} and cine {second.image_id}; compare them again."
        raise ModelMismatchError(msg)
    gallery = pipeline.gallery.of(other.embedder.sha256)
    return Comparison(
        (first.image_id, second.image_id),
        (one.defect, other.defect),
        float(np.clip(one.vector @ other.vector, -1.0, 1.0)),
        None if gallery is None else gallery.operating_point,
        first.image_id == second.image_id or (first.patient_id is not None and first.patient_id == second.patient_id),
    )
