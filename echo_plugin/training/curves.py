# SPDX-License-Identifier: Apache-2.0
"""Curves of a training for TensorBoard: loss, validation measure, learning rate, time of an epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from echo_plugin.training.state import TrainingState


@contextmanager
def training_curves(log_dir: Path | None, state: TrainingState) -> Iterator[Callable[[TrainingState], None]]:
    """Yield what adds the epoch just done to the curves below ``log_dir``; None: nothing is written.

    A training that goes on adds to its own curves; points after the epoch it goes on from no longer count.
    """
    if log_dir is None:
        yield lambda _: None
        return
    from torch.utils.tensorboard import SummaryWriter  # takes half a second, which trainings without curves save

    elapsed_s = state.elapsed_s
    with SummaryWriter(str(log_dir / state.run), purge_step=state.epoch + 1) as writer:

        def add(state: TrainingState) -> None:
            nonlocal elapsed_s
            points = {
                "loss": state.loss,
                "validation measure": state.metric,
                "learning rate": state.optimiser.param_groups[0]["lr"],
                "seconds per epoch": state.elapsed_s - elapsed_s,
            }
            elapsed_s = state.elapsed_s
            for name, value in points.items():
                if value is not None and math.isfinite(value):
                    writer.add_scalar(name, value, state.epoch)
            writer.flush()

        yield add
