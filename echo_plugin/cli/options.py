# SPDX-License-Identifier: Apache-2.0
"""What several verbs of the command line share: folders, device, seed, and how JSON is written.

Whether a report can be written at a place that a person names: asked before the work that ends with the report.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from echo_plugin.durable import require_writable
from echo_plugin.errors import EchoError
from echo_plugin.model_card import STARTERS

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


def require_report_place(
    file: Path, option: str, is_ours: Callable[[Path], bool], *, made_later: Path | None = None
) -> None:
    """Refuse a place where a report could not be written, or would replace what is no report of the same kind.

    ``option`` : what the person called it by, such as ``--json``. ``is_ours`` : whether a file that is there, and is
    not empty, may be replaced. ``made_later`` : a folder that need not be there yet, as the work itself makes it.

    Raises
    ------
    EchoError
        If the folder is not there or cannot be written to, a study folder keeps the name for itself, or something
        else is in the place.
    """
    folder = file.absolute().parent
    _require_free_name(file, option)
    if folder.is_dir():
        require_writable(folder)
    elif made_later is None or folder.resolve() != made_later.resolve():
        msg = f"Folder {file.parent} of {option} does not exist; one that does is accepted."
        raise EchoError(msg)
    if not file.exists():
        return
    if not file.is_file():
        msg = f"{option} {file} is no file; the name of a new one, or of one from an earlier run, is accepted."
        raise EchoError(msg)
    try:
        with file.open("r+b") as there:
            is_empty = not there.read(1)
        is_fit = is_empty or is_ours(file)
    except OSError as exc:
        msg = f"{option} {file} cannot be written to ({exc.strerror or exc}); the name of a new file is accepted."
        raise EchoError(msg) from exc
    if not is_fit:
        msg = f"{option} {file} is there and was not written by an earlier run; the name of a new file is accepted."
        raise EchoError(msg)


def begins_with(file: Path, start: bytes) -> bool:
    """Whether a file begins so; the rest of it is not read."""
    with file.open("rb") as there:
        return there.read(len(start)) == start


def _require_free_name(file: Path, option: str) -> None:
    """Refuse a name that means something in a study folder, by itself and where a link leads."""
    from echo_plugin.io.patients_file import PATIENTS_FILE
    from echo_plugin.io.study_index import ANNOTATIONS_DIRECTORY  # it loads pydicom, which info does without

    kept = (PATIENTS_FILE, "import.json", ANNOTATIONS_DIRECTORY)
    for path in (file.absolute(), file.resolve()):
        name = path.name.casefold()
        if name in kept or name.startswith(".") or path.parent.name.casefold() == ANNOTATIONS_DIRECTORY:
            msg = f"{option} {file}: a study folder keeps that name for itself; another one is accepted."
            raise EchoError(msg)
