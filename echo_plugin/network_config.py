# SPDX-License-Identifier: Apache-2.0
"""The numbers that rebuild each network; a model card repeats them. No torch: the command line and cards ask them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

TemporalHead = Literal["weave", "gru", "attention", "mean"]
"""What is made of the frames of a clip; ``ViewConfig.temporal`` says what each does."""
Sampling = Literal["consecutive", "spaced"]
"""Which frames make a clip; ``ViewConfig.sampling`` says what each does."""

TEMPORAL_HEADS: tuple[str, ...] = get_args(TemporalHead)
SAMPLINGS: tuple[str, ...] = get_args(Sampling)
WALLS, UNION = "walls", "union"
CROPPINGS = (WALLS, UNION)
RESNET_NAMES = ("resnet18", "resnet50")
BODY_NAMES = (*RESNET_NAMES, "iresnet50", "densenet121")
DETECTOR_BODIES = (*RESNET_NAMES, "mobilenet_v3_large")
HEADS = ("arcface", "subcenter", "cosface", "softmax")


@dataclass(frozen=True)
class VitShape:
    """The numbers of one size: ``width`` of a token, ``depth`` in blocks, attention ``heads``, side of a patch."""

    width: int
    depth: int
    heads: int
    patch_px: int


VITS = {
    "vit_base_patch16": VitShape(768, 12, 12, 16),
    "vit_small_patch16": VitShape(384, 12, 6, 16),
    "vit_tiny_patch16": VitShape(192, 12, 3, 16),
    "vit_tiny_patch8": VitShape(192, 12, 3, 8),
    "vit_micro_patch8": VitShape(128, 6, 4, 8),
}
"""The first is the papers' and the published checkpoints'; the last is ours, for small pictures on a laptop."""


def require_vit(name: str, input_size_px: int) -> VitShape:
    """Return the shape of a transformer, or refuse its name, or pictures that its patches do not fill.

    Raises
    ------
    ValueError
        Naming what was found and what is accepted.
    """
    if name not in VITS:
        msg = f"Vision transformer {name!r} is unknown; {', '.join(VITS)} are accepted."
        raise ValueError(msg)
    if input_size_px % VITS[name].patch_px:
        msg = f"{name} sees {input_size_px} px; a multiple of its patch, {VITS[name].patch_px} px, is accepted."
        raise ValueError(msg)
    return VITS[name]


STRIDES_PX = (8, 16, 32)

ANCHOR_SIDES = ((24 / 256, 34 / 256), (48 / 256, 68 / 256), (96 / 256, 136 / 256))
"""Square roots of the anchor areas per level, as parts of the input side. With ANCHOR_RATIOS the best anchor reaches
IoU 0.5 with every interatrial box of 15-60 x 25-70 px and interventricular box of 25-90 x 70-150 px at 256 px."""

ANCHOR_RATIOS = (0.4, 1.0, 2.0, 3.5)
"""Heights over widths: walls stand upright in apical views and lie flat in parasternal ones."""

ANCHORS_PER_LEVEL = len(ANCHOR_SIDES[0]) * len(ANCHOR_RATIOS)


@dataclass(frozen=True)
class DetectorConfig:
    """The numbers that rebuild a septal detector; a model card repeats them."""

    backbone: str = "resnet18"
    input_size_px: int = 192
    pyramid_channels: int = 96
    head_convolutions: int = 2
    """Convolutions before each output; RetinaNet has 4, which cost most of its time."""
    score_threshold: float = 0.05
    """Boxes below are not returned; a low bar, so that precision-recall curves are complete."""
    nms_iou: float = 0.5
    boxes_per_frame: int = 20
    anchor_shapes: tuple[float, ...] = ()
    """Width, height of each anchor as parts of the input side, finest level first; empty: the fixed family above."""
    is_standardised: bool = False
    """Whether every frame is first brought to the same contrast."""
    kind: Literal["detector"] = "detector"

    def __post_init__(self) -> None:
        if self.backbone not in DETECTOR_BODIES:
            msg = f"Detector backbone {self.backbone!r} is unknown; {sorted(DETECTOR_BODIES)} are accepted."
            raise ValueError(msg)
        if self.input_size_px % STRIDES_PX[-1] or self.input_size_px < 64:
            msg = f"Detector input_size_px is {self.input_size_px}; a multiple of {STRIDES_PX[-1]} from 64 is accepted."
            raise ValueError(msg)
        numbers = 2 * ANCHORS_PER_LEVEL * len(STRIDES_PX)
        if len(self.anchor_shapes) not in (0, numbers) or not all(0 < part < 4 for part in self.anchor_shapes):
            found = len(self.anchor_shapes)
            msg = f"Detector anchor_shapes are {found} numbers; none, or {numbers} between 0 and 4, are accepted."
            raise ValueError(msg)


@dataclass(frozen=True)
class EmbedderConfig:
    """The numbers that rebuild a defect embedder; a model card repeats them."""

    backbone: str = "resnet18"
    input_size_px: int = 160
    embedding_size: int = 512
    classes: int = 3
    scale: float = 16.0
    """s of ArcFace. The paper's 64 was made for thousands of identities; three classes saturate its softmax."""
    margin_rad: float = 0.3
    """m of ArcFace, rad; the paper has 0.5. With the head "cosface" it is taken off the cosine."""
    dropout: float = 0.0
    head: str = "arcface"
    sub_centres: int = 1
    """Centres of each class; more than one with the head "subcenter"."""
    is_standardised: bool = False
    """Whether every crop is first brought to the same contrast."""
    cropping: str = "union"
    """What is embedded: walls, each septum in a square of its own, or union, one square round both."""
    kind: Literal["embedder"] = "embedder"

    def __post_init__(self) -> None:
        if self.backbone not in BODY_NAMES:
            msg = f"Embedder backbone {self.backbone!r} is unknown; {sorted(BODY_NAMES)} are accepted."
            raise ValueError(msg)
        if self.head not in HEADS:
            msg = f"Embedder head {self.head!r} is unknown; {list(HEADS)} are accepted."
            raise ValueError(msg)
        if not (self.scale > 0 and 0 <= self.margin_rad < 1.6):
            msg = (
                f"Embedder has scale {self.scale} and margin_rad {self.margin_rad};"
                " a positive scale and a margin of 0 to 1.6 rad are accepted."
            )
            raise ValueError(msg)
        if self.classes < 2 or (self.sub_centres > 1) != (self.head == "subcenter"):
            msg = (
                f"Embedder has {self.classes} classes, head {self.head!r} and {self.sub_centres} sub-centres; 2 classes"
                " or more, and several sub-centres with the head 'subcenter' alone, are accepted."
            )
            raise ValueError(msg)
        if self.cropping not in CROPPINGS:
            msg = f"Embedder sees crops {self.cropping!r}; {list(CROPPINGS)} are accepted."
            raise ValueError(msg)


