# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
import torch
from torch import nn

from echo_plugin.models.defect_embedder import (
    DefectEmbedder,
    EmbedderConfig,
    FiniteArcFaceLoss,
    FiniteSubCenterLoss,
    SharedCosFaceLoss,
)

COSINES = torch.tensor([[0.8, 0.1, -0.3], [-0.95, 0.2, 0.1]], dtype=torch.float64)
LABELS = torch.tensor([0, 0])


@pytest.fixture(scope="module")
def embedder() -> DefectEmbedder:
    torch.manual_seed(0)
    return DefectEmbedder(EmbedderConfig(input_size_px=64, temperature=2.0)).eval()


def crops(count: int) -> torch.Tensor:
    return torch.randn(count, 1, 64, 64, generator=torch.Generator().manual_seed(2))


class _GivenCosines(FiniteArcFaceLoss):
    """ArcFace on cosines that a test writes down."""

    def get_cosine(self, embeddings: torch.Tensor) -> torch.Tensor:
        return embeddings


def test_arcface_has_the_published_values() -> None:
    loss = _GivenCosines(nn.Parameter(torch.zeros(3, 3, dtype=torch.float64)), margin_rad=0.5, scale=64)

    assert loss(COSINES, LABELS).item() == pytest.approx(44.47163870778622, abs=1e-9)


def test_arcface_equals_a_second_derivation_by_angles() -> None:
    torch.manual_seed(3)
    centres, embeddings = torch.randn(8, 3, dtype=torch.float64), torch.randn(5, 8, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 1, 0])

    loss = FiniteArcFaceLoss(nn.Parameter(centres.clone()), margin_rad=0.3, scale=16)(embeddings, labels).item()

    expected = 0.0
    for embedding, label in zip(embeddings, labels, strict=True):
        logits = []
        for k in range(3):
            cosine = float(embedding @ centres[:, k] / embedding.norm() / centres[:, k].norm())
            angle = math.acos(cosine)
            if k == label:
                cosine = math.cos(angle + 0.3) if angle <= math.pi - 0.3 else cosine - 0.3 * math.sin(0.3)
            logits.append(16 * cosine)
        expected += math.log(sum(math.exp(z) for z in logits)) - logits[int(label)]
    assert loss == pytest.approx(expected / 5, abs=1e-9)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_gradients_are_finite_on_and_opposite_a_centre(sign: float) -> None:
    centres = nn.Parameter(torch.eye(4, 3))
    embeddings = (sign * torch.eye(4, 3).T).clone().requires_grad_()

    FiniteArcFaceLoss(centres, margin_rad=0.5, scale=64)(embeddings, torch.tensor([0, 1, 2])).backward()

    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()
    assert centres.grad is not None
    assert centres.grad.isfinite().all()


def test_loss_trains_centres_and_backbone() -> None:
    network = DefectEmbedder(EmbedderConfig(input_size_px=64))

    network.loss(network(crops(4)), torch.tensor([0, 1, 2, 0])).backward()

    assert network.centres.grad is not None
    assert network.centres.grad.abs().sum() > 0
    assert network.backbone.conv1.weight.grad.abs().sum() > 0


def test_centres_are_published_with_the_model(embedder: DefectEmbedder) -> None:
    assert embedder.state_dict()["centres"].shape == (512, 3)


def test_embeddings_are_of_unit_length_and_batch_equals_single(embedder: DefectEmbedder) -> None:
    with torch.inference_mode():
        together = embedder(crops(3))
        alone = torch.cat([embedder(crop[None]) for crop in crops(3)])

    np.testing.assert_allclose(together.norm(dim=1), torch.ones(3), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-5)


def test_no_crops_in_no_embeddings_out(embedder: DefectEmbedder) -> None:
    assert embedder(torch.zeros(0, 1, 64, 64)).shape == (0, 512)


def test_angle_of_a_centre_to_itself_is_zero(embedder: DefectEmbedder) -> None:
    angles = embedder.angles(embedder.centres.detach().T)

    assert angles.diagonal().abs().max() < 2e-3
    assert (angles >= 0).all()
    assert (angles <= math.pi).all()


def test_probabilities_are_the_softmax_of_scaled_cosines_over_the_temperature(embedder: DefectEmbedder) -> None:
    embeddings = torch.randn(2, 512, generator=torch.Generator().manual_seed(4))

    with torch.inference_mode():
        probabilities = embedder.probabilities(embedder.logits(embeddings))
        weights = torch.exp(torch.cos(embedder.angles(embeddings)) * 16.0 / 2.0)

    np.testing.assert_allclose(probabilities, weights / weights.sum(dim=1, keepdim=True), rtol=1e-3, atol=1e-5)


