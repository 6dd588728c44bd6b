# SPDX-License-Identifier: Apache-2.0
"""One patient from several cines: the walls of all of them joined, and whether the views agree.

Cines that show no septum, or in which the answer was withheld, do not count against one that shows the hole; the
figure of agreement says how alone that one stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from echo_plugin.anatomy import Defect, Septum
from echo_plugin.annotations import DefectPrediction
from echo_plugin.defects.septal_crops import can_show
from echo_plugin.geometry import FloatArray
from echo_plugin.models.defect_embedder import DefectEmbedder


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


def combine_cines(
    embedder: DefectEmbedder,
    classes: Sequence[Defect],
    predictions: Sequence[DefectPrediction],
    embeddings: FloatArray,
) -> PatientDefect | None:
    """Return the defect of one patient from the answers to (C,) cines and their (C, D) embeddings.

    None: no cine was answered.

    Raises
    ------
    ValueError
        If there is not one embedding for each prediction.
    """
    if len(predictions) != len(embeddings):
        msg = f"{len(predictions)} predictions with {len(embeddings)} embeddings; one of each per cine is accepted."
        raise ValueError(msg)
    answered = [place for place, prediction in enumerate(predictions) if prediction.abstained is None]
    if not answered:
        return None
    kept = [predictions[place] for place in answered]
    vectors = torch.from_numpy(np.asarray(embeddings, dtype=np.float32)[answered])
    shown = torch.tensor([[_shows(prediction, defect) for defect in classes] for prediction in kept])
    with torch.inference_mode():
        if embedder.config.head == "softmax":  # its logits need lengths, which unit embeddings have not
            probabilities = np.mean([[p.probabilities[defect] for defect in classes] for p in kept], axis=0).tolist()
            return _patient(classes, probabilities, kept, len(predictions), vectors.numpy())
        device = embedder.centres.device
        weights = torch.ones(len(kept), device=device)
        joined = embedder.pool(vectors.to(device), weights, shown.to(device), embedder.config.patient_focus)
        probabilities = embedder.patient_probabilities(joined)[0].tolist()
    return _patient(classes, probabilities, kept, len(predictions), vectors.numpy())


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
