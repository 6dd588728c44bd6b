# SPDX-License-Identifier: Apache-2.0
"""A study folder as MONAI Label's ``Datastore``: images by SOP instance UID, labels as canonical annotations.

Viewers get renderings (a volume for the cine, a markups file for the boxes); what they send back becomes a new revision
of the annotation. ``final`` is what a person said, ``original`` what a model predicted; a label has its image's id.
Volumes, notes on images, and predictions that batch inference made ahead of time are in the folder's cache.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import sqlite3
import tempfile
import threading
import time
import zipfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore, DefaultLabelTag

from echo_plugin.annotations import Annotation, require_image_id
from echo_plugin.cine import Cine
from echo_plugin.durable import drop_longest_unused, file_stamp
from echo_plugin.errors import AnnotationError, EchoError, UnknownImageError, UnreadableCineError
from echo_plugin.host.folders import cache_folder, read_json, write_kept
from echo_plugin.host.submission import store_submission
from echo_plugin.io.label_summaries import LabelSummaries, summarise
from echo_plugin.io.markups import boxes_to_markups
from echo_plugin.io.study_folder import CineEntry, StudyFolder
from echo_plugin.io.volume import rendition_geometry, write_rendition

logger = logging.getLogger(__name__)

VOLUME_SUFFIXES = frozenset({".nrrd", ".nii", ".gz"})
"""What a viewer saves: it has the viewer's geometry, in which boxes drawn on our rendition would lie elsewhere."""

RESCAN_AFTER_S = 5.0
"""A file dropped into the folder is listed at the latest after this long."""

SHORT_SCAN_S = 0.01
"""A choice of the next cine waits for a look at the folder that takes no longer."""


RENDITION_FORMAT = "1"
"""Part of a rendition's key: raise it when ``io.volume`` writes something else for the same cine."""

RENDITION_LIMIT_BYTES = 8 << 30
"""The oldest renditions go when all of them together exceed this."""


