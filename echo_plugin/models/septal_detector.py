# SPDX-License-Identifier: Apache-2.0
"""The septal detector: a light RetinaNet on one square greyscale frame, a box and a septum out.

torchvision's RetinaNet (Lin 2017, arXiv 1708.02002) with Smooth L1 for the boxes, pyramid levels at strides 8, 16, 32
and anchors of the shapes that septa have. Class ids follow ``anatomy.DETECTED_SEPTA``.
Pixels are prepared in ``preprocess``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from echo_plugin.anatomy import DETECTED_SEPTA
from echo_plugin.models.backbones import standardise
from echo_plugin.models.lean_torchvision import (
    AnchorGenerator,
    FeaturePyramidNetwork,
    ImageList,
    IntermediateLayerGetter,
    RetinaNet,
    RetinaNetHead,
    batched_nms,
    clip_boxes_to_image,
    mobilenet_v3_large,
    resnet18,
    resnet50,
)
from echo_plugin.network_config import ANCHOR_RATIOS, ANCHOR_SIDES, ANCHORS_PER_LEVEL, STRIDES_PX, DetectorConfig


def _mobilenet_v3_large() -> tuple[nn.Module, dict[str, int]]:
    # torchvision trains this network for weeks with momentum 0.01; in a short training the running
    # statistics would stay near their initial values and evaluation would fail.
    norm = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.1)
    features = mobilenet_v3_large(weights=None, norm_layer=norm).features[:-1]
    features[0][0] = _grey_convolution(features[0][0])
    return features, {"6": 40, "12": 112, "15": 160}  # the last block of each stride


def _resnet18() -> tuple[nn.Module, dict[str, int]]:
    network = resnet18(weights=None)
    network.conv1 = _grey_convolution(network.conv1)
    return network, {"layer2": 128, "layer3": 256, "layer4": 512}


def _resnet50() -> tuple[nn.Module, dict[str, int]]:
    network = resnet50(weights=None)
    network.conv1 = _grey_convolution(network.conv1)
    return network, {"layer2": 512, "layer3": 1024, "layer4": 2048}


BACKBONES = {"mobilenet_v3_large": _mobilenet_v3_large, "resnet18": _resnet18, "resnet50": _resnet50}


def _grey_convolution(rgb: nn.Conv2d) -> nn.Conv2d:
    """Return a first convolution for one channel whose answer to grey pixels equals the RGB one's."""
    grey = nn.Conv2d(1, rgb.out_channels, rgb.kernel_size, rgb.stride, rgb.padding, bias=rgb.bias is not None)  # type: ignore[arg-type]
    with torch.no_grad():
        grey.weight.copy_(rgb.weight.sum(dim=1, keepdim=True))
    return grey


class PyramidBackbone(nn.Module):
    """Feature maps of ``channels`` channels at strides 8, 16 and 32."""

    def __init__(self, name: str, channels: int, *, is_standardised: bool = False) -> None:
        super().__init__()
        self.is_standardised = is_standardised
        body, layers = BACKBONES[name]()
        self.body = IntermediateLayerGetter(body, {layer: str(i) for i, layer in enumerate(layers)})
        self.fpn = FeaturePyramidNetwork(list(layers.values()), channels, norm_layer=nn.BatchNorm2d)
        self.out_channels = channels

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        frames = standardise(images) if self.is_standardised else images
        features: OrderedDict[str, Tensor] = self.fpn(self.body(frames))
        return features


class ExactAnchors(AnchorGenerator):
    """Anchors in single precision: in bfloat16, the type of the features, 200 px would be off by half a px."""

    def __init__(self, config: DetectorConfig) -> None:
        side = config.input_size_px
        sizes = tuple(tuple(part * side for part in level) for level in ANCHOR_SIDES)
        super().__init__(sizes, (ANCHOR_RATIOS,) * len(ANCHOR_SIDES))
        if config.anchor_shapes:
            halves = torch.tensor(config.anchor_shapes).reshape(len(STRIDES_PX), ANCHORS_PER_LEVEL, 2) * side / 2
            self.cell_anchors = list(torch.cat([-halves, halves], dim=2))

    def set_cell_anchors(self, dtype: torch.dtype, device: torch.device) -> None:
        super().set_cell_anchors(torch.float32, device)