def test_margin_in_degrees_is_refused() -> None:
    with pytest.raises(ValueError, match=r"margin_rad 28\.6; .* 0 to 1\.6 rad"):
        EmbedderConfig(margin_rad=28.6)


def test_one_sub_centre_is_arcface_and_more_take_the_nearest() -> None:
    torch.manual_seed(3)
    embeddings, labels = torch.randn(5, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 1, 0])
    centres = torch.randn(8, 3, dtype=torch.float64)
    doubled = torch.stack([centres, -centres], dim=2).reshape(8, 6)  # each class: a centre and its opposite

    plain = FiniteArcFaceLoss(nn.Parameter(centres.clone()), margin_rad=0.3, scale=16)
    single = FiniteSubCenterLoss(nn.Parameter(centres.clone()), margin_rad=0.3, scale=16, sub_centres=1)
    double = FiniteSubCenterLoss(nn.Parameter(doubled), margin_rad=0.3, scale=16, sub_centres=2)

    assert single(embeddings, labels).item() == pytest.approx(plain(embeddings, labels).item(), abs=1e-12)
    torch.testing.assert_close(double.get_cosine(embeddings), plain.get_cosine(embeddings).abs(), atol=1e-5, rtol=0)


def test_cosface_takes_the_margin_off_the_cosine() -> None:
    torch.manual_seed(3)
    centres, embeddings = torch.randn(8, 3), torch.randn(4, 8)
    labels = torch.tensor([0, 1, 2, 1])

    loss = SharedCosFaceLoss(nn.Parameter(centres.clone()), margin=0.35, scale=30)(embeddings, labels)

    cosines = torch.nn.functional.normalize(embeddings, dim=1) @ torch.nn.functional.normalize(centres, dim=0)
    lowered = 30 * (cosines - 0.35 * torch.nn.functional.one_hot(labels, 3))
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(lowered, labels))


@pytest.mark.parametrize("head", ["arcface", "subcenter", "cosface", "softmax"])
def test_every_head_learns_and_answers_for_four_classes(head: str) -> None:
    torch.manual_seed(0)
    config = EmbedderConfig(input_size_px=64, classes=4, head=head, sub_centres=2 if head == "subcenter" else 1)
    network = DefectEmbedder(config)

    network.loss(network(crops(4)), torch.tensor([0, 1, 2, 3])).backward()
    with torch.inference_mode():
        embeddings = network.eval()(crops(3))
        probabilities = network.probabilities(network.logits(embeddings))

    assert network.centres.grad.abs().sum() > 0
    assert probabilities.shape == network.angles(embeddings).shape == (3, 4)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(3))


def pooled(embedder: DefectEmbedder, order: list[int], focus: float, weights: torch.Tensor) -> torch.Tensor:
    embeddings = torch.randn(5, 512, generator=torch.Generator().manual_seed(4))
    shown = torch.tensor([[True, True, False], [True, False, True]] * 2 + [[True, True, True]])
    with torch.inference_mode():
        return embedder.pool(embeddings[order], weights[order], shown[order], focus)


def test_pooling_without_focus_is_the_mean_by_detection_scores(embedder: DefectEmbedder) -> None:
    weights = torch.tensor([0.9, 0.1, 0.5, 0.5, 0.2])
    embeddings = torch.randn(5, 512, generator=torch.Generator().manual_seed(4))

    expected = torch.nn.functional.normalize((weights[:, None] * embeddings).sum(dim=0, keepdim=True), dim=1)
    torch.testing.assert_close(pooled(embedder, [0, 1, 2, 3, 4], 0.0, weights), expected)


def test_pooling_does_not_depend_on_the_order(embedder: DefectEmbedder) -> None:
    weights = torch.tensor([0.9, 0.1, 0.5, 0.5, 0.2])

    first, second = (pooled(embedder, order, 0.7, weights) for order in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1]))

    torch.testing.assert_close(first, second)


