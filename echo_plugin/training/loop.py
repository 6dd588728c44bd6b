# SPDX-License-Identifier: Apache-2.0
"""The epochs that all trainers share: schedule, averaged weights, the best checkpoint, progress, stopping, going on.

A trainer gives a model, the batches of an epoch, a loss and a validation measure. What is measured, kept and published
is the exponential moving average of the weights, which in short trainings is worth more than any schedule.
Started by ``torchrun``, each process learns from its share of every batch, and the first one measures and reports.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from echo_plugin.runtime import choose_dtype
from echo_plugin.training.curves import training_curves
from echo_plugin.training.options import EpochStatus, OnEpoch
from echo_plugin.training.processes import agreed, is_first, kept_in_step, own_share, process_count, process_index
from echo_plugin.training.recipe import Recipe, schedule
from echo_plugin.training.state import KeptState, TrainingState, training_key

logger = logging.getLogger(__name__)

Loss = Callable[[nn.Module, Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Learned:
    """The best averaged weights, their validation measure (NaN: nobody measured), and how the training went."""

    state: dict[str, Tensor]
    best_metric: float
    epochs: int
    wall_time_s: float


class LossOf(nn.Module):
    """A model with its loss: what several processes keep in step is the gradient of this."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self._loss = loss

    def forward(self, items: Tensor, generator: torch.Generator) -> Tensor:
        return self._loss(self.model, items, generator)


def run_epochs(
    model: nn.Module,
    recipe: Recipe,
    *,
    batches: Callable[[torch.Generator], list[Tensor]],
    loss: Loss,
    validate: Callable[[nn.Module], float] | None,
    seed: int,
    on_epoch: OnEpoch | None = None,
    should_stop: Callable[[], bool] | None = None,
    state_path: Path | None = None,
    state_key: str = "",
    log_dir: Path | None = None,
    note: str = "",
) -> Learned:
    """Train ``model`` in place and return the best averaged weights.

    Parameters
    ----------
    batches
        Returns the item indices of each batch of one epoch.
    loss
        (model, item indices, generator) -> scalar; augments with the generator.
    validate
        Measures the averaged model, higher is better; None: there is nobody to measure, the last epoch counts.
    should_stop
        Asked after every epoch.
    state_path
        Where everything is kept after each epoch; a training of the same weights, recipe, seed and ``state_key`` goes
        on from there.
    state_key
        Tells trainings on other data apart.
    log_dir
        Folder of TensorBoard curves; None: none are written.

    Raises
    ------
    ValueError
        If the loss is not finite; the message names the epoch.
    """
    run = time.strftime("%Y-%m-%d_%H-%M-%S")
    state = TrainingState(model, recipe.build_optimiser(model), recipe.average_decay, seed, run)
    kept = KeptState(state_path, training_key(model, recipe, seed, state_key)) if state_path else None
    report = _Report(recipe, on_epoch if is_first() else None, note)
    if kept is not None and kept.restore(state):
        report(state, is_resumed=True)
    started = time.monotonic() - state.elapsed_s
    losses = kept_in_step(LossOf(model, loss))
    with training_curves(log_dir if is_first() else None, state) as add_to_curves:
        while not state.is_done:
            state.loss = _train_epoch(losses, state, batches(state.order), recipe, started)
            state.epoch += 1
            _judge(state, recipe, validate, should_stop, started)
            if kept is not None:
                kept.save(state)
            report(state)
            add_to_curves(state)
    return _learned(state, model)


@dataclass(frozen=True)
class _Report:
    """Says after an epoch how far the training is, to the log and to who asked."""

    recipe: Recipe
    on_epoch: OnEpoch | None
    note: str

    def __call__(self, state: TrainingState, *, is_resumed: bool = False) -> None:
        done, total = state.epoch, self.recipe.epochs
        words = "Going on after epoch" if is_resumed else "Epoch"
        logger.info("%s %d of %d%s: loss %.4f, measure %s", words, done, total, self.note, state.loss, state.metric)
        if self.on_epoch is not None:
            eta_s = 0.0 if state.is_done else _eta_s(self.recipe, state.elapsed_s, done)
            best = state.best_metric if state.best_metric > -math.inf else None
            self.on_epoch(EpochStatus(done, total, eta_s, state.loss, state.metric, best, self.note, is_resumed))


