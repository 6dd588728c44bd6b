# SPDX-License-Identifier: Apache-2.0
"""Work in processes of its own, one of a kind at a time; MONAI Label starts, remembers and kills them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from monailabel.utils.async_tasks.task import AsyncTask

from echo_plugin.errors import EchoError

STARTING = threading.Lock()
"""Held while a job is started: of two requests at once, one starts it and the other is told so."""


class JobRunningError(EchoError):
    """Work of this kind is being done already; wait for it or stop it."""


def is_at_work(method: str) -> bool:
    """Whether a job of the kind ``train`` or ``batch_infer`` runs or is about to."""
    latest, _ = AsyncTask.status(method)
    return latest is not None and latest["status"] in ("SUBMITTED", "RUNNING")


def start_job(
    method: str, request: dict[str, Any], *, enqueue: bool = False, before: Callable[[], None] | None = None
) -> dict[str, Any]:
    """Start a job, after calling ``before``, and return it as MONAI Label describes it.

    Raises
    ------
    JobRunningError
        If one of its kind is at work, unless it may ``enqueue``.
    """
    with STARTING:
        if is_at_work(method) and not enqueue:
            msg = f"A {method} job is running already; wait for it or stop it."
            raise JobRunningError(msg)
        if before is not None:
            before()
        job, sentence = AsyncTask.run(method, request=request, enqueue=enqueue)
        if job is None:  # one that was stopped is about to end
            raise JobRunningError(sentence)
        return job
