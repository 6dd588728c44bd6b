# SPDX-License-Identifier: Apache-2.0
"""Vision transformers as encoders of frames: timm's network in our sizes, for one grey channel, with fixed positions.

timm is imported when the first one is made: predictions by other networks do not wait for it. Of published masked
autoencoders, ours and others', all of the encoder is loaded and the decoder left out. Others' checkpoints (the
original's, wrapped in "model"; USF-MAE's, a bare state) see three channels with ImageNet's mean and deviation; a grey
frame copied to three channels passes their first layer as one channel with the weights summed, so nothing is lost.

References
----------
Dosovitskiy 2021 (arXiv 2010.11929); positions as in He 2022, "Masked autoencoders" (arXiv 2111.06377).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from echo_plugin.models.body_weights import require_fitting
from echo_plugin.network_config import require_vit


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


logger = logging.getLogger(__name__)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PROJECTION = "patch_embed.proj.weight"
PROJECTION_BIAS = "patch_embed.proj.bias"
LICENCE = "CC BY-NC 4.0"
LICENCE_SENTENCE = (
    "%s is a checkpoint of others: the published masked autoencoders, and what was trained from them, USF-MAE included,"
    " are licensed CC BY-NC 4.0, so neither it nor the model trained from it may be used commercially."
)


def load_vit(vit: nn.Module, state: Mapping[str, Tensor], source: str, grey: tuple[float, float]) -> None:
    """Load the encoder of a masked autoencoder into a transformer; the decoder is left out.

    Parameters
    ----------
    vit
        From ``vit.build_vit``.
    state
        Weights by name, of the encoder alone or with its decoder.
    source
        What the weights are called in errors.
    grey
        Mean and deviation, of 0..1, that grey frames for ``vit`` are normalised with.

    Raises
    ------
    ModelMismatchError
        Naming the first key that is missing, of another shape or unknown; nothing is loaded then.
    """
    expected = vit.state_dict()
    given = {key.removeprefix("encoder."): value for key, value in state.items() if not _is_of_decoder(key)}
    if PROJECTION in given and PROJECTION_BIAS in given and expected[PROJECTION].shape[1] == 1:
        given |= _for_grey(given[PROJECTION], given[PROJECTION_BIAS], grey)
    if "pos_embed" in given and given["pos_embed"].shape[2:] == expected["pos_embed"].shape[2:]:
        given["pos_embed"] = resized_positions(given["pos_embed"], expected["pos_embed"].shape[1])
    hint = "; a masked autoencoder of its size is accepted, another one with its own --backbone"
    require_fitting(given, expected, source=source, network="the encoder", hint=hint)
    vit.load_state_dict({key: value.float() for key, value in given.items()})


def say_licence(source: str) -> None:
    """Warn that weights of others must not be used commercially."""
    logger.warning(LICENCE_SENTENCE, source)


def resized_positions(positions: Tensor, length: int) -> Tensor:
    """Return (1, length, width) positions for another number of patches, between those of (1, L, width)."""
    if positions.shape[1] == length:
        return positions
    side, wanted = (round((count - 1) ** 0.5) for count in (positions.shape[1], length))
    if side * side + 1 != positions.shape[1]:
        return positions  # of no square: its shape is refused
    patches = positions[:, 1:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    patches = interpolate(patches, (wanted, wanted), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([positions[:, :1].float(), patches.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def _is_of_decoder(key: str) -> bool:
    return key.startswith("decoder") or key == "mask_token"


def _for_grey(weight: Tensor, bias: Tensor, grey: tuple[float, float]) -> dict[str, Tensor]:
    """Return the first layer for x = (g - mean) / std of grey g, where ``weight`` takes (g - mean_c) / std_c of RGB.

    sum_c w_c (g - mean_c) / std_c = x * sum_c w_c std / std_c + sum_c w_c (mean - mean_c) / std_c
    """
    if weight.ndim != 4 or weight.shape[1] != 3:
        return {}
    mean, std = grey
    means, stds = (torch.tensor(values)[None, :, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    weight = weight.float()
    shift = (weight * (mean - means) / stds).sum(dim=(1, 2, 3))
    return {
        PROJECTION: (weight * std / stds).sum(dim=1, keepdim=True),
        PROJECTION_BIAS: bias.float() + shift,
    }