class RenditionCache:
    """Volumes that a viewer can load, one per state of a cine file.

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
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def path(self, image_id: str, source: Path, read: Callable[[], Cine]) -> Path:
        """Return the rendition of a cine file, made with ``read`` if the file was not rendered as it is now."""
        state = f"{RENDITION_FORMAT} {source} {file_stamp(source)}"
        key = hashlib.sha256(state.encode(errors="surrogateescape")).hexdigest()
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


FINAL = DefaultLabelTag.FINAL.value
ORIGINAL = DefaultLabelTag.ORIGINAL.value


def require_tag(tag: str | None) -> str:
    """Return a label tag if it is one of the two that exist; nothing means ``final``.

    Raises
    ------
    AnnotationError
        For any other text.
    """
    tag = tag or FINAL
    if tag not in (FINAL, ORIGINAL):
        msg = f"Label tag {str(tag)[:40]!r} is unknown; {FINAL!r} (drawn by a person) and {ORIGINAL!r} are accepted."
        raise AnnotationError(msg)
    return DefaultLabelTag(tag).value


class EchoDatastore(Datastore):
    """Images, labels and notes of one study folder.

    Parameters
    ----------
    root
        The study folder.
    cache_base
        Where renditions are kept; None: the user's cache folder.
    studies
        The folder at ``root`` where it is of another kind (an archive's cines); None: a plain one.
    """

    def __init__(self, root: Path, cache_base: Path | None = None, studies: StudyFolder | None = None) -> None:
        self.root = root
        self.studies = studies or StudyFolder(root)
        self.cache = cache_folder(root, cache_base)
        self.images = StudyImages(self.studies, self.cache)
        self.labels = LabelSummaries(self.studies)
        self.predictions = KeptPredictions(self.cache / "predictions")
        self._name = root.name
        self._description = "Echocardiograms and their septal boxes"

    def name(self) -> str:
        return self._name

    def set_name(self, name: str) -> None:
        self._name = name

    def description(self) -> str:
        return self._description

    def set_description(self, description: str) -> None:
        self._description = description

    def refresh(self) -> None:
        self.images.refresh()

    def status(self) -> dict[str, Any]:
        counts = {tag: len(self.get_labeled_images(tag)) for tag in (FINAL, ORIGINAL)}
        tags = {tag: count for tag, count in counts.items() if count}
        return {"total": len(self.list_images()), "completed": counts[FINAL], "label_tags": tags}

    def json(self) -> dict[str, Any]:
        # Predictions are not listed: 3D Slicer would load one AND predict, and draw each box twice.
        labelled = self.labels.current()
        objects = {}
        for image_id, facts in self.images.facts_of_all().items():
            info = _label_facts(self.studies.annotation(image_id)) if image_id in labelled else {}
            label = {FINAL: {"ext": ".json", "info": info}} if info else {}
            objects[image_id] = {"image": {"ext": ".nrrd", "info": facts}, "labels": label}
        return {"name": self._name, "description": self._description, "objects": objects}

    def list_images(self) -> list[str]:
        return self.images.ids()

    def get_image(self, image_id: str, params: Any = None) -> io.BytesIO:
        return io.BytesIO(self.images.rendition(image_id).read_bytes())

    def get_image_uri(self, image_id: str) -> str:
        return str(self.images.rendition(image_id))

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        return self.images.facts(image_id)

    def update_image_info(self, image_id: str, info: Mapping[str, Any]) -> None:
        self.images.add_notes(image_id, info)

    def add_image(self, image_id: str, image_filename: str, image_info: Mapping[str, Any]) -> str:
        added = self.images.add(image_id, Path(image_filename))
        if image_info:
            self.images.add_notes(added, image_info)
        return added

    def remove_image(self, image_id: str) -> None:
        self.images.remove(image_id)

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Return the images with a label; ``labels``: only those that name one of these septa, views or defects."""
        if require_tag(label_tag) == ORIGINAL:
            predicted = self.predictions.ids()
            return [i for i in self.list_images() if i in predicted]
        labelled, names = self.labels.current(), _label_names(labels)
        return [i for i in self.list_images() if i in labelled and (not names or labelled[i].names_any(names))]

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        labelled = set(self.get_labeled_images(label_tag, labels))
        return [i for i in self.list_images() if i not in labelled]

    def datalist(self) -> list[dict[str, Any]]:
        """Return source file and annotation file of each cine that a person labelled."""
        return [
            {"image": str(self.studies.entry(i).path), "label": str(self.root / "annotations" / f"{i}.json")}
            for i in self.get_labeled_images()
        ]

    def get_dataset_archive(self, limit_cases: int | None) -> str:
        """Return a ZIP of the labelled cines and their annotations; the caller deletes it."""
        with tempfile.NamedTemporaryFile(dir=self.cache, suffix=".zip", delete=False) as stream:
            with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
                for pair in self.datalist()[: limit_cases or None]:
                    for path in (Path(pair["image"]), Path(pair["label"])):
                        archive.write(path, path.relative_to(self.root))
            return stream.name

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]:
        return {tag: found for tag in (FINAL, ORIGINAL) if (found := self.get_label_by_image_id(image_id, tag))}

    def get_label_by_image_id(self, image_id: str, tag: str) -> str:
        image_id = self.images.resolve(image_id)
        return image_id if image_id in self.get_labeled_images(tag) else ""

    def get_label(self, label_id: str, label_tag: str, params: Any = None) -> io.BytesIO:
        return io.BytesIO(Path(self.get_label_uri(label_id, label_tag)).read_bytes())

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """Return the path of a markups file for a viewer.

        Raises
        ------
        UnknownImageError
            If nobody labelled that image (or, for ``original``, no prediction of it was kept).
        """
        image_id, tag = self.images.resolve(label_id), require_tag(label_tag)
        if tag == ORIGINAL:
            return str(self.predictions.path(image_id))
        text = boxes_to_markups(self._annotation(image_id).boxes, rendition_geometry(self.images.read(image_id)))
        path = self.cache / "labels" / f"{image_id}.mrk.json"
        write_kept(path, text.encode())
        return str(path)

    def _annotation(self, image_id: str) -> Annotation:
        annotation = self.studies.annotation(image_id)
        if annotation is None or summarise(annotation).is_empty:
            msg = f"Image {image_id} has no label yet."
            raise UnknownImageError(msg)
        return annotation

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        image_id = self.images.resolve(label_id)
        if require_tag(label_tag) == ORIGINAL:
            return self.predictions.facts(image_id)
        return _label_facts(self.studies.annotation(image_id))

    def update_label_info(self, label_id: str, label_tag: str, info: Mapping[str, Any]) -> None:
        msg = f"Label of {label_id}: notes on a label are not kept; submit a new revision of the annotation instead."
        raise AnnotationError(msg)

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: Mapping[str, Any]) -> str:
        """Store a submitted label and return its id, which is the image's id.

        Raises
        ------
        AnnotationError
            If the file is no markups or annotation JSON; nothing has been stored.
        AnnotationConflictError
            If ``label_info["revision"]`` is given and somebody saved a newer one.
        """
        image_id, tag = self.images.resolve(image_id), require_tag(label_tag)
        upload = Path(label_filename)
        if upload.suffix.lower() != ".json":
            msg = (
                f"Label of {image_id}: a {''.join(upload.suffixes[-2:])!r} label map was sent, but boxes are expected;"
                " select the model septal_boxes in the section Auto Segmentation, then submit again."
            )
            raise AnnotationError(msg)
        if tag == ORIGINAL:
            self.predictions.keep(image_id, upload.read_bytes(), label_info)
        else:
            store_submission(self.studies, image_id, upload.read_bytes(), label_info)
        return image_id

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Forget a prediction; withdraw a person's label, which stays in the history."""
        image_id = self.images.resolve(label_id)
        if require_tag(label_tag) == ORIGINAL:
            self.predictions.forget(image_id)
        else:
            self.studies.remove_annotation(self._annotation(image_id).image_id)


def _label_facts(annotation: Annotation | None) -> dict[str, Any]:
    if annotation is None:
        return {}
    return {
        "revision": annotation.revision,
        "author": annotation.author,
        "saved_at": annotation.saved_at.isoformat() if annotation.saved_at else None,
        "boxes": len(annotation.boxes),
        "annotated_frames": list(annotation.annotated_frames),
        "view": annotation.view.value if annotation.view else None,
        "defect": annotation.defect.value if annotation.defect else None,
    }


def _label_names(labels: list[str] | None) -> list[str]:
    if not isinstance(labels, list | None):
        msg = f"Labels are {str(labels)[:40]!r}; a list of names is accepted."
        raise ValueError(msg)
    return labels or []
