# SPDX-License-Identifier: Apache-2.0
"""What a person may choose about a training. No torch here: the command line imports it at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

STARTS = ("starter", "views", "scratch")


@dataclass(frozen=True)
class EpochStatus:
    """How far a training is; ``epoch`` of ``total_epochs`` is done. Metrics: higher is better; None: not yet."""

    epoch: int
    total_epochs: int
    eta_s: float
    train_loss: float
    metric: float | None
    best_metric: float | None
    note: str = ""


OnEpoch = Callable[[EpochStatus], None]


@dataclass(frozen=True)
class TrainOptions:
    """None: the trainer's own default.

    ``max_minutes`` : wall time of the epochs; the schedule of the learning rate is shortened with it.
    ``cache_dir`` : decoded frames are kept there as memory-mapped arrays; None: in memory.
    ``start`` : "starter" goes on from the model of that name in ``starter`` (None: the folder that is published to),
    if there is one of the same architecture; "views" takes the frame encoder of the published view classifier, which
    has seen more pictures than any other; "scratch" begins with random weights.
    ``should_stop`` : asked after every epoch; what is best so far is then published.
    ``command`` : written to the card.
    """

    epochs: int | None = None
    backbone: str | None = None
    seed: int = 0
    device: str = "auto"
    batch_size: int | None = None
    learning_rate: float | None = None
    max_minutes: float | None = None
    cache_dir: Path | None = None
    image_size: int | None = None
    frames_per_cine: int | None = None
    start: str = "starter"
    starter: Path | None = None
    should_stop: Callable[[], bool] | None = None
    command: str = ""
    scale: float | None = None
    """s of ArcFace."""
    margin_rad: float | None = None
    """m of ArcFace, rad."""
    temporal: str | None = None
    """Temporal head of the view classifier."""

    def __post_init__(self) -> None:
        if self.start not in STARTS:
            msg = f"Training start is {self.start!r}; {list(STARTS)} are accepted."
            raise ValueError(msg)
        for name in ("epochs", "batch_size", "frames_per_cine", "image_size", "max_minutes", "learning_rate"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                msg = f"Training option {name} is {value}; a positive number or None is accepted."
                raise ValueError(msg)
