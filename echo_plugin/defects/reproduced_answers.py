# SPDX-License-Identifier: Apache-2.0
"""What a row of the reproduced table says of the test cines and patients, and the figures of the paper's table."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import nll_loss, normalize

from echo_plugin.defects.hog_baseline import hog_svm_scores
from echo_plugin.defects.metrics import any_defect_metrics
from echo_plugin.defects.verification import cross_patient_pairs, verification_metrics
from echo_plugin.geometry import FloatArray
from echo_plugin.metrics import Cohort, classification_metrics
from echo_plugin.models.defect_embedder import DefectEmbedder
from echo_plugin.training.datasets import LabelledCine
from echo_plugin.training.defect_calibration import EmbeddedCrops
from echo_plugin.training.defect_crops import DefectCrops
from echo_plugin.training.defect_figures import majority_class, patients_of

PLAIN, CLASSES = "plain embeddings", "class probabilities"
"""What cines are compared by: as the paper does, and as viewers are shown similar cases."""


@dataclass(frozen=True)
class NetworkAnswers:
    """What a network says of the test cines and patients."""

    model: DefectEmbedder
    embedded: EmbeddedCrops

    @torch.no_grad()
    def of_cines(self) -> dict[str, FloatArray]:
        """Return (C, D) unit vectors by what they are: the embeddings, as in the paper, and the class probabilities."""
        embeddings = self.embedded.of_cines(self.model)
        vectors = {PLAIN: normalize(embeddings, dim=1), CLASSES: self.model.signature(embeddings)}
        return {kind: unit.double().numpy() for kind, unit in vectors.items()}

    @torch.no_grad()
    def of_patients(self, patients: Sequence[str]) -> FloatArray:
        """Return (P, K) probabilities."""
        return self.embedded.of_patients(self.model, patients).numpy()


class HogAnswers:
    """What the support vector machine says of the test cines and patients: the mean of the scores of their crops.

    It has nothing to choose, so that it learns from the validation patients too.
    """

    def __init__(self, crops: DefectCrops, parts: dict[str, list[LabelledCine]], seed: int) -> None:
        learned_from = torch.cat([crops.frames.of(parts[part]) for part in ("train", "validation")])
        learned_from = learned_from[crops.is_example[learned_from]]
        items = [crops.frames.of([cine]) for cine in parts["test"]]
        scores = hog_svm_scores(crops, learned_from, torch.cat(items), seed)
        self.scores = [part.mean(dim=0) for part in torch.split(scores, [len(rows) for rows in items])]
        self.patients = [cine.patient_id for cine in parts["test"]]

    def of_cines(self) -> dict[str, FloatArray]:
        """Return (C, K) unit vectors of class probabilities; embeddings it has none."""
        return {CLASSES: normalize(torch.stack(self.scores).softmax(dim=1), dim=1).double().numpy()}

    def of_patients(self, patients: Sequence[str]) -> FloatArray:
        """Return (P, K) probabilities."""
        rows = [[s for s, p in zip(self.scores, self.patients, strict=True) if p == patient] for patient in patients]
        means: Tensor = torch.stack([torch.stack(row).mean(dim=0) for row in rows])
        return means.softmax(dim=1).double().numpy()


def measure(
    answers: NetworkAnswers | HogAnswers,
    crops: DefectCrops,
    parts: dict[str, list[LabelledCine]],
    split: str,
    seed: int,
) -> dict[str, Any]:
    """Return the figures of the paper's table by patient, verification between cines of different patients.

    ``split`` : what the test patients are called.
    """
    classes = [defect.value for defect in crops.classes]
    majority = majority_class(crops, parts["train"])
    patients, truth = patients_of(parts["test"], crops)
    probabilities = answers.of_patients(patients)
    cohort = Cohort(tuple(patients), split, seed)
    metrics = classification_metrics(cohort, truth.numpy(), probabilities, classes=classes, majority_id=majority)
    normal = classes.index("Normal")
    said = probabilities.argmax(axis=1)
    metrics |= any_defect_metrics(cohort, truth.numpy(), said, normal_id=normal, majority_id=majority)
    cropping = "walls" if bool((crops.walls >= 0).all()) else "union"
    seen = crops.truths(parts["test"], cropping)
    known = torch.where(seen >= 0)[0].tolist()
    owners = [parts["test"][number].patient_id for number in known]
    for kind, vectors in answers.of_cines().items():
        pairs = cross_patient_pairs(vectors[known], seen[known].numpy(), owners)
        metrics |= {f"{name} ({kind})": metric for name, metric in verification_metrics(pairs, split, seed).items()}
    return {
        "patients": {part: len({cine.patient_id for cine in cines}) for part, cines in parts.items()},
        "cines": len(parts["test"]),
        "metrics": {
            name: dataclasses.asdict(metric) for name, metric in metrics.items() if metric.value == metric.value
        },
    }


def validation_log_loss(answers: NetworkAnswers, crops: DefectCrops) -> float:
    """Return the log loss of validation patients, mean over their classes: one measure for every network and recipe."""
    patients, truth = patients_of(answers.embedded.cines, crops)
    probabilities = torch.from_numpy(answers.of_patients(patients)).clamp_min(1e-6)
    weights = torch.bincount(truth, minlength=len(crops.classes)).double().clamp_min(1).reciprocal()
    return float(nll_loss(probabilities.log(), truth, weight=weights))
