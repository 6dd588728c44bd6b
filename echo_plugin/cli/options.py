# SPDX-License-Identifier: Apache-2.0
"""What several verbs of the command line share: folders, device, seed, which model, and where reports are written."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from echo_plugin.durable import require_writable, write_atomically
from echo_plugin.errors import EchoError
from echo_plugin.host.folders import served_folder
from echo_plugin.model_card import STARTERS

DEFAULT_MODELS = STARTERS

Models = Annotated[Path, typer.Option("--models", help="Folder of published models.", show_default="apps/echo/model")]
Studies = Annotated[
    Path, typer.Option("--studies", help="Study folder: images and annotations/.", callback=served_folder)
]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto: the GPU if there is one.")]
Seed = Annotated[int, typer.Option("--seed", help="Same seed, same result.")]


def write_json(result: Any, target: str | None) -> None:
    """Write ``result`` as JSON to the file ``target``; None and - are stdout."""
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    if target is None or target == "-":
        sys.stdout.write(text)
    else:
        write_atomically(Path(target), text.encode())


def require_report_place(file: Path, option: str, *, made_later: Path | None = None) -> None:
    """Refuse, before long work, a place where its report could not be written; a file that is there is written over.

    ``option`` : what the person called it by, such as ``--json``. ``made_later`` : a folder that need not be there yet,
    as the work itself makes it.

    Raises
    ------
    EchoError
        If the folder is not there or cannot be written to, or the file is none or cannot be.
    """
    folder = file.absolute().parent
    if folder.is_dir():
        require_writable(folder)
    elif made_later is None or folder.resolve() != made_later.resolve():
        msg = f"Folder {file.parent} of {option} does not exist; one that does is accepted."
        raise EchoError(msg)
    if file.exists() and not (file.is_file() and os.access(file, os.W_OK)):
        msg = f"{option} {file} is no file that can be written to; the name of another one is accepted."
        raise EchoError(msg)
