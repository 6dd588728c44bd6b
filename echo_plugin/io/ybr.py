# SPDX-License-Identifier: Apache-2.0
"""RGB from YBR_FULL (YCbCr of full range), to the bit as libjpeg computes it.

References
----------
ITU-T T.871 section 7, PS3.3 C.7.6.3.1.2
"""

from __future__ import annotations

import numpy as np

from echo_plugin.cine import ByteArray

# 1.402, 1.772, 0.71414 and 0.34414 in 16-bit fixed point
_CHROMA = np.arange(256, dtype=np.int32) - 128
_HALF = 1 << 15
_CR_TO_R = (91881 * _CHROMA + _HALF) >> 16
_CB_TO_B = (116130 * _CHROMA + _HALF) >> 16
_CR_TO_G = -46802 * _CHROMA
_CB_TO_G = -22554 * _CHROMA + _HALF


def ybr_to_rgb(ybr: ByteArray) -> ByteArray:
    """Return (H, W, 3) uint8 RGB of YBR_FULL."""
    y, cb, cr = ybr[..., 0].astype(np.int32), ybr[..., 1], ybr[..., 2]
    rgb = np.stack([y + _CR_TO_R[cr], y + ((_CB_TO_G[cb] + _CR_TO_G[cr]) >> 16), y + _CB_TO_B[cb]], axis=-1)
    return np.clip(rgb, 0, 255).astype(np.uint8)