def test_a_wall_with_a_hole_speaks_for_the_cine_and_only_of_what_it_can_have(embedder: DefectEmbedder) -> None:
    centres = torch.nn.functional.normalize(embedder.centres.detach().T, dim=1)  # Normal, ASD, VSD
    embeddings, ones = centres[[0, 1]], torch.ones(2)
    interventricular, interatrial = [True, False, True], [True, True, False]

    with torch.inference_mode():
        hole = embedder.pool(embeddings, ones, torch.tensor([interventricular, interatrial]), 1.0)
        impossible = embedder.pool(embeddings, ones, torch.tensor([interatrial, interventricular]), 1.0)

    assert embedder.cosines(hole)[0, 1] > 0.99
    assert embedder.cosines(impossible)[0, 1] < 0.9


def test_frames_of_a_wall_are_joined_before_walls_are(embedder: DefectEmbedder) -> None:
    embeddings = torch.randn(4, 512, generator=torch.Generator().manual_seed(4))
    shown = torch.ones(4, 3, dtype=torch.bool)

    with torch.inference_mode():
        walls, can_show = embedder.pool_walls(embeddings, torch.ones(4), shown, ["a", "b", "b", "b"])
        cine, logits = embedder.pool_cine(walls, can_show)

    each = [torch.nn.functional.normalize(part.mean(dim=0), dim=0) for part in (embeddings[:1], embeddings[1:])]
    torch.testing.assert_close(walls, torch.stack(each))
    torch.testing.assert_close(cine[0], torch.nn.functional.normalize(each[0] + each[1], dim=0))
    torch.testing.assert_close(logits, embedder.logits(cine))


def telling(**changes: object) -> DefectEmbedder:
    torch.manual_seed(0)
    return DefectEmbedder(EmbedderConfig(input_size_px=64, **changes)).eval()


@torch.inference_mode()
def test_a_wall_that_looks_normal_hardly_speaks_against_a_hole_that_most_planes_miss() -> None:
    often, seldom = telling(), telling(shown_share=(1.0, 1.0, 0.25))
    walls, shown = torch.nn.functional.normalize(often.centres.detach().T[:1], dim=1), torch.ones(1, 3, dtype=bool)

    against, hardly = (model.evidence(walls, shown)[0, 2] for model in (often, seldom))

    assert against < -4
    assert hardly == pytest.approx(math.log(0.75 + 0.25 * math.exp(against)), rel=1e-6)


@torch.inference_mode()
def test_evidence_is_about_what_a_wall_can_show_and_never_about_normal(embedder: DefectEmbedder) -> None:
    walls = torch.randn(2, 512, generator=torch.Generator().manual_seed(4))

    said = embedder.evidence(walls, torch.tensor([[True, True, False], [False, False, False]]))

    assert said[0, 1] != 0
    assert said[0, [0, 2]].tolist() == said[1, [0, 2]].tolist() == [0, 0]
    assert said[1, 1] == 0


@torch.inference_mode()
def test_signatures_are_unit_vectors_whose_cosines_are_those_of_the_class_probabilities(
    embedder: DefectEmbedder,
) -> None:
    embeddings = torch.nn.functional.normalize(
        torch.randn(6, 512, generator=torch.Generator().manual_seed(4)) + 20 * embedder.centres.T.repeat(2, 1), dim=1
    )

    probabilities = embedder.probabilities(embedder.logits(embeddings))
    signatures = embedder.signature(probabilities)

    unit = torch.nn.functional.normalize(probabilities, dim=1)
    assert signatures.shape == (6, 512)
    torch.testing.assert_close(signatures @ signatures.T, unit @ unit.T)


def test_a_new_head_leaves_the_backbone_as_it_was() -> None:
    network = telling()
    before = {name: value.clone() for name, value in network.state_dict().items()}

    network.renew_head()

    after = network.state_dict()
    assert all(torch.equal(after[n], v) for n, v in before.items() if n.startswith("backbone."))
    assert not torch.equal(after["centres"], before["centres"])
    assert not torch.equal(after["project.weight"], before["project.weight"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": "triplet"}, r"head 'triplet' is unknown; \['arcface', 'subcenter', 'cosface', 'softmax'\]"),
        ({"normal_id": 3}, "3 classes, normal_id 3"),
        ({"sub_centres": 2}, "head 'arcface' and 2 sub-centres"),
        ({"shown_share": (1.0, 0.5)}, r"3 classes, .* shown_share \(1\.0, 0\.5\)"),
        ({"shown_share": (1.0, 0.5, 0.0)}, "shares above 0"),
        ({"backbone": "vgg"}, r"backbone 'vgg' is unknown; \['densenet121', 'iresnet50', 'resnet18', 'resnet50'\]"),
    ],
)
def test_an_impossible_embedder_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EmbedderConfig(**changes)
