# SPDX-License-Identifier: Apache-2.0
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from echo_plugin.anatomy import Defect
from echo_plugin.annotations import Annotation
from echo_plugin.answer.defect_rule import DefectRule
from echo_plugin.model_card import DefectDecision
from echo_plugin.models.defect_embedder import DefectEmbedder
from echo_plugin.network_config import EmbedderConfig
from echo_plugin.papers.defects import NetworkAnswers, validation_log_loss
from echo_plugin.training.datasets import LabelledCine

CLASSES = (Defect.NORMAL, Defect.ASD, Defect.VSD)


def cosines(rows):
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit @ unit.T


@pytest.mark.parametrize("head", ["arcface", "softmax"])
def test_cines_are_compared_by_their_embeddings_and_by_their_class_probabilities(head):
    torch.manual_seed(0)
    model = DefectEmbedder(EmbedderConfig(head=head)).eval()
    rule = DefectRule(model, DefectDecision(), 0)
    embeddings = torch.randn(6, model.config.embedding_size)

    found = NetworkAnswers(rule, SimpleNamespace(of_cines=lambda _: (embeddings, model.logits(embeddings)))).of_cines()

    probabilities = rule.probabilities(model.logits(embeddings)).detach().double().numpy()
    plain, classes = found["plain embeddings"], found["class probabilities"]
    np.testing.assert_allclose(plain @ plain.T, cosines(embeddings.double().numpy()), atol=1e-6)
    np.testing.assert_allclose(classes @ classes.T, cosines(probabilities), atol=1e-6)


def test_every_class_of_validation_patients_weighs_alike_in_their_log_loss(monkeypatch):
    defects = [Defect.NORMAL, Defect.NORMAL, Defect.NORMAL, Defect.ASD]
    cines = [
        LabelledCine(f"c{number}", f"p{number}", 1, Annotation(f"c{number}", (), (0,), defect=defect))
        for number, defect in enumerate(defects)
    ]
    answers = np.array([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25], [0.5, 0.25, 0.25], [0.75, 0.125, 0.125]])
    monkeypatch.setattr(NetworkAnswers, "of_patients", lambda self, patients: answers)

    loss = validation_log_loss(NetworkAnswers(None, SimpleNamespace(cines=cines)), SimpleNamespace(classes=CLASSES))

    assert loss == pytest.approx((math.log(2) + math.log(8)) / 2)
