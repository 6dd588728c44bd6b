# SPDX-License-Identifier: Apache-2.0
"""What a person may choose about the masked autoencoder, and the network that follows from it."""

from __future__ import annotations

from dataclasses import dataclass

from echo_plugin.models.masked_autoencoder import MaeConfig
from echo_plugin.training.options import TrainOptions

DEFAULT_BACKBONE, DEFAULT_SIZE_PX = "vit_tiny_patch16", 224
DECODERS = {"vit_base_patch16": (512, 8, 16), "vit_small_patch16": (256, 4, 8), "vit_micro_patch8": (64, 1, 4)}
"""Width, depth and heads of the decoder by encoder; the first is the authors'."""
LIGHT_DECODER = (128, 2, 4)
"""Of the other encoders."""


@dataclass(frozen=True)
class MaeOptions:
    """What a person may choose about the task; ``pictures_every`` : epochs between pictures of it."""

    mask_ratio: float = 0.75
    is_patch_normalised: bool = False
    pictures_every: int = 5

    def __post_init__(self) -> None:
        if not 0 < self.mask_ratio < 1:
            msg = f"Part of the patches to hide is {self.mask_ratio}; a number between 0 and 1 is accepted."
            raise ValueError(msg)
        if self.pictures_every < 1:
            msg = f"Pictures are asked for every {self.pictures_every} epochs; 1 or more is accepted."
            raise ValueError(msg)


def mae_config(options: TrainOptions, task: MaeOptions) -> MaeConfig:
    """Return the network that the options ask for, with a decoder as light as its encoder."""
    backbone = options.backbone or DEFAULT_BACKBONE
    width, depth, heads = DECODERS.get(backbone, LIGHT_DECODER)
    return MaeConfig(
        backbone=backbone,
        input_size_px=options.image_size or DEFAULT_SIZE_PX,
        mask_ratio=task.mask_ratio,
        is_patch_normalised=task.is_patch_normalised,
        decoder_width=width,
        decoder_depth=depth,
        decoder_heads=heads,
    )
