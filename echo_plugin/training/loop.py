# SPDX-License-Identifier: Apache-2.0
"""The epochs that all trainers share: optimiser, schedule, averaged weights, the best checkpoint, stopping, going on.

A trainer gives a model, the batches of an epoch, a loss and a validation measure. What is measured, kept and published
is the exponential moving average of the weights, which in short trainings is worth more than any schedule.
Started by ``torchrun``, each process learns from its share of every batch, and the first one measures and reports.

After each epoch everything is kept in a file, so that a killed training loses at most the epoch that it was in. It
holds weights that learned from patients: it is the user's alone to read, and is gone once the model is published.
"""

from __future__ import annotations

import hashlib
import logging
import math
import pickle
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from echo_plugin.answer.runtime import choose_dtype
from echo_plugin.durable import remove_abandoned, replace_atomically
from echo_plugin.training.options import EpochStatus, OnEpoch
from echo_plugin.training.processes import (
    all_gather,
    broadcast,
    is_first,
    own_share,
    process_count,
    process_index,
    wrap_distributed,
)

logger = logging.getLogger(__name__)


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


FOLDER = ".training"
"""In the folder of models: the states of trainings under way."""

NUMBERS = ("epoch", "updates", "loss", "metric", "best_metric", "best_epoch", "elapsed_s", "is_done", "run")


class TrainingState:
    """A model with its optimiser, average and random numbers, and how far it is; ``epoch`` is the number done.

    ``order`` draws the batches, alike in all processes; ``draws`` is for augmentation, each process's own.
    ``run`` names the training among the curves of others.
    """

    def __init__(self, model: nn.Module, optimiser: torch.optim.Optimizer, decay: float, seed: int, run: str) -> None:
        from timm.utils.model_ema import ModelEmaV3  # it takes seconds to load, which the server saves

        self.model, self.optimiser = model, optimiser
        self.average = ModelEmaV3(model, decay, use_warmup=True, warmup_gamma=9, warmup_power=1)
        self.average.requires_grad_(False)
        self.updates = 0
        self.order = torch.Generator().manual_seed(seed)
        own_seed = (seed * 1_000_003 + process_index()) % 2**63
        self.draws = self.order if process_count() == 1 else torch.Generator().manual_seed(own_seed)
        self.epoch = 0
        self.loss = math.nan
        self.metric: float | None = None
        self.best_metric, self.best_epoch = -math.inf, 0
        self.best_state: dict[str, Tensor] | None = None
        self.elapsed_s = 0.0
        self.is_done = False
        self.run = run

    def update_average(self) -> None:
        """Move the averaged weights towards the model's: quickly at first, by 9 / (10 + updates) at least."""
        self.updates += 1
        self.average.update(self.model, step=self.updates + 2)

    def judge(self, metric: float) -> None:
        """Note what the averaged weights are worth, and keep them if nothing was better."""
        self.metric = metric
        if metric >= self.best_metric:
            self.best_metric = metric
            self.keep()

    def keep(self) -> None:
        """Take the averaged weights, as they are now, for the best."""
        self.best_epoch = self.epoch
        self.best_state = {k: v.detach().clone().cpu() for k, v in self.average.module.state_dict().items()}

    def content(self) -> dict[str, Any]:
        """Return all of it as tensors, numbers and dictionaries of them; every process must ask at once."""
        return {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average.module.state_dict(),
            "best_state": self.best_state,
            "random": all_gather(self._random()),
            **{name: getattr(self, name) for name in NUMBERS},
        }

    def restore(self, content: Mapping[str, Any]) -> None:
        """Become what ``content`` describes."""
        self.model.load_state_dict(content["model"])
        self.optimiser.load_state_dict(content["optimiser"])
        self.average.module.load_state_dict(content["average"])
        self.best_state = content["best_state"]
        random = content["random"][process_index()]
        self.order.set_state(random["order"])
        self.draws.set_state(random["draws"])
        torch.set_rng_state(random["torch"])
        if random["cuda"] is not None:
            torch.cuda.set_rng_state(random["cuda"])
        for name in NUMBERS:
            setattr(self, name, content[name])

    def _random(self) -> dict[str, Tensor | None]:
        on_gpu = next(self.model.parameters()).device.type == "cuda"
        return {
            "order": self.order.get_state(),
            "draws": self.draws.get_state(),
            "torch": torch.get_rng_state(),  # dropout
            "cuda": torch.cuda.get_rng_state() if on_gpu else None,
        }


class KeptState:
    """The file of a training's state; ``key`` tells trainings of other data or options apart."""

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        self.key = key

    def save(self, state: TrainingState) -> None:
        """Replace the file; every process must ask at once, the first writes."""
        content = {"key": self.key, **state.content()}
        if not is_first():
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(self.path.parent, lambda name: name == self.path.name)  # whoever trains it holds its lock
        replace_atomically(self.path, lambda partial: torch.save(content, partial), mode=0o600)

    def restore(self, state: TrainingState) -> bool:
        """Let ``state`` go on from the file; False if there is none, or it is of another training."""
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            return False
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as exc:
            logger.warning("%s cannot be read, so training begins anew: %s", self.path, str(exc).splitlines()[0])
            return False
        if content.get("key") != self.key:
            logger.warning("%s is of a training of other data or options; training begins anew.", self.path)
            return False
        state.restore(content)
        return True


