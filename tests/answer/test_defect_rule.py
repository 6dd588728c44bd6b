# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
import torch

from echo_plugin.answer.defect_rule import DefectRule
from echo_plugin.model_card import DefectDecision
from echo_plugin.models.defect_embedder import DefectEmbedder
from echo_plugin.network_config import EmbedderConfig


@pytest.fixture(scope="module")
def embedder() -> DefectEmbedder:
    torch.manual_seed(0)
    return DefectEmbedder(EmbedderConfig(input_size_px=64)).eval()


@pytest.fixture(scope="module")
def rule(embedder: DefectEmbedder) -> DefectRule:
    return DefectRule(embedder, DefectDecision(temperature=2.0), 0)


def test_probabilities_are_the_softmax_of_scaled_cosines_over_the_temperature(rule: DefectRule) -> None:
    embeddings = torch.randn(2, 512, generator=torch.Generator().manual_seed(4))

    with torch.inference_mode():
        probabilities = rule.probabilities(rule.embedder.logits(embeddings))
        weights = torch.exp(torch.cos(rule.embedder.angles(embeddings)) * 16.0 / 2.0)

    np.testing.assert_allclose(probabilities, weights / weights.sum(dim=1, keepdim=True), rtol=1e-3, atol=1e-5)


def pooled(rule: DefectRule, order: list[int], focus: float, weights: torch.Tensor) -> torch.Tensor:
    embeddings = torch.randn(5, 512, generator=torch.Generator().manual_seed(4))
    shown = torch.tensor([[True, True, False], [True, False, True]] * 2 + [[True, True, True]])
    with torch.inference_mode():
        return rule.pool(embeddings[order], weights[order], shown[order], focus)


def test_pooling_without_focus_is_the_mean_by_detection_scores(rule: DefectRule) -> None:
    weights = torch.tensor([0.9, 0.1, 0.5, 0.5, 0.2])
    embeddings = torch.randn(5, 512, generator=torch.Generator().manual_seed(4))

    expected = torch.nn.functional.normalize((weights[:, None] * embeddings).sum(dim=0, keepdim=True), dim=1)
    torch.testing.assert_close(pooled(rule, [0, 1, 2, 3, 4], 0.0, weights), expected)


def test_pooling_does_not_depend_on_the_order(rule: DefectRule) -> None:
    weights = torch.tensor([0.9, 0.1, 0.5, 0.5, 0.2])

    first, second = (pooled(rule, order, 0.7, weights) for order in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1]))

    torch.testing.assert_close(first, second)


def test_a_wall_with_a_hole_speaks_for_the_cine_and_only_of_what_it_can_have(rule: DefectRule) -> None:
    centres = torch.nn.functional.normalize(rule.embedder.centres.detach().T, dim=1)  # Normal, ASD, VSD
    embeddings, ones = centres[[0, 1]], torch.ones(2)
    interventricular, interatrial = [True, False, True], [True, True, False]

    with torch.inference_mode():
        hole = rule.pool(embeddings, ones, torch.tensor([interventricular, interatrial]), 1.0)
        impossible = rule.pool(embeddings, ones, torch.tensor([interatrial, interventricular]), 1.0)

    assert rule.embedder.cosines(hole)[0, 1] > 0.99
    assert rule.embedder.cosines(impossible)[0, 1] < 0.9


def test_frames_of_a_wall_are_joined_before_walls_are(rule: DefectRule) -> None:
    embeddings = torch.randn(4, 512, generator=torch.Generator().manual_seed(4))
    shown = torch.ones(4, 3, dtype=torch.bool)

    with torch.inference_mode():
        walls, can_show = rule.pool_walls(embeddings, torch.ones(4), shown, ["a", "b", "b", "b"])
        cine, logits = rule.pool_cine(walls, can_show)

    each = [torch.nn.functional.normalize(part.mean(dim=0), dim=0) for part in (embeddings[:1], embeddings[1:])]
    torch.testing.assert_close(walls, torch.stack(each))
    torch.testing.assert_close(cine[0], torch.nn.functional.normalize(each[0] + each[1], dim=0))
    torch.testing.assert_close(logits, rule.embedder.logits(cine))


@torch.inference_mode()
def test_a_wall_that_looks_normal_hardly_speaks_against_a_hole_that_most_planes_miss(embedder: DefectEmbedder) -> None:
    often, seldom = (DefectRule(embedder, DefectDecision(shown_share=share), 0) for share in ((), (1.0, 1.0, 0.25)))
    walls, shown = torch.nn.functional.normalize(embedder.centres.detach().T[:1], dim=1), torch.ones(1, 3, dtype=bool)

    against, hardly = (one.evidence(walls, shown)[0, 2] for one in (often, seldom))

    assert against < -4
    assert hardly == pytest.approx(math.log(0.75 + 0.25 * math.exp(against)), rel=1e-6)


@torch.inference_mode()
def test_evidence_is_about_what_a_wall_can_show_and_never_about_normal(rule: DefectRule) -> None:
    walls = torch.randn(2, 512, generator=torch.Generator().manual_seed(4))

    said = rule.evidence(walls, torch.tensor([[True, True, False], [False, False, False]]))

    assert said[0, 1] != 0
    assert said[0, [0, 2]].tolist() == said[1, [0, 2]].tolist() == [0, 0]
    assert said[1, 1] == 0


@torch.inference_mode()
def test_signatures_are_unit_vectors_whose_cosines_are_those_of_the_class_probabilities(
    rule: DefectRule,
) -> None:
    embeddings = torch.nn.functional.normalize(
        torch.randn(6, 512, generator=torch.Generator().manual_seed(4)) + 20 * rule.embedder.centres.T.repeat(2, 1),
        dim=1,
    )

    probabilities = rule.probabilities(rule.embedder.logits(embeddings))
    signatures = rule.signature(probabilities)

    unit = torch.nn.functional.normalize(probabilities, dim=1)
    assert signatures.shape == (6, 512)
    torch.testing.assert_close(signatures @ signatures.T, unit @ unit.T)
