# SPDX-License-Identifier: Apache-2.0
"""Grey from RGB: the luma of Rec. 601, as JPEG and Pillow compute it."""

from __future__ import annotations

import numpy as np

from echo_plugin.cine import ByteArray

_WEIGHTS = (19595, 38470, 7471)  # 0.299, 0.587, 0.114 in 16-bit fixed point; their sum is 2 ** 16: grey stays grey


def to_grey(frames: ByteArray) -> ByteArray:
    """Return (N, H, W) uint8 grey of (N, H, W, C) frames, C = 1 or 3; empty in, empty out."""
    if frames.shape[-1] == 1:
        return frames[..., 0]
    grey = np.empty(frames.shape[:-1], dtype=np.uint8)
    for frame, out in zip(frames, grey, strict=True):
        red, green, blue = (frame[..., channel].astype(np.uint32) for channel in range(3))
        weighted = red * _WEIGHTS[0] + green * _WEIGHTS[1] + blue * _WEIGHTS[2]
        out[...] = (weighted + 32768) >> 16
    return grey
