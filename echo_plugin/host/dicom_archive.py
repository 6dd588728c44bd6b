# SPDX-License-Identifier: Apache-2.0
"""The DICOM instances of a study folder as the routes of DICOMweb ask for them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, Generic, TypeVar

from echo_plugin.errors import UnknownImageError, UnreadableCineError
from echo_plugin.io.dicom_catalogue import DicomCatalogue, DicomInstance
from echo_plugin.io.dicom_cine import DicomFrames, read_dicom_cine
from echo_plugin.io.dicom_json import read_metadata
from echo_plugin.io.study_folder import StudyFolder

OPEN_CINES = 64
"""How many cines keep their table of frames in memory: a few KB each, and a player asks for one frame after another."""
KEPT_HEADERS = 512

Value = TypeVar("Value")


class RecentlyUsed(Generic[Value]):
    """The last ``size`` values that were made; several threads may make the same one at the same time."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """Return the value of ``key``, made when it is not kept."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        with self._lock:
            self._values[key] = value
            while len(self._values) > self._size:
                self._values.popitem(last=False)
        return value


class DicomArchive:
    """What DICOMweb serves of a study folder; ``cache``: where its index is kept."""

    def __init__(self, studies: StudyFolder, cache: Path) -> None:
        self.studies = studies
        self.catalogue = DicomCatalogue(studies.root, cache / "dicomweb.sqlite")
        self._frames: RecentlyUsed[DicomFrames] = RecentlyUsed(OPEN_CINES)
        self._headers: RecentlyUsed[dict[str, Any]] = RecentlyUsed(KEPT_HEADERS)

    def instances(self, study: str, series: str | None = None, sop: str | None = None) -> list[DicomInstance]:
        """Return the instances of a study, a series or the one named.

        Raises
        ------
        UnknownImageError
            If there is none.
        """
        known = self.catalogue.instances()
        candidates = known.values() if sop is None else filter(None, [known.get(sop)])
        found = [i for i in candidates if i.study_uid == study and series in (None, i.series_uid)]
        if not found:
            what, uid = ("Instance", sop) if sop else ("Series", series) if series else ("Study", study)
            msg = f"{what} {str(uid)[:64]} is not in the study folder."
            raise UnknownImageError(msg)
        return found

    def metadata(self, instance: DicomInstance, base_url: str) -> dict[str, Any]:
        """Return the DICOM JSON of an instance without its bulk data, which is found below ``base_url``."""
        url = (
            f"{base_url}/studies/{instance.study_uid}/series/{instance.series_uid}/instances/{instance.sop_uid}"
            "/bulkdata"
        )
        key = (instance.path, instance.stamp, url)
        return self._headers.get(key, lambda: read_metadata(instance.path, url))

    def frames(self, instance: DicomInstance) -> DicomFrames:
        """Return the frames of an instance; where each lies in the file is kept for the next request.

        Raises
        ------
        UnreadableCineError
            If the instance is no image or is damaged.
        """
        return self._frames.get((instance.path, instance.stamp), lambda: _open_frames(instance.path))


def _open_frames(path: Path) -> DicomFrames:
    frames = read_dicom_cine(path).frames
    if not isinstance(frames, DicomFrames):
        msg = f"File {path.name!r} has no frames that are stored as DICOM has them."
        raise UnreadableCineError(msg)
    return frames