@dataclass(frozen=True)
class ViewConfig:
    """The numbers that rebuild a view classifier; a model card repeats them."""

    classes: int
    backbone: str = "resnet18"
    """A ResNet, or one of ``vit.VITS``."""
    input_size_px: int = 160
    temporal: str = "weave"
    """weave: woven chunks into a GRU; gru: frame after frame into a GRU; attention: the chunks of all frames attend to
    one another; mean: mean probabilities of the frames, which for clips of one frame is the image classifier."""
    sampling: str = "consecutive"
    """consecutive: neighbouring frames make a clip; spaced: frames from all over the cine."""
    frames_per_clip: int = 4
    """T of the paper."""
    chunks: int = 4
    """K of the paper: an embedding is cut in so many parts (weave and attention)."""
    gru_size: int = 256
    gru_layers: int = 2
    stem_dropout: float = 0.5
    """The paper's dropout after the first pooling (0.5); it slows short trainings."""
    gru_dropout: float = 0.5
    head_dropout: float = 0.6
    is_standardised: bool = False
    """Whether every frame is first brought to the same contrast."""
    border: float = 0.0
    """Part of the side that is cut off all round before the network looks."""
    kind: Literal["views"] = "views"

    def __post_init__(self) -> None:
        bodies = sorted({*RESNET_NAMES, *VITS})
        if self.backbone not in bodies or self.temporal not in TEMPORAL_HEADS:
            msg = (
                f"View classifier has backbone {self.backbone!r} and temporal head {self.temporal!r};"
                f" {bodies} and {list(TEMPORAL_HEADS)} are accepted."
            )
            raise ValueError(msg)
        if self.backbone in VITS:
            require_vit(self.backbone, self.input_size_px)
        if not 0 <= self.border < 0.4:
            msg = f"View classifier cuts off a border of {self.border}; 0 to 0.4 of the side is accepted."
            raise ValueError(msg)
        if self.sampling not in SAMPLINGS:
            msg = f"View classifier has sampling {self.sampling!r}; {list(SAMPLINGS)} are accepted."
            raise ValueError(msg)
        if self.classes < 2 or self.frames_per_clip < 1 or self.chunks < 1:
            msg = (
                f"View classifier has {self.classes} classes, {self.frames_per_clip} frames, {self.chunks} chunks;"
                " from 2, 1 and 1 are accepted."
            )
            raise ValueError(msg)


def count_kept(patches: int, mask_ratio: float) -> int:
    """Return how many of so many patches are seen: int(L * (1 - mask_ratio)), as the authors count them."""
    return int(patches * (1 - mask_ratio))


@dataclass(frozen=True)
class MaeConfig:
    """The numbers that rebuild a masked autoencoder; a model card repeats them."""

    backbone: str = "vit_base_patch16"
    input_size_px: int = 224
    channels: int = 1
    mask_ratio: float = 0.75
    """Part of the patches that is hidden; the paper's text says 0.25, its authors' code 0.75."""
    is_patch_normalised: bool = False
    """Whether every patch to be drawn is first brought to mean 0 and deviation 1."""
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    is_standardised: bool = True
    """Whether every frame is first brought to the same contrast, as the view classifier does it."""
    kind: Literal["autoencoder"] = "autoencoder"

    def __post_init__(self) -> None:
        patches = (self.input_size_px // require_vit(self.backbone, self.input_size_px).patch_px) ** 2
        if not 0 < self.mask_ratio < 1:
            msg = f"Masked autoencoder has mask_ratio {self.mask_ratio}; a number between 0 and 1 is accepted."
            raise ValueError(msg)
        if not 0 < count_kept(patches, self.mask_ratio) < patches:
            msg = (
                f"Masked autoencoder has mask_ratio {self.mask_ratio} of {patches} patches; one that leaves at least"
                " one patch seen and one hidden is accepted."
            )
            raise ValueError(msg)
        if self.channels not in (1, 3):
            msg = f"Masked autoencoder has {self.channels} channels; 1 (grey) or 3 (RGB) are accepted."
            raise ValueError(msg)
        if self.decoder_depth < 1 or self.decoder_width % (4 * self.decoder_heads):
            msg = (
                f"Masked autoencoder has a decoder of {self.decoder_depth} blocks, width {self.decoder_width} and"
                f" {self.decoder_heads} heads; from 1 block, a multiple of 4 times the heads as width, are accepted."
            )
            raise ValueError(msg)


NetworkConfig = DetectorConfig | EmbedderConfig | ViewConfig | MaeConfig
