# SPDX-License-Identifier: Apache-2.0
"""Where the server keeps what it makes, so that serving changes nothing in a checkout.

* A study folder holds what people said of its cines (``annotations``), what was learned from them (``.echo_models``),
  and what the choice of the next cine goes by.
* The shipped samples are never served themselves: whoever names them, by whatever command, is served the copy of them
  in the user's data folder. It is made once; delete it to begin anew.
* Renditions, kept predictions, notes and the log are in the user's cache, keyed by the study folder. All of it may be
  deleted. It is readable by its owner only, because a rendition shows what the cine shows.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from echo_plugin.durable import make_directory, user_cache, write_atomically

logger = logging.getLogger(__name__)

SAMPLES = Path(__file__).resolve().parents[2] / "sample_studies"
"""Of a checkout; an installed package has none."""
OWN_MODELS = ".echo_models"
COPIED = ".starters"
"""Lists the SHA-256 of each copy: one that still has it was not trained here, and follows the starter."""


def user_data() -> Path:
    """Return the program's folder in the user's data: it is no cache, annotations are in it."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "monailabel-echo"


def cache_folder(studies: Path, base: Path | None = None) -> Path:
    """Return the (created) cache folder of a study folder, below ``base`` or the user's cache."""
    folder = (base or user_cache()) / hashlib.sha256(str(studies.resolve()).encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def log_file(cache: Path) -> Path:
    """Return the server's log in the cache of its study folder, where MONAI Label's set-up puts it too."""
    return cache / "logs" / "app.log"


def move_log(app_dir: Path, log: Path) -> None:
    """Continue in ``log`` what MONAI Label's own command began to log in the app folder."""
    loggers = [logging.getLogger(), *map(logging.getLogger, logging.root.manager.loggerDict)]
    for handler in {handler for logger in loggers for handler in logger.handlers}:
        if not isinstance(handler, logging.FileHandler):
            continue
        begun = Path(handler.baseFilename)
        if begun.is_relative_to(app_dir.resolve()):
            handler.close()
            log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            handler.baseFilename = str(log)  # opened by the next line that is logged
            if begun.is_file():
                with log.open("ab") as stream:
                    stream.write(begun.read_bytes())
                begun.unlink()


def write_kept(path: Path, content: bytes) -> None:
    """Write a file of the cache in one step, with the folder it is in."""
    make_directory(path.parent)
    write_atomically(path, content)


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object of a file; empty when there is none or it cannot be read (it is only a cache)."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def served_folder(studies: Path) -> Path:
    """Return the folder to serve for ``studies``: the user's copy of the shipped samples for these, else itself."""
    if studies.resolve() != SAMPLES:
        return studies
    copy = user_data() / SAMPLES.name
    if not copy.is_dir():
        copy.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=copy.parent) as folder:
            made = shutil.copytree(SAMPLES, Path(folder) / copy.name, ignore=shutil.ignore_patterns(".echo*"))
            try:
                made.rename(copy)
            except OSError:
                if not copy.is_dir():  # where it is, another server has made it meanwhile
                    raise
        logger.info("The shipped samples are served from their copy in %s", copy)
    return copy


def served_models(studies: Path, asked: Path | None, starters: Path, cache_base: Path | None = None) -> Path:
    """Return the folder of the models to serve: the one asked for, else the study folder's own, begun as copies.

    The starters belong to the checkout and are never published into, even if they are asked for by name. What was
    learned from patients, and the gallery of their embeddings, stays where the patients' cines are.
    """
    if asked is not None and asked.resolve() != starters.resolve():
        return asked
    return own_models(studies, starters, cache_base)


def own_models(studies: Path, starters: Path, cache_base: Path | None = None) -> Path:
    """Return the folder of a study folder's models, with a copy of every starter that no training here has replaced.

    It is in the study folder or, where that cannot be written to, in its cache (see ``cache_folder``).
    """
    folder = studies.resolve() / OWN_MODELS
    try:
        folder.mkdir(exist_ok=True)
        is_writable = os.access(folder, os.W_OK)
    except OSError:
        is_writable = False
    if not is_writable:
        folder = cache_folder(studies, cache_base) / "models"
    known = read_json(folder / COPIED)
    copied = dict(known)
    # A card comes after the weights that it names
    for starter in [*sorted(starters.glob("*.safetensors")), *sorted(starters.glob("*.json"))]:
        own, digest = folder / starter.name, file_digest(starter)
        if not own.is_file() or (file_digest(own) == copied.get(starter.name) != digest):
            write_kept(own, starter.read_bytes())
            copied[starter.name] = digest
    if copied != known:
        write_kept(folder / COPIED, json.dumps(copied).encode())
    return folder


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
