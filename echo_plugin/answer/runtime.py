# SPDX-License-Identifier: Apache-2.0
"""Where and how networks run: the device, the number format, and networks that follow what is published.

Nothing falls back in silence: a device that was asked for and is absent is an error; ``describe`` says what was chosen.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from echo_plugin.errors import ModelNotFoundError
from echo_plugin.model_card import ModelCard, load_card
from echo_plugin.models.checkpoint import load_published, load_state

logger = logging.getLogger(__name__)
Network = TypeVar("Network", bound=nn.Module)

DEVICES = ("auto", "cpu", "cuda")
TRAIN_COMMANDS = {"septal_detector": "detector", "defect_embedder": "defects", "view_classifier": "views"}


def choose_device(asked: str = "auto") -> torch.device:
    """Return the device to run on: the GPU if there is one, for ``auto``.

    Raises
    ------
    ValueError
        If ``asked`` is none of auto, cpu, cuda, or is cuda and this machine has none.
    """
    if asked not in DEVICES:
        msg = f"Device {asked!r} is unknown; {', '.join(DEVICES)} are accepted."
        raise ValueError(msg)
    has_cuda = asked != "cpu" and torch.cuda.is_available()
    if asked == "cuda" and not has_cuda:
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU only"
        msg = f"Device cuda was asked for but torch {torch.__version__} (built for {build}) sees none; use cpu or auto."
        raise ValueError(msg)
    return torch.device("cuda" if has_cuda else "cpu")


def choose_dtype(device: torch.device) -> torch.dtype:
    """Return the number format of inference: float16 on a GPU, bfloat16 on a CPU made for it, else float32.

    Measured with tests/benchmarks/benchmark_pipeline.py: bfloat16 halves the time of a frame on an AVX512-BF16 CPU and
    moves embeddings by less than 0.001 in cosine; without the instructions it is slower than float32.
    """
    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if _cpu_flags() & {"avx512_bf16", "amx_bf16"} else torch.float32


def _cpu_flags() -> set[str]:
    """Return the instruction sets that Linux lists for the first CPU; empty on other systems."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            for line in file:
                if line.startswith("flags"):
                    return set(line.split())
    except OSError:
        pass
    return set()


@dataclass(frozen=True)
class Runtime:
    """A device with the number format networks run in there."""

    device: torch.device
    dtype: torch.dtype

    @classmethod
    def on(cls, asked: str = "auto") -> Runtime:
        """Return the runtime for auto, cpu or cuda."""
        device = choose_device(asked)
        return cls(device, choose_dtype(device))

    def describe(self) -> dict[str, str | int]:
        """Return what was chosen, for people and logs."""
        facts: dict[str, str | int] = {"device": self.device.type, "dtype": str(self.dtype).removeprefix("torch.")}
        if self.device.type == "cuda":
            return {**facts, "name": torch.cuda.get_device_name(self.device)}
        return {**facts, "threads": torch.get_num_threads()}


def prepare_network(network: Network, runtime: Runtime) -> Network:
    """Return the network ready to predict: evaluation, normalisation folded into convolutions, on device, in dtype."""
    network = network.eval().requires_grad_(False)
    fold_batch_norms(network)
    network.to(device=runtime.device)
    for child in network.children():  # what the network itself holds, class centres, stays exact
        child.to(dtype=runtime.dtype)
    network.to(memory_format=torch.channels_last)
    return network


def fold_batch_norms(network: nn.Module) -> None:
    """Fold every batch normalisation into the convolution or linear layer before it: the same function, sooner.

    Children stand in the order in which they run, in torchvision's networks and in ours.
    """
    for parent in network.modules():
        children = list(parent.named_children())
        for (name, first), (next_name, second) in pairwise(children):
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(first, second))
            elif isinstance(first, nn.Linear) and isinstance(second, nn.BatchNorm1d):
                setattr(parent, name, fuse_linear_bn_eval(first, second))
            else:
                continue
            setattr(parent, next_name, nn.Identity())


class PublishedNetwork(Generic[Network]):
    """A network that is what ``directory`` publishes under ``name``, read anew when somebody publishes.

    ``build`` makes the network of a card, without weights. ``lock`` is held by whoever runs the network.
    """

    def __init__(self, directory: Path, name: str, build: Callable[[ModelCard], Network], runtime: Runtime) -> None:
        self.directory = directory
        self.name = name
        self.runtime = runtime
        self.lock = threading.RLock()
        self._build = build
        self._stamp: tuple[int, int, int] | None = None
        self._loaded: tuple[ModelCard, Network] | None = None

    def get(self) -> tuple[ModelCard, Network]:
        """Return the published card and network; reads files only when the card on disk has changed.

        Raises
        ------
        ModelNotFoundError
            If nothing is published; the message says how to train it.
        ModelMismatchError
            If the weights do not fit their card.
        """
        with self.lock:
            stamp = self._read_stamp()
            if self._loaded is None or stamp != self._stamp:
                card, state = load_published(self.directory, self.name)
                network = self._build(card)
                load_state(network, state, card)
                self._loaded = card, prepare_network(network, self.runtime)
                self._stamp = stamp
                logger.info("Loaded %s %s on %s", card.name, card.version, self.runtime.device.type)
            return self._loaded

    def is_outdated(self) -> bool:
        """Whether something else is published than what is loaded."""
        with self.lock:
            return self._loaded is None or self._read_stamp() != self._stamp

    def _read_stamp(self) -> tuple[int, int, int]:
        """Return what changes with every publish: the card file is replaced, never rewritten."""
        try:
            status = (self.directory / f"{self.name}.json").stat()
        except FileNotFoundError:
            try:
                load_card(self.directory, self.name)  # says what is there
            except ModelNotFoundError as exc:
                command = f"monailabel-echo train {TRAIN_COMMANDS[self.name]} --studies DIR --models {self.directory}"
                msg = f"{str(exc).rstrip('.')}; train it with `{command}`."
                raise ModelNotFoundError(msg) from exc
            return self._read_stamp()
        return status.st_mtime_ns, status.st_ino, status.st_size
