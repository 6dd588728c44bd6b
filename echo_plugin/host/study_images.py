# SPDX-License-Identifier: Apache-2.0
"""The cines of a study folder as viewers ask for them: by an id, as a volume, with notes."""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from echo_plugin.annotations import require_image_id
from echo_plugin.cine import Cine
from echo_plugin.errors import EchoError, UnknownImageError, UnreadableCineError
from echo_plugin.host.cache import RenditionCache, read_json, write_kept
from echo_plugin.io.study_folder import CineEntry, StudyFolder

logger = logging.getLogger(__name__)

VOLUME_SUFFIXES = frozenset({".nrrd", ".nii", ".gz"})
"""What a viewer saves: it has the viewer's geometry, in which boxes drawn on our rendition would lie elsewhere."""

RESCAN_AFTER_S = 5.0
"""A file dropped into the folder is listed at the latest after this long."""

SHORT_SCAN_S = 0.01
"""A choice of the next cine waits for a look at the folder that takes no longer."""


class StudyImages:
    """The readable cines of a study folder.

    Parameters
    ----------
    studies
        The folder.
    cache
        Where renditions and notes are kept.
    """

    def __init__(self, studies: StudyFolder, cache: Path) -> None:
        self.studies = studies
        self.renditions = RenditionCache(cache / "renditions")
        self._notes = cache / "notes"
        self._set_aside: dict[str, str] = {}
        self._scan_lock = threading.Lock()
        self._notes_lock = threading.Lock()
        self.refresh()

    def refresh(self) -> None:
        """Look for new, changed and vanished files now."""
        with self._scan_lock:
            started = time.monotonic()
            self.studies.refresh()
            self._scanned_at = time.monotonic()
            self._scan_took_s = self._scanned_at - started

    def ids(self) -> list[str]:
        """Return the ids of the cines that can be read."""
        return [i for i in self._known_ids() if i not in self._set_aside]

    def _known_ids(self) -> list[str]:
        self.look_again()
        return self.studies.image_ids()

    def _is_readable(self, image_id: str) -> bool:
        self.look_again()
        try:
            return self.studies.entry(image_id).error is None
        except UnknownImageError:
            return False

    def look_again(self) -> None:
        """Look for files if nobody has done so lately."""
        if time.monotonic() - self._scanned_at > RESCAN_AFTER_S:
            self.refresh()

    def look_again_aside(self) -> None:
        """Look for files if nobody has done so lately; in a large folder without making the asker wait for it."""
        if self._scan_took_s <= SHORT_SCAN_S:
            self.look_again()
        elif time.monotonic() - self._scanned_at > RESCAN_AFTER_S and not self._scan_lock.locked():
            threading.Thread(target=self._look_alone, name="look for files", daemon=True).start()

    def _look_alone(self) -> None:
        try:
            self.look_again()
        except (EchoError, OSError, sqlite3.Error):  # the next request that needs the list is told
            logger.warning("Files were looked for in vain", exc_info=True)

    def set_aside(self, image_id: str, reason: str) -> None:
        """Offer an image no more, because it turned out to be unreadable; until the server restarts."""
        logger.warning("Image %s is set aside: %s", image_id, reason)
        self._set_aside[image_id] = reason

    def is_set_aside(self, image_id: str) -> bool:
        """Whether an image is offered no more."""
        return image_id in self._set_aside

    def resolve(self, image_id: str) -> str:
        """Return the id of the one cine that ``image_id`` means.

        A viewer that knows only the series (OHIF) or only the file's name (an upload from 3D Slicer) is served as long
        as that names one cine.

        Raises
        ------
        UnknownImageError
            If it is malformed, names no cine, or names several.
        """
        if self._is_readable(require_image_id(image_id)):
            return image_id
        entries = [entry for entry in self.studies.entries() if not entry.error]
        named = [e for e in entries if image_id in (e.series_instance_uid, e.path.name.removesuffix(e.path.suffix))]
        if len(named) == 1:
            return named[0].image_id
        if named:
            msg = (
                f"Image id {image_id} names {len(named)} cines; ask for one by its SOP instance UID,"
                f" such as {named[0].image_id}."
            )
            raise UnknownImageError(msg)
        msg = f"Image {image_id} is not in the study folder; /datastore/?output=all lists those that are."
        raise UnknownImageError(msg)

    def entry(self, image_id: str) -> CineEntry:
        """Return the index entry of a cine."""
        return self.studies.entry(self.resolve(image_id))

    def read(self, image_id: str) -> Cine:
        """Return a cine; frames are decoded when they are looked at.

        A file that names no patient has the one of patients.csv: its patient's other cines are no past cases of it.
        """
        entry = self.entry(image_id)
        cine = self.studies.read_cine(entry.image_id)
        return replace(cine, patient_id=cine.patient_id or entry.patient_id)

    def rendition(self, image_id: str) -> Path:
        """Return the volume that a viewer loads, made when it is asked for the first time."""
        cine = self.read(image_id)  # one that is in an archive is fetched by this
        return self.renditions.path(cine.image_id, self.studies.entry(cine.image_id).path, lambda: cine)

    def facts(self, image_id: str) -> dict[str, Any]:
        """Return what a viewer may know of a cine, with its notes: no identity of a person."""
        entry = self.entry(image_id)
        return self._facts(entry, read_json(self._notes_path(entry.image_id)))

    def facts_of_all(self) -> dict[str, dict[str, Any]]:
        """Return the ``facts`` of every cine that can be read, in the order of their paths."""
        self.look_again()
        noted = {path.name.removesuffix(".json") for path in self._notes.glob("*.json")}
        entries = [e for e in self.studies.entries() if e.error is None and e.image_id not in self._set_aside]
        return {
            e.image_id: self._facts(e, read_json(self._notes_path(e.image_id)) if e.image_id in noted else {})
            for e in entries
        }

    @staticmethod
    def _facts(entry: CineEntry, notes: Mapping[str, Any]) -> dict[str, Any]:
        return {
            **notes,
            "name": f"{entry.image_id}.nrrd",
            "frames": entry.frames,
            "height": entry.height,
            "width": entry.width,
            "frame_time_ms": entry.frame_time_ms,
        }

    def add_notes(self, image_id: str, notes: Mapping[str, Any]) -> None:
        """Keep notes; those of the same name are replaced. Raises ValueError for numbers that JSON does not know."""
        path = self._notes_path(self.resolve(image_id))
        with self._notes_lock:
            write_kept(path, json.dumps({**read_json(path), **notes}, allow_nan=False).encode())

    def _notes_path(self, image_id: str) -> Path:
        return self._notes / f"{image_id}.json"

    def add(self, name: str, upload: Path) -> str:
        """Put a cine into the study folder and return its id (for DICOM its SOP instance UID).

        Raises
        ------
        UnknownImageError
            If the name is malformed.
        UnreadableCineError
            If the file is no cine, was saved by a viewer, or another image has the name.
        """
        suffix = upload.suffix.lower()
        if suffix in VOLUME_SUFFIXES:
            msg = f"Image {name}: a {suffix} volume from a viewer has lost its calibration; upload the DICOM or video."
            raise UnreadableCineError(msg)
        return self.studies.add_image(upload, f"{require_image_id(name)}{suffix}")

    def remove(self, image_id: str) -> None:
        """Take a cine out of the study folder; its file and its annotations are kept aside there."""
        self.studies.remove_image(self.resolve(image_id))
