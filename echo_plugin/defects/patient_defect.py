# SPDX-License-Identifier: Apache-2.0
"""One patient from several cines: what the walls of all of them say, and whether the views agree.

Cines that show no septum, or in which the answer was withheld, do not count against one that shows the hole; the
figure of agreement says how alone that one stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from echo_plugin.anatomy import Defect, Septum
from echo_plugin.annotations import DefectPrediction
from echo_plugin.defects.septal_crops import can_show
from echo_plugin.errors import ModelMismatchError
from echo_plugin.geometry import FloatArray
from echo_plugin.prediction import CineEmbedding


@dataclass(frozen=True)
class PatientDefect:
    """The defect of a patient: ``probabilities`` sum to 1; ``cines`` of ``asked`` were answered.

    ``agreement`` : part 0..1 of the answered cines that can show the patient's defect and call it so; with Normal, of
    all answered ones; None: no cine can show it. ``similarity`` : mean cosine between the embeddings of cines, -1..1;
    None: fewer than two.
    """

    defect: Defect
    probabilities: dict[Defect, float]
    cines: int
    asked: int
    agreement: float | None
    similarity: float | None

    @property
    def probability(self) -> float:
        """The probability of the patient's defect."""
        return self.probabilities[self.defect]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON-ready answer; no key of it names the patient."""
        return {
            "defect": self.defect.value,
            "probability": self.probability,
            "probabilities": {defect.value: p for defect, p in self.probabilities.items()},
            "cines": self.cines,
            "asked": self.asked,
            "agreement": self.agreement,
            "similarity": self.similarity,
        }

    def describe(self) -> str:
        """Return the answer in words."""
        words = f"{self.defect.value} {self.probability:.2f} from {self.cines} of {self.asked} cines"
        if self.agreement is None:
            return f"{words}; none of them can show it."
        return f"{words}; {self.agreement:.0%} of those that can show it say so."


NO_ANSWER = "No answer: none of the {asked} cines shows a septum well enough."


def combine_cines(cines: Sequence[CineEmbedding]) -> PatientDefect | None:
    """Return the defect of one patient from the answers to its cines; None: no cine was answered.

    What the walls of all cines say is added up (``DefectEmbedder.evidence``).

    Raises
    ------
    ModelMismatchError
        If a training published another network between two of the cines: their evidence cannot be added.
    """
    if len({cine.embedder.sha256 for cine in cines}) > 1:
        msg = f"The models were replaced while {len(cines)} cines of a patient were read; ask for them again."
        raise ModelMismatchError(msg)
    kept = [cine for cine in cines if cine.defect.abstained is None]
    if not kept:
        return None
    classes = [Defect(name) for name in kept[0].embedder.classes]
    said = np.sum([cine.evidence for cine in kept], axis=0)
    odds = np.exp(said - said.max())
    vectors = np.stack([cine.vector for cine in kept]).astype(np.float64)
    return _patient(classes, (odds / odds.sum()).tolist(), [cine.defect for cine in kept], len(cines), vectors)


def _patient(
    classes: Sequence[Defect],
    probabilities: Sequence[float],
    kept: Sequence[DefectPrediction],
    asked: int,
    vectors: FloatArray,
) -> PatientDefect:
    named = dict(zip(classes, probabilities, strict=True))
    defect = max(named, key=lambda name: named[name])
    able = [prediction for prediction in kept if _shows(prediction, defect)]
    agreement = float(np.mean([prediction.defect is defect for prediction in able])) if able else None
    return PatientDefect(defect, named, len(kept), asked, agreement, _mean_similarity(vectors))


def _shows(prediction: DefectPrediction, defect: Defect) -> bool:
    """Whether one of the walls that were embedded can show the defect; whole frames can show any."""
    septa = {None if crop.septum is Septum.UNSPECIFIED else crop.septum for crop in prediction.crops}
    return not septa or any(can_show(septum, defect) for septum in septa)


def _mean_similarity(vectors: FloatArray) -> float | None:
    """Return the mean cosine between different rows of (C, D); None for fewer than two."""
    if len(vectors) < 2:
        return None
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    first, second = np.triu_indices(len(unit), k=1)
    return float((unit @ unit.T)[first, second].mean())
