# SPDX-License-Identifier: Apache-2.0
"""All that a training is at the end of an epoch, and the file from which a killed one goes on.

The file is replaced as a whole after each epoch, so a training loses at most the epoch that it was in. It holds weights
that learned from patients: it is the user's alone to read, and is gone once the model is published.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import math
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from echo_plugin.io.atomic_file import fsync_directory
from echo_plugin.training.processes import gathered, is_first, process_count, process_index

logger = logging.getLogger(__name__)

FOLDER = ".training"
"""In the folder of models: the states of trainings under way."""

NUMBERS = ("epoch", "loss", "metric", "best_metric", "best_epoch", "elapsed_s", "is_done", "run")


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


class TrainingState:
    """A model with its optimiser, average and random numbers, and how far it is; ``epoch`` is the number done.

    ``order`` draws the batches, alike in all processes; ``draws`` is for augmentation, each process's own.
    ``run`` names the training among the curves of others.
    """

    def __init__(self, model: nn.Module, optimiser: torch.optim.Optimizer, decay: float, seed: int, run: str) -> None:
        self.model, self.optimiser, self.average = model, optimiser, WeightAverage(model, decay)
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

    def judge(self, metric: float) -> None:
        """Note what the averaged weights are worth, and keep them if nothing was better."""
        self.metric = metric
        if metric >= self.best_metric:
            self.best_metric = metric
            self.keep()

    def keep(self) -> None:
        """Take the averaged weights, as they are now, for the best."""
        self.best_epoch = self.epoch
        self.best_state = {k: v.detach().clone().cpu() for k, v in self.average.model.state_dict().items()}

    def content(self) -> dict[str, Any]:
        """Return all of it as tensors, numbers and dictionaries of them; every process must ask at once."""
        return {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average.model.state_dict(),
            "updates": self.average.updates,
            "best_state": self.best_state,
            "random": gathered(self._random()),
            **{name: getattr(self, name) for name in NUMBERS},
        }

    def restore(self, content: Mapping[str, Any]) -> None:
        """Become what ``content`` describes."""
        self.model.load_state_dict(content["model"])
        self.optimiser.load_state_dict(content["optimiser"])
        self.average.model.load_state_dict(content["average"])
        self.average.updates = content["updates"]
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
        partial = self.path.with_suffix(".partial")  # always the same: what a killed writer left is written over
        partial.unlink(missing_ok=True)
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.path)
        fsync_directory(self.path.parent)

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
