# SPDX-License-Identifier: Apache-2.0
"""What the host keeps beside a study folder: renditions, predictions, notes about images, training progress.

Nothing here is a label, and all of it may be deleted: renditions are made again from the cines. The folder is readable
by its owner only, because a rendition shows what the cine shows.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from echo_plugin.cine import Cine
from echo_plugin.durable import drop_longest_unused, make_directory, user_cache, write_atomically
from echo_plugin.io.volume import write_rendition

RENDITION_FORMAT = "1"
"""Part of a rendition's key: raise it when ``io.volume`` writes something else for the same cine."""

RENDITION_LIMIT_BYTES = 8 << 30
"""The oldest renditions go when all of them together exceed this."""


def cache_folder(studies: Path, base: Path | None = None) -> Path:
    """Return the (created) cache folder of a study folder, below ``base`` or the user's cache folder."""
    folder = (base or user_cache()) / hashlib.sha256(str(studies.resolve()).encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


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


class RenditionCache:
    """Volumes that a viewer can load, one per content of a cine file.

    Parameters
    ----------
    folder
        Where they are kept, ``<folder>/<key>/<image_id>.nrrd``.
    limit_bytes
        The oldest go when all together exceed this; the newest is always kept.
    """

    def __init__(self, folder: Path, limit_bytes: int = RENDITION_LIMIT_BYTES) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self._digests: dict[tuple[Path, int, int], str] = {}
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def path(self, image_id: str, source: Path, read: Callable[[], Cine]) -> Path:
        """Return the rendition of a cine file, made with ``read`` if this content was not rendered yet."""
        key = self._digest(source)
        path = self.folder / key[:24] / f"{image_id}.nrrd"
        with self._locks[key]:  # two viewers asking at once get one rendering
            if path.is_file():
                path.touch()
                return path
            path.parent.mkdir(parents=True, exist_ok=True)
            write_rendition(read(), path)
        others = (other for other in self.folder.glob("*/*.nrrd") if other != path)
        drop_longest_unused(others, self.limit_bytes - path.stat().st_size)
        return path

    def _digest(self, source: Path) -> str:
        status = source.stat()
        key = (source, status.st_mtime_ns, status.st_size)
        if key not in self._digests:
            with source.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
            self._digests[key] = hashlib.sha256(f"{content} {RENDITION_FORMAT}".encode()).hexdigest()
        return self._digests[key]
