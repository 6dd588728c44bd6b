# SPDX-License-Identifier: Apache-2.0
"""One training in several processes, as ``torchrun`` starts them: who is first, what all agree on, who learns what.

A training that is alone is the first of one: nothing is sent, every value is its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from echo_plugin.answer.runtime import choose_device

Value = TypeVar("Value")

PATIENCE = timedelta(days=1)
"""How long processes wait for one another: the first reads cines and measures while the others wait."""


@contextmanager
def joined_processes(device: str = "auto") -> Iterator[None]:
    """Join the processes that ``torchrun`` started, one GPU each or all on the CPU; does nothing in a training alone.

    Raises
    ------
    ValueError
        If this process has no GPU of its own on its machine.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield
        return
    on_gpu = choose_device(device).type == "cuda"
    if on_gpu:
        place = int(os.environ["LOCAL_RANK"])
        if place >= torch.cuda.device_count():
            msg = (
                f"Process {place + 1} of this machine has no GPU: there are {torch.cuda.device_count()};"
                " start as many processes with torchrun --nproc-per-node."
            )
            raise ValueError(msg)
        torch.cuda.set_device(place)
    distributed.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=PATIENCE)
    try:
        yield
        distributed.barrier()  # a process that leaves while another still talks to it can end by an abort of gloo
    finally:
        distributed.destroy_process_group()


def process_count() -> int:
    """Return how many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def process_index() -> int:
    """Return which of them this is, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def is_first() -> bool:
    """Whether this process measures, reports, keeps and publishes."""
    return process_index() == 0


def broadcast(value: Value) -> Value:
    """Return the first process's value in every process."""
    if process_count() == 1:
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


def all_gather(value: Value) -> list[Value]:
    """Return every process's value in every process, in their order."""
    if process_count() == 1:
        return [value]
    values: list[Value] = [value] * process_count()
    distributed.all_gather_object(values, value)
    return values


@contextmanager
def first_process_first() -> Iterator[None]:
    """Run the body in the first process, then in the others: what it left in a cache is there for them."""
    if process_count() > 1 and not is_first():
        distributed.barrier()
    yield
    if process_count() > 1 and is_first():
        distributed.barrier()


def own_share(batch: Tensor, index: int, count: int) -> Tensor:
    """Return the items of a batch that process ``index`` of ``count`` learns from: as many as every other, all others.

    What does not go round is left out. A share of one has no statistics, so a batch that would be cut to such shares
    gives nothing to anybody.

    >>> [own_share(torch.arange(7), index, 3).tolist() for index in range(3)]
    [[0, 3], [1, 4], [2, 5]]
    """
    if count == 1:
        return batch
    each = len(batch) // count
    return batch[: each * count if each > 1 else 0][index::count]


def wrap_distributed(module: nn.Module) -> nn.Module:
    """Return the module such that backward passes average the gradients of all processes."""
    if process_count() == 1:
        return module
    # a stage of a training may leave parts of the network alone
    return DistributedDataParallel(module, find_unused_parameters=True)
