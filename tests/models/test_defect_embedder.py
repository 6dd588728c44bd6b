# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
import torch
from torch import nn

from echo_plugin.models.defect_embedder import DefectEmbedder
from echo_plugin.models.margin_losses import FiniteArcFaceLoss, FiniteSubCenterLoss, SharedCosFaceLoss
from echo_plugin.network_config import EmbedderConfig

COSINES = torch.tensor([[0.8, 0.1, -0.3], [-0.95, 0.2, 0.1]], dtype=torch.float64)
LABELS = torch.tensor([0, 0])


@pytest.fixture(scope="module")
def embedder() -> DefectEmbedder:
    torch.manual_seed(0)
    return DefectEmbedder(EmbedderConfig(input_size_px=64)).eval()


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
        logits = network.logits(embeddings)

    assert network.centres.grad.abs().sum() > 0
    assert logits.shape == network.angles(embeddings).shape == (3, 4)


def test_a_new_head_leaves_the_backbone_as_it_was() -> None:
    network = DefectEmbedder(EmbedderConfig(input_size_px=64))
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
        ({"sub_centres": 2}, "head 'arcface' and 2 sub-centres"),
        ({"cropping": "heart"}, r"crops 'heart'; \['walls', 'union'\]"),
        ({"backbone": "vgg"}, r"backbone 'vgg' is unknown; \['densenet121', 'iresnet50', 'resnet18', 'resnet50'\]"),
    ],
)
def test_an_impossible_embedder_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EmbedderConfig(**changes)
