# SPDX-License-Identifier: Apache-2.0
"""The same contrast for every frame, whatever gain and grey map the machine had: the first step of a network."""

from __future__ import annotations

import torch
from torch import Tensor

LEAST_DEVIATION = 0.05
"""Of an input of ``preprocess.normalise``; a frame with less is nearly empty, and its noise is not blown up."""


def standardise(frames: Tensor) -> Tensor:
    """Return (..., 1, S, S) frames, each shifted and scaled to mean 0 and deviation 1 over its pixels."""
    exact = frames.float()
    deviation, mean = torch.std_mean(exact, dim=(-3, -2, -1), keepdim=True, correction=0)
    return ((exact - mean) / deviation.clamp_min(LEAST_DEVIATION)).to(frames.dtype)
