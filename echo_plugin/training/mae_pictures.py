# SPDX-License-Identifier: Apache-2.0
"""What a masked autoencoder sees and draws, as a picture for a person to judge."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from echo_plugin.cine import ByteArray
from echo_plugin.io.atomic_file import write_atomically
from echo_plugin.models.masked_autoencoder import MaskedAutoencoder, from_patches, to_patches

HIDDEN_GREY = 0.5
_GAP_PX = 4


@torch.no_grad()
def reconstruction_panels(model: MaskedAutoencoder, frames: Tensor, noise: Tensor) -> ByteArray:
    """Return (N, S, 3 * S + gaps) uint8: each frame, what was seen of it, and the hidden patches drawn in.

    ``frames`` : (N, 1, S, S) from ``preprocess.normalise``; ``noise`` (N, L) chooses what is hidden.
    """
    model.eval()
    drawn, mask = model(frames, noise)
    true = to_patches(model.seen(frames), model.patch_px)
    if model.config.is_patch_normalised:
        drawn = drawn * (true.var(dim=2, keepdim=True) + 1e-6).sqrt() + true.mean(dim=2, keepdim=True)
    low, high = true.amin(dim=(1, 2), keepdim=True), true.amax(dim=(1, 2), keepdim=True)
    hidden = mask[:, :, None].bool()
    patches = [(rows - low) / (high - low).clamp_min(1e-6) for rows in (true, drawn)]
    seen = torch.where(hidden, torch.full_like(true, HIDDEN_GREY), patches[0])
    joined = torch.where(hidden, patches[1], patches[0])
    squares = [from_patches(rows, model.patch_px)[:, 0] for rows in (patches[0], seen, joined)]
    gap = torch.ones(len(frames), frames.shape[2], _GAP_PX, device=frames.device)
    row = torch.cat([squares[0], gap, squares[1], gap, squares[2]], dim=2)
    panels: ByteArray = (row.clamp(0, 1) * 255).round().byte().cpu().numpy()
    return panels


def write_reconstructions(model: MaskedAutoencoder, frames: Tensor, noise: Tensor, png: Path, columns: int = 2) -> None:
    """Write the panels of `reconstruction_panels` below and beside one another to a PNG, whole or not at all.

    They are patients' frames: the file is the user's alone to read.
    """
    panels = reconstruction_panels(model, frames, noise)
    N, H, W = panels.shape
    rows = -(-N // columns)
    sheet = np.full((rows * (H + _GAP_PX), columns * (W + 3 * _GAP_PX)), 255, np.uint8)
    for index, panel in enumerate(panels):
        top, left = index // columns * (H + _GAP_PX), index % columns * (W + 3 * _GAP_PX)
        sheet[top : top + H, left : left + W] = panel
    content = io.BytesIO()
    Image.fromarray(sheet).save(content, "PNG")
    png.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(png, content.getvalue(), mode=0o600)
