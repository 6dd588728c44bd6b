# SPDX-License-Identifier: Apache-2.0
"""A study folder as MONAI Label's ``Datastore``: images by SOP instance UID, labels as canonical annotations.

Viewers get renderings (a volume for the cine, a markups file for the boxes); what they send back becomes a new revision
of the annotation. ``final`` is what a person said, ``original`` what a model predicted; a label has its image's id.
"""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore, DefaultLabelTag

from echo_plugin.annotations import Annotation
from echo_plugin.errors import AnnotationError, UnknownImageError
from echo_plugin.host.cache import cache_folder, write_kept
from echo_plugin.host.kept_predictions import KeptPredictions
from echo_plugin.host.study_images import StudyImages
from echo_plugin.host.submission import store_submission
from echo_plugin.io.label_summaries import LabelSummaries, summarise
from echo_plugin.io.markups import boxes_to_markups
from echo_plugin.io.study_folder import StudyFolder
from echo_plugin.io.volume import rendition_geometry

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
