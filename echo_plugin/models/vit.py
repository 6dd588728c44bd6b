# SPDX-License-Identifier: Apache-2.0
"""Vision transformers as encoders of frames: timm's network in our sizes, for one grey channel, with fixed positions.

timm is imported when the first one is made: predictions by other networks do not wait for it.

References
----------
Dosovitskiy 2021 (arXiv 2010.11929); positions as in He 2022, "Masked autoencoders" (arXiv 2111.06377).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


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


def build_vit(name: str, input_size_px: int, *, channels: int = 1) -> nn.Module:
    """Return a transformer for (N, channels, S, S) that answers with (N, width): the mean of its patches' tokens.

    Its parameters are named as in timm and in the published masked autoencoders. Weights are random, positions those
    of `sine_positions`.
    """
    from timm.models.vision_transformer import VisionTransformer

    shape = require_vit(name, input_size_px)
    vit = VisionTransformer(
        img_size=input_size_px,
        patch_size=shape.patch_px,
        in_chans=channels,
        num_classes=0,
        global_pool="avg",
        fc_norm=False,  # the norm stands before the mean, as where the checkpoints were made
        embed_dim=shape.width,
        depth=shape.depth,
        num_heads=shape.heads,
    )
    assert vit.pos_embed is not None
    with torch.no_grad():
        vit.pos_embed.copy_(sine_positions(input_size_px // shape.patch_px, shape.width))
    return vit


def sine_positions(grid: int, width: int) -> Tensor:
    """Return (1, 1 + grid**2, width) positions of patches, row by row, after a row of zeros for the class token.

    The first half of a row is made of the column of the patch, the second half of its row; each is sines, then cosines.

    Raises
    ------
    ValueError
        If ``width`` is no multiple of 4.
    """
    if width % 4:
        msg = f"Positions of {width} values cannot be made; a multiple of 4 is accepted."
        raise ValueError(msg)
    rates = 1 / 10_000 ** (torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * rates
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # (grid, width / 2)
    of_column = waves[None, :, :].expand(grid, grid, -1)
    of_row = waves[:, None, :].expand(grid, grid, -1)
    patches = torch.cat([of_column, of_row], dim=2).reshape(grid * grid, width)
    return torch.cat([torch.zeros(1, width, dtype=torch.float64), patches])[None].float()
