# SPDX-License-Identifier: Apache-2.0
"""One training of a model in a folder at a time, whoever starts it: a server, another server, the command line.

They share the state that a killed training goes on from; the first to publish would delete the other's, and both would
go on from the same version. The lock is the system's, on an empty file that stays: a killed process lets go of it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from echo_plugin.errors import EchoError
from echo_plugin.training.loop import lock_path
from echo_plugin.training.processes import broadcast, is_first

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


class TrainingUnderWayError(EchoError):
    """Raised when the model is being trained by somebody else; wait for that training, or stop it."""


@contextmanager
def only_training(models: Path, name: str) -> Iterator[None]:
    """Keep other trainings of model ``name`` from the folder ``models`` meanwhile.

    Of processes that train together the first holds the lock for all.

    Raises
    ------
    TrainingUnderWayError
        If another training holds it.
    """
    path = lock_path(models, name)
    descriptor = None
    if is_first():
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if not broadcast(descriptor is not None and _is_locked_for_us(descriptor)):
            msg = f"Model {name} in {models} is being trained already; wait for that training, or stop it."
            raise TrainingUnderWayError(msg)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _is_locked_for_us(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # PermissionError: of Windows
        return False
    return True
