# SPDX-License-Identifier: Apache-2.0
"""The epochs that all trainers share: schedule, averaged weights, the best checkpoint, progress, stopping.

A trainer gives a model, the batches of an epoch, a loss and a validation measure. What is measured, kept and published
is the exponential moving average of the weights, which in short trainings is worth more than any schedule.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from echo_plugin.runtime import choose_dtype
from echo_plugin.training.options import EpochStatus, OnEpoch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """The numbers of one optimisation. ``optimiser`` : "adamw" or "sgd" (momentum 0.9)."""

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
        msg = f"Optimiser is {self.optimiser!r}; 'adamw' and 'sgd' are accepted."
        raise ValueError(msg)


@dataclass(frozen=True)
class Learned:
    """The best averaged weights, their validation measure, and how the training went."""

    state: dict[str, Tensor]
    best_metric: float
    epochs: int
    wall_time_s: float


class WeightAverage:
    """An exponential moving average of a model's weights and statistics, quick at first (as in timm's ModelEmaV3)."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards ``model``."""
        self.updates += 1
        weight = 1.0 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))
        floating = [(a, b) for a, b in pairs if a.is_floating_point()]
        torch._foreach_lerp_([a for a, _ in floating], [b for _, b in floating], weight)
        for average, value in pairs:
            if not average.is_floating_point():
                average.copy_(value)


def run_epochs(
    model: nn.Module,
    recipe: Recipe,
    *,
    batches: Callable[[torch.Generator], list[Tensor]],
    loss: Callable[[nn.Module, Tensor, torch.Generator], Tensor],
    validate: Callable[[nn.Module], float],
    seed: int,
    on_epoch: OnEpoch | None = None,
    should_stop: Callable[[], bool] | None = None,
    state_path: Path | None = None,
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
        Measures the averaged model, higher is better.
    should_stop
        Asked after every epoch.
    state_path
        Where the averaged weights of the last epoch are kept (safetensors), so that a killed training is not lost.

    Raises
    ------
    ValueError
        If the loss is not finite; the message names the epoch.
    """
    generator = torch.Generator().manual_seed(seed)
    optimiser = recipe.build_optimiser(model)
    average = WeightAverage(model, recipe.average_decay)
    started = time.monotonic()
    best_state, best_metric, metric = None, -math.inf, None
    for epoch in range(recipe.epochs):
        epoch_batches = batches(generator)
        mean_loss = _train_epoch(model, average, optimiser, epoch_batches, loss, recipe, epoch, started, generator)
        elapsed = time.monotonic() - started
        is_last = epoch + 1 == recipe.epochs or _is_out_of_time(recipe, elapsed, epoch + 1)
        is_last = is_last or (should_stop is not None and should_stop())
        if is_last or (epoch + 1) % recipe.validate_every == 0:
            metric = validate(average.model)
            if metric >= best_metric:
                best_metric = metric
                best_state = {k: v.detach().clone().cpu() for k, v in average.model.state_dict().items()}
        if state_path is not None:
            _keep_state(state_path, average.model)
        eta = _eta_s(recipe, time.monotonic() - started, epoch + 1)
        best = best_metric if best_metric > -math.inf else None
        logger.info("Epoch %d of %d%s: loss %.4f, measure %s", epoch + 1, recipe.epochs, note, mean_loss, metric)
        if on_epoch is not None:
            on_epoch(EpochStatus(epoch + 1, recipe.epochs, 0.0 if is_last else eta, mean_loss, metric, best, note))
        if is_last:
            break
    if best_state is None:
        msg = (
            f"Validation never gave a number in {epoch + 1} epochs (last: {metric}); check the labels of its patients."
        )
        raise ValueError(msg)
    # published in half precision: what is measured afterwards is what readers get
    best_state = {k: v.half().to(v.dtype) if v.is_floating_point() and v.ndim > 1 else v for k, v in best_state.items()}
    model.load_state_dict(best_state)
    return Learned(best_state, best_metric, epoch + 1, time.monotonic() - started)


def _train_epoch(
    model: nn.Module,
    average: WeightAverage,
    optimiser: torch.optim.Optimizer,
    batches: list[Tensor],
    loss: Callable[[nn.Module, Tensor, torch.Generator], Tensor],
    recipe: Recipe,
    epoch: int,
    started: float,
    generator: torch.Generator,
) -> float:
    model.train()
    total = 0.0
    for step, items in enumerate(batches):
        progress = (epoch + step / len(batches)) / recipe.epochs
        if recipe.max_minutes is not None:
            spent = (time.monotonic() - started) / (60 * recipe.max_minutes)
            if spent > 1 and step:  # the learning rate has come to rest: further batches would teach nothing
                return total / step
            progress = max(progress, spent)
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * schedule(progress, recipe.warm_up)
        value = loss(model, items, generator)
        if not torch.isfinite(value):
            msg = f"Training loss is {float(value.detach())} in epoch {epoch + 1}; lower the learning rate."
            raise ValueError(msg)
        optimiser.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimiser.step()
        average.update(model)
        total += float(value.detach())
    return total / max(len(batches), 1)


def lower_precision(device: torch.device) -> torch.autocast:
    """Return the context in which networks run in bfloat16, on a GPU and on a CPU that has instructions for it."""
    is_quick = device.type == "cuda" or choose_dtype(device) is torch.bfloat16
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_quick)


def place(model: nn.Module, device: torch.device) -> None:
    """Move the model to ``device``, channels last in memory: the layout in which convolutions are fastest."""
    model.to(device).to(memory_format=torch.channels_last)


def schedule(progress: float, warm_up: float) -> float:
    """Return the factor of the learning rate at ``progress`` 0..1: straight up, then half a cosine down to 1 %.

    >>> [round(schedule(p, 0.1), 2) for p in (0.0, 0.05, 0.1, 0.55, 1.0)]
    [0.01, 0.5, 1.0, 0.5, 0.01]
    """
    if progress < warm_up:
        return max(progress / warm_up, 0.01)
    fall = min((progress - warm_up) / max(1 - warm_up, 1e-9), 1.0)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * fall))


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


def _keep_state(path: Path, model: nn.Module) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_bytes(save_safetensors({k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}))
    partial.replace(path)
