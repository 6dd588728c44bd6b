# SPDX-License-Identifier: Apache-2.0
"""The numbers of one optimisation, and the course of its learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Recipe:
    """The numbers of one optimisation. ``optimiser`` : "adamw", "adam" or "sgd" (momentum 0.9)."""

    epochs: int
    learning_rate: float
    optimiser: str = "adamw"
    weight_decay: float = 1e-2
    warm_up: float = 0.05
    """Part of the training over which the learning rate rises from zero; then it falls as a cosine."""
    clip_norm: float = 5.0
    average_decay: float = 0.995
    max_minutes: float | None = None
    validate_every: int = 1
    patience: int | None = None
    """End after so many epochs without a better measure; None: never."""

    def build_optimiser(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return the optimiser; biases and norms (one axis) are not decayed."""
        learnt = [p for p in model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in learnt if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in learnt if p.ndim <= 1], "weight_decay": 0.0},
        ]
        if self.optimiser == "sgd":
            return torch.optim.SGD(groups, lr=self.learning_rate, momentum=0.9, nesterov=True)
        if self.optimiser == "adamw":
            return torch.optim.AdamW(groups, lr=self.learning_rate)
        if self.optimiser == "adam":
            return torch.optim.Adam(groups, lr=self.learning_rate)
        msg = f"Optimiser is {self.optimiser!r}; 'adamw', 'adam' and 'sgd' are accepted."
        raise ValueError(msg)


def schedule(progress: float, warm_up: float) -> float:
    """Return the factor of the learning rate at ``progress`` 0..1: straight up, then half a cosine down to 1 %.

    >>> [round(schedule(p, 0.1), 2) for p in (0.0, 0.05, 0.1, 0.55, 1.0)]
    [0.01, 0.5, 1.0, 0.5, 0.01]
    """
    if progress < warm_up:
        return max(progress / warm_up, 0.01)
    fall = min((progress - warm_up) / max(1 - warm_up, 1e-9), 1.0)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * fall))
