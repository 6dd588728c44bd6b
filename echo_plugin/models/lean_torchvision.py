# SPDX-License-Identifier: Apache-2.0
"""torchvision's networks, imported without the compiler of torch.

``torchvision.ops.roi_align`` imports ``torch._dynamo`` for one question that detection without RoI pooling never asks.
That import costs 3.6 of torchvision's 4.0 s here, in every command a person waits for. A stand-in takes its place while
torchvision is imported; it is removed at once, and asks the real module when it is called.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def _dynamo_postponed() -> Iterator[None]:
    """Let ``from torch._dynamo.utils import is_compile_supported`` give a function that imports it when called."""
    names = ("torch._dynamo", "torch._dynamo.utils")
    if any(name in sys.modules for name in names):
        yield
        return

    def is_compile_supported(device_type: str) -> bool:
        from torch._dynamo.utils import is_compile_supported as answer

        return bool(answer(device_type))

    package, utils = (ModuleType(name) for name in names)
    package.utils = utils  # type: ignore[attr-defined]
    utils.is_compile_supported = is_compile_supported  # type: ignore[attr-defined]
    sys.modules.update(zip(names, (package, utils), strict=True))
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)


try:
    with _dynamo_postponed():
        import torchvision
except (ImportError, AttributeError):  # a torchvision that asks for more of the compiler
    import torchvision  # noqa: F401

from torchvision.models import densenet121, mobilenet_v3_large, resnet18, resnet50  # noqa: E402
from torchvision.models._utils import IntermediateLayerGetter  # noqa: E402
from torchvision.models.detection.anchor_utils import AnchorGenerator  # noqa: E402
from torchvision.models.detection.image_list import ImageList  # noqa: E402
from torchvision.models.detection.retinanet import RetinaNet, RetinaNetHead  # noqa: E402
from torchvision.ops import FeaturePyramidNetwork, batched_nms, clip_boxes_to_image  # noqa: E402

__all__ = [
    "AnchorGenerator",
    "FeaturePyramidNetwork",
    "ImageList",
    "IntermediateLayerGetter",
    "RetinaNet",
    "RetinaNetHead",
    "batched_nms",
    "clip_boxes_to_image",
    "densenet121",
    "mobilenet_v3_large",
    "resnet18",
    "resnet50",
]
