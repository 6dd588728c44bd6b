# SPDX-License-Identifier: Apache-2.0
"""Structured reports: of annotations and predictions for other viewers, and from a person's viewer back.

A report's UID is made of what it says, not of when (``io.dicom_sr.document``): what was said before is stored no
second time. An archive would keep the first (Orthanc, unless it is told to overwrite) or refuse the second. A report
that a person saved in a viewer becomes the next revision of the annotations it is about.
"""

from __future__ import annotations

import io
import logging
import threading
from collections import defaultdict
from collections.abc import Collection
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

from pydicom.dataset import Dataset

from echo_plugin.annotations import Annotation, SeptalBox
from echo_plugin.answer.predict import EchoPipeline
from echo_plugin.answer.prediction import CinePrediction
from echo_plugin.cine import Cine
from echo_plugin.durable import make_directory, write_atomically
from echo_plugin.errors import AnnotationError, EchoError
from echo_plugin.host.dicom_archive import DicomArchive
from echo_plugin.host.pacs import Pacs
from echo_plugin.host.submission import save_revised
from echo_plugin.io.dicom_sr import (
    Observer,
    boxes_of_person,
    boxes_report,
    is_ours,
    read_report,
    read_source,
    text_report,
)
from echo_plugin.io.study_folder import StudyFolder
from echo_plugin.io.study_index import REPORTS_DIRECTORY

logger = logging.getLogger(__name__)


class Reports:
    """Where reports go: the study folder, or the archive where there is one."""

    def __init__(self, dicom: DicomArchive, pacs: Pacs | None) -> None:
        self._dicom = dicom
        self._pacs = pacs
        self._storing: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def of_annotation(self, image_id: str) -> list[str]:
        """Store what a person drew on a cine and return the SOP Instance UIDs; none where nothing is drawn.

        Raises
        ------
        AnnotationError
            If the cine is no DICOM file.
        EchoError
            If the report cannot be stored.
        """
        annotation = self._dicom.studies.annotation(image_id)
        if annotation is None or not annotation.boxes:
            return []
        now = (annotation.saved_at or datetime.now().astimezone()).astimezone()
        observer = Observer(annotation.author or "unnamed annotator")
        return [
            self._store(boxes_report(source_of(self._dicom.studies, image_id), annotation.boxes, observer, now=now))
        ]

    def of_prediction(self, image_id: str, prediction: CinePrediction) -> list[str]:
        """Store what the models say of a cine and return the SOP Instance UIDs.

        Raises
        ------
        AnnotationError
            If the cine is no DICOM file.
        EchoError
            If a report cannot be stored.
        """
        source, now = source_of(self._dicom.studies, image_id), datetime.now().astimezone()
        reports = []
        if prediction.boxes:
            reports.append(boxes_report(source, prediction.boxes, _observer(prediction, {"detector"}), now=now))
        if prediction.view or prediction.defect:
            observer = _observer(prediction, {"views", "defects"})
            reports.append(text_report(source, prediction.view, prediction.defect, observer, now=now))
        return [self._store(report) for report in reports]

    def _store(self, report: Dataset) -> str:
        """Store a report unless it is there, whoever else says the same at this moment; return its UID."""
        uid = str(report.SOPInstanceUID)
        path = self._dicom.studies.root / REPORTS_DIRECTORY / f"{uid}.dcm"
        with self._storing[uid]:
            if self._pacs.holds(uid) if self._pacs else path.exists():
                return uid
            stream = io.BytesIO()
            report.save_as(stream, write_like_original=False)
            if self._pacs is not None:
                self._pacs.store(stream.getvalue())
            else:
                make_directory(path.parent)
                write_atomically(path, stream.getvalue())
                self._dicom.studies.refresh()
        return uid


class ReportingPipeline(EchoPipeline):
    """Models whose every answer on a cine of the study folder is also stored as a report (``serve --sr auto``)."""

    reports: Reports | None = None

    def predict(self, cine: Cine, *arguments: Any, **named: Any) -> CinePrediction:
        """Predict as ``EchoPipeline`` does; a report that cannot be stored is logged and keeps nobody from working."""
        prediction = super().predict(cine, *arguments, **named)
        if self.reports is not None and cine.sop_instance_uid is not None:
            try:
                self.reports.of_prediction(cine.image_id, prediction)
            except (EchoError, OSError) as exc:
                logger.warning("Prediction of %s became no report: %s", cine.image_id, exc)
            except Exception as exc:  # the answer is there: whatever the report lacks, it is given
                logger.error("Prediction of %s became no report (%s)", cine.image_id, type(exc).__name__)
        return prediction


def source_of(studies: StudyFolder, image_id: str) -> Dataset:
    """Return the header that a report about a cine copies patient and study from.

    Raises
    ------
    AnnotationError
        If the cine is no DICOM file, or lacks a UID that a report refers to.
    """
    cine = studies.read_cine(image_id)
    if cine.sop_instance_uid is None:
        msg = f"Image {image_id} is no DICOM instance; a structured report can be made of those only."
        raise AnnotationError(msg)
    return read_source(studies.entry(image_id).path)


def _observer(prediction: CinePrediction, tasks: Collection[str]) -> Observer:
    cards = [card for task, card in prediction.models.items() if task in tasks]
    trained = "; ".join(dict.fromkeys(card.trained_on for card in cards))
    return Observer(" + ".join(c.name for c in cards) or "model", ", ".join(c.version for c in cards) or "?", trained)


DEFAULT_AUTHOR = "OHIF report"


def annotate_from_report(studies: StudyFolder, content: bytes) -> list[Annotation]:
    """Store the boxes of a report that a person saved; return the annotations, none for a report of ours.

    On each frame that the report has boxes on they replace those there; what was said of other frames, of view and of
    defect stays. The report itself is kept verbatim in the history.

    Raises
    ------
    AnnotationError
        If the report is malformed, or a box cannot be on the cine it names; cines before it are stored.
    """
    report = read_report(content)
    if is_ours(report):
        return []
    said = boxes_of_person(report)
    known = set(studies.image_ids())
    return [
        save_revised(
            studies,
            image_id,
            partial(merged, boxes=boxes),
            author=said.author or DEFAULT_AUTHOR,
            upload=content,
            upload_suffix=".dcm",
        )
        for image_id, boxes in said.boxes.items()
        if image_id in known
    ]


def merged(current: Annotation, boxes: tuple[SeptalBox, ...]) -> Annotation:
    """Return ``current`` with the boxes of a report in place of its own on the frames that the report is about."""
    frames = {box.frame_index for box in boxes}
    kept = [box for box in current.boxes if box.frame_index not in frames]
    ordered = sorted([*kept, *boxes], key=lambda box: box.frame_index)
    return replace(
        current, boxes=tuple(ordered), annotated_frames=tuple(sorted(frames | set(current.annotated_frames)))
    )
