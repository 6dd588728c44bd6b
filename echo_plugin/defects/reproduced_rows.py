# SPDX-License-Identifier: Apache-2.0
"""The rows of the reproduced table of the ASD/VSD paper: which network, loss and beginning each line trains."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SWEEP_SCALES, SWEEP_MARGINS = (8.0, 16.0, 30.0, 64.0), (0.1, 0.2, 0.3, 0.4, 0.5)
PAPER_SETTING = "s 64, m 0.5 (the paper's)"
FACE_SIZE_PX = 112
"""The input that face-recognition weights were made for."""


@dataclass(frozen=True)
class Row:
    """One line of the table. ``options`` : what it changes of a training; None: no network, but HOG and an SVM."""

    name: str
    options: dict[str, Any] | None = field(default_factory=dict)

    @property
    def file(self) -> str:
        """Part of a file's name."""
        return "".join(letter if letter.isalnum() else "_" for letter in self.name.lower())


ARCFACE_AND_SOFTMAX = {
    "ImageNet": ("ArcFace, ImageNet", "softmax, ImageNet"),
    "random weights": ("ArcFace, random weights", "softmax, random weights"),
    "each wall, view encoder": ("each wall, ArcFace, view encoder", "each wall, softmax, view encoder"),
    "each wall, random weights": ("each wall, ArcFace, random weights", "each wall, softmax, random weights"),
}
"""Pairs of rows that differ in the loss alone: the paper compares it among networks that begin alike."""


def paper_rows(backbone: str = "resnet50", image_size: int | None = None) -> list[Row]:
    """Return the rows of the paper's table; each loss with ImageNet's weights and without any.

    ``backbone`` : of those that the paper trains as ResNet-50. ``image_size`` : px; None: the paper's 224.
    """
    paper: dict[str, Any] = {"recipe": "paper", "start": "scratch", "image_size": image_size}
    own, dense = paper | {"backbone": backbone}, paper | {"backbone": "densenet121", "head": "softmax"}
    softmax, imagenet = {"head": "softmax"}, {"start": "imagenet"}
    return [
        Row("ArcFace, face-pretrained", paper | {"backbone": "iresnet50", "start": "face", "image_size": FACE_SIZE_PX}),
        Row("ArcFace, ImageNet", own | imagenet),
        Row("softmax, ImageNet", own | softmax | imagenet),
        Row("ArcFace, random weights", own),
        Row("softmax, random weights", own | softmax),
        Row("DenseNet-121 softmax, ImageNet", dense | imagenet),
        Row("DenseNet-121 softmax, random weights", dense),
        Row("HOG + SVM", None),
    ]


def own_rows() -> list[Row]:
    """Return ours: a crop for each wall, with two losses and two beginnings."""
    return [
        Row("each wall, ArcFace, view encoder", {"start": "views"}),
        Row("each wall, softmax, view encoder", {"start": "views", "head": "softmax"}),
        Row("each wall, ArcFace, random weights", {"start": "scratch"}),
        Row("each wall, softmax, random weights", {"start": "scratch", "head": "softmax"}),
    ]


def more_rows() -> list[Row]:
    """Return other losses of ours, and both septa in one crop."""
    return [
        Row("each wall, CosFace, view encoder", {"start": "views", "head": "cosface"}),
        Row("each wall, SubCenter, view encoder", {"start": "views", "head": "subcenter"}),
        Row(
            "both in one, ArcFace, view encoder",
            {"start": "views", "cropping": "union", "image_size": 160},
        ),
    ]


def sweep_rows() -> list[Row]:
    """Return every s and m with crops of each wall, and the paper's s and m among them."""
    rows = [{"scale": s, "margin_rad": m, "start": "views"} for s in SWEEP_SCALES for m in SWEEP_MARGINS]
    names = [f"s {row['scale']:g}, m {row['margin_rad']:g}" for row in rows]
    return [
        Row(PAPER_SETTING if PAPER_SETTING.startswith(name) else name, row)
        for name, row in zip(names, rows, strict=True)
    ]
