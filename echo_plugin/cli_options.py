# SPDX-License-Identifier: Apache-2.0
"""Words that several verbs of the command line share: folders, device, seed, which model."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer


class Trainable(StrEnum):
    """The models that a person can train and measure."""

    DETECTOR = "detector"
    DEFECTS = "defects"
    VIEWS = "views"


DEFAULT_MODELS = Path(__file__).resolve().parents[1] / "apps" / "echo" / "model"
"""The starter weights of a checkout."""

Models = Annotated[Path, typer.Option("--models", help="Folder of published models.", show_default="apps/echo/model")]
Studies = Annotated[Path, typer.Option("--studies", help="Study folder: images and annotations/.")]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto: the GPU if there is one.")]
Seed = Annotated[int, typer.Option("--seed", help="Same seed, same result.")]