class FramesAsTheyAre(nn.Module):
    """The place of torchvision's resizing transform: frames come prepared, boxes leave in the same pixels."""

    def forward(
        self, images: Tensor, targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[ImageList, list[dict[str, Tensor]] | None]:
        N, _, H, W = images.shape
        return ImageList(images, [(H, W)] * N), targets

    def postprocess(self, result: list[dict[str, Tensor]], *_sizes: object) -> list[dict[str, Tensor]]:
        return result


class SeptalDetector(RetinaNet):
    """RetinaNet on (N, 1, S, S) frames from ``preprocess.normalise``.

    Training: ``detector(frames, targets)`` with one target per frame, ``boxes`` (M, 4) float XYXY px of the input and
    ``labels`` (M,) int64 ids into ``anatomy.DETECTED_SEPTA``; a frame without a septum has empty boxes (0, 4).
    Returns ``{"classification", "bbox_regression"}``, both scalar losses.

    Evaluation: ``detector(frames)`` returns one ``{"boxes", "scores", "labels"}`` per frame, best score first;
    boxes are px of the input, inside it; no frames in, empty list out.
    """

    def __init__(self, config: DetectorConfig) -> None:
        backbone = PyramidBackbone(config.backbone, config.pyramid_channels, is_standardised=config.is_standardised)
        head = RetinaNetHead(
            config.pyramid_channels,
            ANCHORS_PER_LEVEL,
            len(DETECTED_SEPTA),
            # not batch normalisation: one head sees three levels of different statistics
            norm_layer=partial(nn.GroupNorm, 16),
        )
        for branch in (head.classification_head, head.regression_head):
            branch.conv = branch.conv[: config.head_convolutions]
        head.regression_head._loss_type = "smooth_l1"
        super().__init__(
            backbone,
            num_classes=len(DETECTED_SEPTA),
            anchor_generator=ExactAnchors(config),
            head=head,
            score_thresh=config.score_threshold,
            nms_thresh=config.nms_iou,
            detections_per_img=config.boxes_per_frame,
        )
        self.transform = FramesAsTheyAre()
        self.config = config

    def use_anchors(self, shapes: Sequence[float]) -> None:
        """Take other anchors, as ``DetectorConfig.anchor_shapes`` has them; the weights stay what they were."""
        self.config = replace(self.config, anchor_shapes=tuple(shapes))
        self.anchor_generator = ExactAnchors(self.config)

    def forward(
        self, images: Tensor, targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        if images.ndim != 4 or images.shape[1] != 1:
            msg = f"Septal detector was given frames of shape {tuple(images.shape)}; (N, 1, S, S) is accepted."
            raise ValueError(msg)
        if len(images) == 0:
            return []
        answer: dict[str, Tensor] | list[dict[str, Tensor]] = super().forward(images, targets)
        return answer

    def compute_loss(
        self, targets: list[dict[str, Tensor]], head_outputs: dict[str, Tensor], anchors: list[Tensor]
    ) -> dict[str, Tensor]:
        """Return both losses, computed in single precision whatever the network runs in."""
        exact = {name: output.float() for name, output in head_outputs.items()}
        losses: dict[str, Tensor] = super().compute_loss(targets, exact, anchors)
        return losses

    def postprocess_detections(
        self,
        head_outputs: dict[str, list[Tensor]],
        anchors: list[list[Tensor]],
        image_shapes: Sequence[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Return the boxes of all frames after one suppression over the batch; torchvision loops over frames."""
        logits = torch.cat(head_outputs["cls_logits"], dim=1).float()  # (N, HWA, K)
        deltas = torch.cat(head_outputs["bbox_regression"], dim=1).float()  # (N, HWA, 4)
        N, _, K = logits.shape
        scores, flat = logits.sigmoid().flatten(1).topk(min(self.topk_candidates, logits[0].numel()), dim=1)
        frame, rank = torch.where(scores > self.score_thresh)
        scores, flat = scores[frame, rank], flat[frame, rank]
        anchor, label = flat // K, flat % K
        boxes = self.box_coder.decode_single(deltas[frame, anchor], torch.cat(anchors[0])[anchor])
        boxes = clip_boxes_to_image(boxes, image_shapes[0])
        kept = batched_nms(boxes, scores, frame * K + label, self.nms_thresh)
        boxes, scores, label, frame = boxes[kept], scores[kept], label[kept], frame[kept]
        counts = torch.bincount(frame, minlength=N).tolist()
        order = torch.argsort(frame, stable=True)  # by frame, best score first
        split = [part[order].split(counts) for part in (boxes, scores, label)]
        top = self.detections_per_img
        return [{"boxes": b[:top], "scores": s[:top], "labels": c[:top]} for b, s, c in zip(*split, strict=True)]
