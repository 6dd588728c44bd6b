# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.ops import sigmoid_focal_loss

from echo_plugin.geometry import box_iou
from echo_plugin.models.septal_detector import SeptalDetector
from echo_plugin.network_config import DetectorConfig

SIZE = 128
TARGET = {"boxes": torch.tensor([[40.0, 20.0, 70.0, 90.0]]), "labels": torch.tensor([1])}
NO_SEPTUM = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}


@pytest.fixture(scope="module")
def detector() -> SeptalDetector:
    torch.manual_seed(0)
    network = SeptalDetector(DetectorConfig(input_size_px=SIZE, score_threshold=0.0))
    torch.nn.init.normal_(network.head.classification_head.cls_logits.weight, std=0.2)
    torch.nn.init.normal_(network.head.regression_head.bbox_reg.weight, std=0.1)
    return network.eval()


def frames(count: int) -> torch.Tensor:
    return torch.randn(count, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("backbone", ["mobilenet_v3_large", "resnet18"])
def test_losses_reach_every_parameter_also_beside_a_frame_without_septum(backbone: str) -> None:
    network = SeptalDetector(DetectorConfig(backbone=backbone, input_size_px=64))
    small = {"boxes": TARGET["boxes"] / 2, "labels": TARGET["labels"]}

    losses = network(torch.randn(2, 1, 64, 64), [small, NO_SEPTUM])
    sum(losses.values()).backward()

    assert set(losses) == {"classification", "bbox_regression"}
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []


def test_only_empty_frames_give_no_box_loss(detector: SeptalDetector) -> None:
    detector.train()

    losses = detector(frames(2), [NO_SEPTUM, NO_SEPTUM])
    detector.eval()

    assert losses["bbox_regression"] == 0
    assert losses["classification"].isfinite()


def test_box_loss_is_smooth_l1_of_the_encoded_boxes(detector: SeptalDetector) -> None:
    anchors = torch.tensor([[40.0, 20.0, 70.0, 90.0]])
    outputs = {"cls_logits": torch.zeros(1, 1, 2), "bbox_regression": torch.tensor([[[0.5, 0.0, 3.0, 0.0]]])}

    losses = detector.compute_loss([TARGET], outputs, [anchors])

    assert losses["bbox_regression"].item() == pytest.approx(0.5 * 0.5**2 + (3.0 - 0.5))  # L1 would give 3.5


def test_focal_loss_has_the_published_values() -> None:
    logits = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0])

    empty = sigmoid_focal_loss(logits, torch.zeros(5), alpha=0.25, gamma=2)
    full = sigmoid_focal_loss(logits, torch.ones(5), alpha=0.25, gamma=2)

    expected_empty = [8.19625e-05, 0.0169935431, 0.1299650964, 0.5264012276, 2.0747103308]
    expected_full = [0.6915701103, 0.1754670759, 0.0433216988, 0.0056645144, 2.73208e-05]
    np.testing.assert_allclose(empty, expected_empty, rtol=1e-5)
    np.testing.assert_allclose(full, expected_full, rtol=1e-5)


def test_boxes_are_inside_the_frame_and_best_first(detector: SeptalDetector) -> None:
    with torch.inference_mode():
        result = detector(frames(1))[0]

    boxes, scores = result["boxes"], result["scores"]
    assert len(boxes) == 20
    assert boxes.min() >= 0
    assert boxes.max() <= SIZE
    assert (boxes[:, 2:] >= boxes[:, :2]).all()
    assert (scores.diff() <= 0).all()
    assert set(result["labels"].tolist()) <= {0, 1}


def test_batch_answers_as_single_frames_do(detector: SeptalDetector) -> None:
    with torch.inference_mode():
        together = detector(frames(3))
        alone = [detector(frame[None])[0] for frame in frames(3)]

    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(a["scores"], b["scores"], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(a["boxes"], b["boxes"], rtol=1e-3, atol=1e-2)


@pytest.mark.heavy
def test_batched_suppression_equals_that_of_torchvision(detector: SeptalDetector) -> None:
    detector.topk_candidates, kept = 10_000, detector.topk_candidates
    with torch.inference_mode():
        features = list(detector.backbone(frames(2)).values())
        outputs = detector.head(features)
        images, _ = detector.transform(frames(2))
        anchors = detector.anchor_generator(images, features)
        counts = [f.shape[2] * f.shape[3] * 8 for f in features]
        split = {key: list(value.split(counts, dim=1)) for key, value in outputs.items()}
        split_anchors = [list(a.split(counts)) for a in anchors]
        ours = detector.postprocess_detections(split, split_anchors, images.image_sizes)
        theirs = RetinaNet.postprocess_detections(detector, split, split_anchors, images.image_sizes)
    detector.topk_candidates = kept

    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a["scores"], b["scores"], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(a["boxes"], b["boxes"], rtol=1e-5, atol=1e-5)


def test_no_frames_in_no_answers_out(detector: SeptalDetector) -> None:
    assert detector(torch.zeros(0, 1, SIZE, SIZE)) == []


def test_colour_frames_are_refused_with_their_shape(detector: SeptalDetector) -> None:
    with pytest.raises(ValueError, match=r"\(1, 3, 128, 128\); \(N, 1, S, S\) is accepted"):
        detector(torch.zeros(1, 3, SIZE, SIZE))


def test_unknown_backbone_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'vgg' is unknown; .*mobilenet_v3_large"):
        DetectorConfig(backbone="vgg")


def test_anchors_are_exact_under_bfloat16(detector: SeptalDetector) -> None:
    features = [torch.zeros(1, 96, SIZE // s, SIZE // s, dtype=torch.bfloat16) for s in (8, 16, 32)]
    images, _ = detector.transform(frames(1))

    low = detector.anchor_generator(images, features)[0]
    exact = detector.anchor_generator(images, [f.float() for f in features])[0]

    assert low.dtype == torch.float32
    assert torch.equal(low, exact)


@pytest.mark.heavy
def test_every_ordinary_septum_has_a_fitting_anchor() -> None:
    network = SeptalDetector(DetectorConfig(input_size_px=256))
    images, _ = network.transform(torch.zeros(1, 1, 256, 256))
    anchors = network.anchor_generator(images, [torch.zeros(1, 1, 256 // s, 256 // s) for s in (8, 16, 32)])[0]
    rng = np.random.default_rng(0)
    width = np.concatenate([rng.uniform(25, 90, 200), rng.uniform(15, 60, 200)])
    height = np.concatenate([rng.uniform(70, 150, 200), rng.uniform(25, 70, 200)])
    x, y = rng.uniform(80, 170, (2, 400))

    boxes = np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], axis=1)
    best = box_iou(boxes, anchors.numpy()).max(axis=1)

    assert best.min() > 0.5
