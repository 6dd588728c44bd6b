# SPDX-License-Identifier: Apache-2.0
"""What a trained defect embedder is worth: what its card says of validation and test patients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from echo_plugin.defects.abstention import ANGLE_KEY
from echo_plugin.metrics import Cohort, classification_metrics
from echo_plugin.model_card import Metric
from echo_plugin.models.defect_embedder import DefectEmbedder
from echo_plugin.training.datasets import LabelledCine
from echo_plugin.training.defect_calibration import EmbeddedCrops, calibrate, choose_abstention
from echo_plugin.training.defect_crops import DefectCrops
from echo_plugin.training.splits import patient_defects


def choose_on_validation(model: DefectEmbedder, embedded: EmbeddedCrops, crops: DefectCrops) -> dict[str, float]:
    """Let validation patients choose attention, temperatures and when to abstain; return what the card adds of it."""
    truth = crops.truths(embedded.cines, model.config.cropping)
    patients, patient_truth = patients_of(embedded.cines, crops)
    _, figures = calibrate(model, embedded, truth, patients, patient_truth)
    limit, coverage, accuracy = choose_abstention(model, embedded, truth)
    return figures | {ANGLE_KEY: limit, "validation_coverage": coverage, "validation_accuracy_answered": accuracy}


def patients_of(cines: Sequence[LabelledCine], crops: DefectCrops) -> tuple[list[str], Tensor]:
    """Return the patients of some cines and (P,) the class ids of their defects: one seen in any cine is theirs."""
    told = patient_defects((cine.patient_id, cine.annotation.defect) for cine in cines)
    said = {patient: crops.classes.index(defect) for patient, defect in told.items() if defect is not None}
    return list(said), torch.tensor(list(said.values()), dtype=torch.long)


def majority_class(crops: DefectCrops, cines: Sequence[LabelledCine]) -> int:
    """Return the class of most training patients: the constant answer."""
    _, labels = patients_of(cines, crops)
    return int(torch.bincount(labels, minlength=len(crops.classes)).argmax())


@torch.no_grad()
def measure_on_test(
    model: DefectEmbedder, embedded: EmbeddedCrops, crops: DefectCrops, majority: int, split: str, seed: int
) -> dict[str, Metric]:
    """Return the figures by cine, of those in which the wall in question is to be seen, and by patient."""
    classes = [defect.value for defect in crops.classes]
    truth = crops.truths(embedded.cines, model.config.cropping)
    known = torch.where(truth >= 0)[0]
    patients, patient_truth = patients_of(embedded.cines, crops)
    by_patient = embedded.of_patients(model, patients).numpy()
    alone = classification_metrics(
        Cohort(tuple(patients), split, seed), patient_truth.numpy(), by_patient, classes=classes, majority_id=majority
    )
    metrics = {f"{name} (patients)": metric for name, metric in alone.items()}
    if len(known):
        owners = tuple(embedded.cines[number].patient_id for number in known.tolist())
        probabilities = model.probabilities(embedded.of_cines(model)[known]).double().numpy()
        metrics |= classification_metrics(
            Cohort(owners, split, seed), truth[known].numpy(), probabilities, classes=classes, majority_id=majority
        )
    return metrics
