# SPDX-License-Identifier: Apache-2.0
"""What several verbs of the command line share: folders, device, seed, which model, and how JSON is written."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from echo_plugin.models.card_file import STARTERS


class Trainable(StrEnum):
    """The models that a person can train and measure."""

    DETECTOR = "detector"
    DEFECTS = "defects"
    VIEWS = "views"


DEFAULT_MODELS = STARTERS

Models = Annotated[Path, typer.Option("--models", help="Folder of published models.", show_default="apps/echo/model")]
Studies = Annotated[Path, typer.Option("--studies", help="Study folder: images and annotations/.")]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto: the GPU if there is one.")]
Seed = Annotated[int, typer.Option("--seed", help="Same seed, same result.")]


def write_json(result: Any, target: str | None) -> None:
    """Write ``result`` as JSON to the file ``target``; None and - are stdout."""
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    if target is None or target == "-":
        sys.stdout.write(text)
    else:
        Path(target).write_text(text, encoding="utf-8")
