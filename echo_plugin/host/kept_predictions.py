# SPDX-License-Identifier: Apache-2.0
"""Predictions that batch inference made ahead of time, as the markups files that viewers load."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from echo_plugin.errors import UnknownImageError
from echo_plugin.host.cache import read_json, write_kept


class KeptPredictions:
    """One markups file and one JSON of facts per image id, in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __contains__(self, image_id: str) -> bool:
        return self._path(image_id).is_file()

    def ids(self) -> set[str]:
        """Return the ids of the images with a prediction: one look at the folder, however many images there are."""
        return {path.name.removesuffix(".mrk.json") for path in self.folder.glob("*.mrk.json")}

    def _path(self, image_id: str) -> Path:
        return self.folder / f"{image_id}.mrk.json"

    def keep(self, image_id: str, markups: bytes, facts: Mapping[str, Any]) -> None:
        """Keep the latest prediction of a cine."""
        write_kept(self.folder / f"{image_id}.facts", json.dumps(dict(facts), default=str).encode())
        write_kept(self._path(image_id), markups)

    def path(self, image_id: str) -> Path:
        """Return the markups file.

        Raises
        ------
        UnknownImageError
            If none is kept.
        """
        if image_id not in self:
            msg = f"Image {image_id} has no kept prediction; batch inference keeps them."
            raise UnknownImageError(msg)
        return self._path(image_id)

    def facts(self, image_id: str) -> dict[str, Any]:
        """Return model and JSON of the prediction; empty when none is kept."""
        return read_json(self.folder / f"{image_id}.facts")

    def forget(self, image_id: str) -> None:
        """Delete it if there is one."""
        self._path(image_id).unlink(missing_ok=True)
        (self.folder / f"{image_id}.facts").unlink(missing_ok=True)