def _judge(
    state: TrainingState,
    recipe: Recipe,
    validate: Callable[[nn.Module], float] | None,
    should_stop: Callable[[], bool] | None,
    started: float,
) -> None:
    """Measure the averaged weights where it is due, and decide whether this was the last epoch: the first process."""
    if is_first():
        elapsed_s = time.monotonic() - started
        is_last = state.epoch == recipe.epochs or _is_out_of_time(recipe, elapsed_s, state.epoch)
        is_last = is_last or (should_stop is not None and should_stop())
        if validate is None:
            state.keep()
        elif is_last or state.epoch % recipe.validate_every == 0:
            state.judge(validate(state.average.model))
        is_tired = recipe.patience is not None and state.epoch - state.best_epoch >= recipe.patience
        state.is_done = is_last or is_tired
        state.elapsed_s = time.monotonic() - started
    state.is_done = agreed(state.is_done)


def _learned(state: TrainingState, model: nn.Module) -> Learned:
    """Return what is best, which is then in ``model`` too."""
    best_state = agreed(state.best_state)
    if best_state is None:
        msg = (
            f"Validation never gave a number in {state.epoch} epochs (last: {state.metric});"
            " check the labels of its patients."
        )
        raise ValueError(msg)
    best_state = as_published(best_state)
    model.load_state_dict(best_state)
    best_metric = agreed(state.best_metric)
    return Learned(best_state, best_metric if best_metric > -math.inf else math.nan, state.epoch, state.elapsed_s)


def as_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights as half precision keeps them: what is measured afterwards is what readers get."""
    return {k: v.half().to(v.dtype) if v.is_floating_point() and v.ndim > 1 else v for k, v in state.items()}


def _train_epoch(
    losses: nn.Module, state: TrainingState, batches: list[Tensor], recipe: Recipe, started: float
) -> float:
    """Return the mean loss of one epoch, to which this process adds its share of each batch."""
    losses.train()
    total, steps = 0.0, 0
    shares = [share for batch in batches if len(share := own_share(batch, process_index(), process_count()))]
    if not shares:
        msg = f"No batch has two frames for each of the {process_count()} processes; start fewer."
        raise ValueError(msg)
    for step, items in enumerate(shares):
        progress = (state.epoch + step / len(shares)) / recipe.epochs
        if recipe.max_minutes is not None:
            spent = agreed((time.monotonic() - started) / (60 * recipe.max_minutes))
            if spent > 1 and step:  # the learning rate has come to rest: further batches would teach nothing
                break
            progress = max(progress, spent)
        for group in state.optimiser.param_groups:
            group["lr"] = recipe.learning_rate * schedule(progress, recipe.warm_up)
        value = losses(items, state.draws)
        if not torch.isfinite(value):
            msg = f"Training loss is {float(value.detach())} in epoch {state.epoch + 1}; lower the learning rate."
            raise ValueError(msg)
        state.optimiser.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(state.model.parameters(), recipe.clip_norm)
        state.optimiser.step()
        if is_first():
            state.average.update(state.model)
        total, steps = total + float(value.detach()), steps + 1
    return total / max(steps, 1)


def lower_precision(device: torch.device) -> torch.autocast:
    """Return the context in which networks run in bfloat16, on a GPU and on a CPU that has instructions for it."""
    is_quick = device.type == "cuda" or choose_dtype(device) is torch.bfloat16
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_quick)


def place(model: nn.Module, device: torch.device) -> None:
    """Move the model to ``device``, channels last in memory: the layout in which convolutions are fastest."""
    model.to(device).to(memory_format=torch.channels_last)


def shuffled_batches(items: Tensor, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """Return ``items`` in random order, cut in batches; a last batch of one joins the one before (batch statistics)."""
    order = items[torch.randperm(len(items), generator=generator)]
    batches = list(torch.split(order, batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def balanced_batches(
    items: Tensor, labels: Tensor, batch_size: int, generator: torch.Generator, *, power: float = 0.5
) -> list[Tensor]:
    """Return len(items) draws with replacement, cut in batches; rarer classes more often: weight 1 / count^power."""
    counts = torch.bincount(labels).clamp_min(1).double()
    weights = counts[labels] ** -power
    draws = torch.multinomial(weights, len(items), replacement=True, generator=generator)
    return shuffled_batches(items[draws], batch_size, generator)


def _is_out_of_time(recipe: Recipe, elapsed_s: float, epochs_done: int) -> bool:
    """Whether another epoch would end after the allowed time."""
    return recipe.max_minutes is not None and elapsed_s * (1 + 0.5 / epochs_done) > 60 * recipe.max_minutes


def _eta_s(recipe: Recipe, elapsed_s: float, epochs_done: int) -> float:
    left = elapsed_s / epochs_done * (recipe.epochs - epochs_done)
    return left if recipe.max_minutes is None else max(0.0, min(left, 60 * recipe.max_minutes - elapsed_s))
