# SPDX-License-Identifier: Apache-2.0
"""Outcomes of long measurements, one JSON file for each training: a run that was stopped goes on where it was.

Each has a key that tells apart the files, labels, networks and numbers it came from; one of another key is no outcome.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from echo_plugin.models.durable_file import write_synced
from echo_plugin.training.datasets import LabelledCine, LabelledFolder
from echo_plugin.training.options import TrainOptions


def read_outcome(path: Path, key: str) -> dict[str, Any] | None:
    """Return the outcome that is kept; None: there is none, or it is one of other data or numbers."""
    try:
        outcome: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return outcome if outcome.pop("key", None) == key else None


def keep_outcome(path: Path, key: str, outcome: Mapping[str, Any]) -> None:
    """Write a JSON-ready outcome under its key; whole or not at all."""
    write_synced(path, json.dumps({"key": key, **outcome}).encode())


def facts_of_cines(labelled: LabelledFolder, cines: Sequence[LabelledCine]) -> list[object]:
    """Return what tells other files and labels apart, for a key."""
    return [labelled.facts_of(cine) for cine in cines]


def facts_of_options(options: TrainOptions) -> list[object]:
    """Return the numbers of a training that its network does not hold, for a key."""
    numbers = (options.epochs, options.backbone, options.batch_size, options.learning_rate, options.max_minutes)
    return [*numbers, options.recipe, options.mirror, options.seed]
