# SPDX-License-Identifier: Apache-2.0
"""The models of a study folder: copies of the starters, which its trainings replace.

The starters themselves belong to the checkout. What was learned from patients, and the gallery of their embeddings,
stays where the patients' cines are.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from echo_plugin.host.cache import cache_folder, read_json, write_kept

OWN_MODELS = ".echo_models"
COPIED = ".starters"
"""Lists the SHA-256 of each copy: one that still has it was not trained here, and follows the starter."""


def own_models(studies: Path, starters: Path, cache_base: Path | None = None) -> Path:
    """Return the folder of a study folder's models, with a copy of every starter that no training here has replaced.

    Parameters
    ----------
    studies
        The study folder; where it cannot be written to, its cache holds the models.
    starters
        Published models; not touched.
    cache_base
        See ``cache_folder``.
    """
    folder = own_folder(studies, cache_base)
    copied = read_json(folder / COPIED)
    # A card comes after the weights that it names
    for starter in [*sorted(starters.glob("*.safetensors")), *sorted(starters.glob("*.json"))]:
        own, content = folder / starter.name, starter.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if not own.is_file() or (_digest(own) == copied.get(starter.name) != digest):
            write_kept(own, content)
            copied[starter.name] = digest
    write_kept(folder / COPIED, json.dumps(copied).encode())
    return folder


def own_folder(studies: Path, cache_base: Path | None = None) -> Path:
    """Return where models and gallery of a study folder are kept: in it, or in its cache if it cannot be written to."""
    folder = studies.resolve() / OWN_MODELS
    try:
        folder.mkdir(exist_ok=True)
        is_writable = os.access(folder, os.W_OK)
    except OSError:
        is_writable = False
    return folder if is_writable else cache_folder(studies, cache_base) / "models"


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