def state_path(models: Path, name: str) -> Path:
    """Return where the state of a training of model ``name`` is kept; its stages, if any, add their names."""
    return models / FOLDER / f"{name}.pt"


def lock_path(models: Path, name: str) -> Path:
    """Return the file that a training of model ``name`` holds."""
    return models / FOLDER / f"{name}.lock"


def forget_states(models: Path, name: str) -> None:
    """Delete the states of the trainings of model ``name``: it is published, or is to begin anew."""
    for path in (models / FOLDER).glob(f"{name}*"):
        if path != lock_path(models, name):  # which is held: another file of that name would be another lock
            path.unlink(missing_ok=True)


def training_key(model: nn.Module, *identity: object) -> str:
    """Return a digest of the weights that a training begins with and of what else makes it what it is."""
    digest = hashlib.sha256(repr((torch.__version__, process_count(), *identity)).encode())
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


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


Network = TypeVar("Network", bound=nn.Module)
Loss = Callable[[Network, Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Learned:
    """The best averaged weights, their validation measure (NaN: nobody measured), and how the training went."""

    state: dict[str, Tensor]
    best_metric: float
    epochs: int
    wall_time_s: float


class LossOf(nn.Module):
    """A model with its loss: what several processes keep in step is the gradient of this."""

    def __init__(self, model: Network, loss: Loss[Network]) -> None:
        super().__init__()
        self.model = model
        self._loss: Callable[..., Tensor] = loss

    def forward(self, items: Tensor, generator: torch.Generator) -> Tensor:
        return self._loss(self.model, items, generator)


def run_epochs(
    model: Network,
    recipe: Recipe,
    *,
    batches: Callable[[torch.Generator], list[Tensor]],
    loss: Loss[Network],
    validate: Callable[[Network], float] | None,
    seed: int,
    on_epoch: OnEpoch | None = None,
    should_stop: Callable[[], bool] | None = None,
    state_path: Path | None = None,
    state_key: str = "",
    log_dir: Path | None = None,
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
    told = on_epoch if is_first() else None
    if kept is not None and kept.restore(state):
        _tell(state, recipe, told, is_resumed=True)
    started = time.monotonic() - state.elapsed_s
    losses = wrap_distributed(LossOf(model, loss))
    with training_curves(log_dir if is_first() else None, state) as add_to_curves:
        while not state.is_done:
            state.loss = _train_epoch(losses, state, batches(state.order), recipe, started)
            state.epoch += 1
            _judge(state, recipe, validate, should_stop, started)
            if kept is not None:
                kept.save(state)
            _tell(state, recipe, told)
            add_to_curves(state)
    return _learned(state, model)


def _tell(state: TrainingState, recipe: Recipe, on_epoch: OnEpoch | None, *, is_resumed: bool = False) -> None:
    """Say after an epoch how far the training is, to the log and to who asked."""
    done, total = state.epoch, recipe.epochs
    words = "Going on after epoch" if is_resumed else "Epoch"
    logger.info("%s %d of %d: loss %.4f, measure %s", words, done, total, state.loss, state.metric)
    if on_epoch is None:
        return
    eta_s = 0.0 if state.is_done else state.elapsed_s / done * (total - done)
    if recipe.max_minutes is not None:
        eta_s = max(0.0, min(eta_s, 60 * recipe.max_minutes - state.elapsed_s))
    best = state.best_metric if state.best_metric > -math.inf else None
    on_epoch(EpochStatus(done, total, eta_s, state.loss, state.metric, best, is_resumed=is_resumed))


def _judge(
    state: TrainingState,
    recipe: Recipe,
    validate: Callable[[Any], float] | None,
    should_stop: Callable[[], bool] | None,
    started: float,
) -> None:
    """Measure the averaged weights where it is due, and decide whether this was the last epoch: the first process."""
    if is_first():
        elapsed_s = time.monotonic() - started
        is_last = state.epoch == recipe.epochs or (should_stop is not None and should_stop())
        if recipe.max_minutes is not None:  # another epoch would end after the allowed time
            is_last = is_last or elapsed_s * (1 + 0.5 / state.epoch) > 60 * recipe.max_minutes
        if validate is None:
            state.keep()
        else:
            state.judge(validate(state.average.module))
        is_tired = recipe.patience is not None and state.epoch - state.best_epoch >= recipe.patience
        state.is_done = is_last or is_tired
        state.elapsed_s = time.monotonic() - started
    state.is_done = broadcast(state.is_done)


def _learned(state: TrainingState, model: nn.Module) -> Learned:
    """Return what is best, which is then in ``model`` too."""
    best_state = broadcast(state.best_state)
    if best_state is None:
        msg = (
            f"Validation never gave a number in {state.epoch} epochs (last: {state.metric});"
            " check the labels of its patients."
        )
        raise ValueError(msg)
    best_state = as_published(best_state)
    model.load_state_dict(best_state)
    best_metric = broadcast(state.best_metric)
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
            spent = broadcast((time.monotonic() - started) / (60 * recipe.max_minutes))
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
            state.update_average()
        total, steps = total + float(value.detach()), steps + 1
    return total / max(steps, 1)


def lower_precision(device: torch.device) -> torch.autocast:
    """Return the context in which networks run in bfloat16, on a GPU and on a CPU that has instructions for it."""
    is_quick = device.type == "cuda" or choose_dtype(device) is torch.bfloat16
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_quick)


def move_to_device(model: nn.Module, device: torch.device) -> None:
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
