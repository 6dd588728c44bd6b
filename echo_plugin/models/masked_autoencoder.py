# SPDX-License-Identifier: Apache-2.0
"""The masked autoencoder: a vision transformer sees a quarter of a frame's patches, a light decoder draws the others.

What it learns without any label is the encoder; the decoder is thrown away afterwards. Defaults are those of the
ultrasound foundation model USF-MAE, which has them from the original.

References
----------
He 2022, "Masked autoencoders are scalable vision learners" (arXiv 2111.06377); USF-MAE: arXiv 2512.24492.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from echo_plugin.models.backbones import standardise
from echo_plugin.models.vit import build_vit, sine_positions
from echo_plugin.network_config import MaeConfig, count_kept, require_vit

MLP_RATIO = 4
NORM_EPSILON = 1e-6


class Drawn(NamedTuple):
    """What the autoencoder makes of frames: ``patches`` (N, L, P*P*C) drawn, ``mask`` (N, L): 1 hidden, 0 seen."""

    patches: Tensor
    mask: Tensor


class MaskedAutoencoder(nn.Module):
    """Draws the hidden patches of (N, C, S, S) frames from ``preprocess.normalise``."""

    def __init__(self, config: MaeConfig) -> None:
        super().__init__()
        from timm.models.vision_transformer import Block

        self.config = config
        shape = require_vit(config.backbone, config.input_size_px)
        self.patch_px, grid = shape.patch_px, config.input_size_px // shape.patch_px
        self.encoder: Any = build_vit(config.backbone, config.input_size_px, channels=config.channels)
        self.encoder.pos_embed.requires_grad_(False)
        width = config.decoder_width
        norm = partial(nn.LayerNorm, eps=NORM_EPSILON)
        self.decoder_embed = nn.Linear(shape.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder_pos_embed = nn.Parameter(sine_positions(grid, width), requires_grad=False)
        self.decoder_blocks = nn.ModuleList(
            Block(width, config.decoder_heads, MLP_RATIO, qkv_bias=True, norm_layer=norm)  # type: ignore[arg-type]
            for _ in range(config.decoder_depth)
        )
        self.decoder_norm = norm(width)
        self.decoder_pred = nn.Linear(width, self.patch_px**2 * config.channels)
        self._initialise()

    def _initialise(self) -> None:
        """Draw the weights as the authors do: Xavier for every matrix, the patch projection as one matrix."""
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.xavier_uniform_(part.weight)
                nn.init.zeros_(part.bias)
        projection = self.encoder.patch_embed.proj.weight.data
        nn.init.xavier_uniform_(projection.view(len(projection), -1))
        nn.init.normal_(self.encoder.cls_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)

    def seen(self, frames: Tensor) -> Tensor:
        """Return the frames as the encoder sees them, which is also what the decoder is to draw."""
        return standardise(frames) if self.config.is_standardised else frames

    def encode(self, frames: Tensor, kept: Tensor) -> Tensor:
        """Return (N, 1 + M, width) tokens, the class token first, of the patches ``kept`` (N, M) of seen frames."""
        encoder = self.encoder
        tokens = encoder.patch_embed(frames) + encoder.pos_embed[:, 1:]
        tokens = tokens.gather(1, kept[:, :, None].expand(-1, -1, tokens.shape[2]))
        first = (encoder.cls_token + encoder.pos_embed[:, :1]).expand(len(tokens), -1, -1)
        tokens = torch.cat([first, tokens], dim=1)
        encoded: Tensor = encoder.norm(encoder.blocks(tokens))
        return encoded

    def decode(self, tokens: Tensor, places: Tensor) -> Tensor:
        """Return (N, L, P*P*C) drawn patches; ``places`` (N, L) says at which place of the shuffled order each is."""
        known = self.decoder_embed(tokens)
        N, L = places.shape
        hidden = self.mask_token.to(known).expand(N, L - (known.shape[1] - 1), -1)
        patches = torch.cat([known[:, 1:], hidden], dim=1)
        patches = patches.gather(1, places[:, :, None].expand(-1, -1, patches.shape[2]))
        everything = torch.cat([known[:, :1], patches], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            everything = block(everything)
        drawn: Tensor = self.decoder_pred(self.decoder_norm(everything))
        return drawn[:, 1:]

    def forward(self, frames: Tensor, noise: Tensor) -> Drawn:
        """Return the drawn patches of frames (N, C, S, S); the patches with the least ``noise`` (N, L) are seen."""
        kept, places, mask = choose_patches(noise, self.config.mask_ratio)
        return Drawn(self.decode(self.encode(self.seen(frames), kept), places).float(), mask)

    def targets(self, frames: Tensor) -> Tensor:
        """Return the (N, L, P*P*C) patches that the decoder is to draw of frames (N, C, S, S)."""
        target = to_patches(self.seen(frames).float(), self.patch_px)
        if self.config.is_patch_normalised:
            target = (target - target.mean(dim=2, keepdim=True)) / (target.var(dim=2, keepdim=True) + 1e-6).sqrt()
        return target

    def errors(self, frames: Tensor, drawn: Drawn) -> Tensor:
        """Return the (N,) mean squared errors over the hidden patches of each frame."""
        return self._hidden_errors(frames, drawn).sum(dim=1) / drawn.mask.sum(dim=1)

    def loss(self, frames: Tensor, drawn: Drawn) -> Tensor:
        """Return the mean squared error over the hidden patches."""
        return self._hidden_errors(frames, drawn).sum() / drawn.mask.sum()

    def _hidden_errors(self, frames: Tensor, drawn: Drawn) -> Tensor:
        """Return the (N, L) mean squared errors of the patches, 0 for those that are seen."""
        return (drawn.patches - self.targets(frames)).square().mean(dim=2) * drawn.mask


def choose_patches(noise: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return which patches are kept, and how to undo the shuffling, by noise (N, L).

    Returns
    -------
    kept : (N, M) indices of patches, least noise first, M of ``count_kept``.
    places : (N, L) place of each patch in the shuffled order.
    mask : (N, L) float32, 1 hidden, 0 kept.
    """
    L = noise.shape[1]
    kept_count = count_kept(L, mask_ratio)
    order = noise.argsort(dim=1)
    places = order.argsort(dim=1)
    return order[:, :kept_count], places, (places >= kept_count).float()


def to_patches(frames: Tensor, patch_px: int) -> Tensor:
    """Return (N, L, P*P*C) patches of (N, C, S, S) frames, row by row; inside a patch: row, column, channel.

    >>> to_patches(torch.arange(3 * 32 * 32.0).reshape(1, 3, 32, 32), 16)[0, 0, :4].tolist()
    [0.0, 1024.0, 2048.0, 1.0]
    """
    N, C, S, _ = frames.shape
    side = S // patch_px
    cut = frames.reshape(N, C, side, patch_px, side, patch_px)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(N, side * side, patch_px**2 * C)


def from_patches(patches: Tensor, patch_px: int) -> Tensor:
    """Return the (N, C, S, S) frames of `to_patches`."""
    N, L, values = patches.shape
    side, C = int(L**0.5), values // patch_px**2
    cut = patches.reshape(N, side, side, patch_px, patch_px, C)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(N, C, side * patch_px, side * patch_px)
