# SPDX-License-Identifier: Apache-2.0
"""Structured reports of boxes, for viewers without our panel: OHIF makes them editable.

Boxes are TID 1500 groups whose spatial coordinates hang below a measurement, because OHIF hydrates no other form; a
TID 1500 document without coordinates stops that viewer, so view and defect have a document of their own
(``dicom_sr_text``).
Plain pydicom: the highdicom that runs with pydicom 2 cannot put coordinates below a measurement.

References
----------
PS3.16 TID 1500, 1501, 4019; PS3.3 A.35.3, C.18.6 (spatial coordinates); PS3.5 9 (unique identifiers)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydicom import dcmread, uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items

from echo_plugin.annotations import SeptalBox
from echo_plugin.errors import AnnotationError
from echo_plugin.io import sr_content as sr
from echo_plugin.io.septum_text import SHORT_NAMES

MANUFACTURER = "monailabel-echo"
"""By this our reports are told from those that a person saved."""
TRACKING_IDENTIFIER = "Cornerstone3DTools@^0.1.0:RectangleROI"
"""What OHIF 3.13 asks of a group before it makes an editable rectangle of it."""

_COPIED = (
    "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex",
    "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "StudyDescription", "AccessionNumber",
    "ReferringPhysicianName", "PatientAge",
)  # fmt: skip
_EMPTY_ALLOWED = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
                  "AccessionNumber", "ReferringPhysicianName")  # fmt: skip
_REFERRED_TO = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID")


@dataclass(frozen=True)
class Observer:
    """Who says it: a person, or (``version`` not None) a model with its version and what it was trained on."""

    name: str
    version: str | None = None
    trained_on: str = ""


def read_source(path: Path) -> Dataset:
    """Return the header of the DICOM cine that a report is about.

    Raises
    ------
    AnnotationError
        If it lacks a UID that a report refers to.
    """
    source = dcmread(path, stop_before_pixels=True, force=True)
    missing = [keyword for keyword in _REFERRED_TO if not source.get(keyword)]
    if missing:
        msg = f"File {path.name!r} has no {' and no '.join(missing)}; a structured report must refer to it."
        raise AnnotationError(msg)
    return source


def boxes_report(source: Dataset, boxes: Sequence[SeptalBox], observer: Observer, *, now: datetime) -> Dataset:
    """Return a Comprehensive SR of septal boxes, one measurement group for each.

    The same boxes of the same observer get the same SOP Instance UID again (see ``document``).

    Raises
    ------
    AnnotationError
        If there is no box: a report without coordinates would stop a viewer.
    """
    codes = sr.dictionary()
    if not boxes:
        msg = f"Image {source.SOPInstanceUID} has no box to report; a report of boxes needs at least one."
        raise AnnotationError(msg)
    identity = [str(source.SOPInstanceUID), "boxes", repr(observer), *(repr(box) for box in boxes)]
    groups = [_group(source, box, observer, [*identity, str(n)]) for n, box in enumerate(boxes)]
    root = sr.container(
        codes.DCM.ImagingMeasurementReport,
        [*context(observer), procedure(), sr.container(codes.DCM.ImagingMeasurements, groups)],
        relationship=None,
    )
    what = "AI boxes" if observer.version else "Boxes"
    series = ("boxes", repr(observer))
    return document(source, root, uid.ComprehensiveSRStorage, series, description=f"{what}: septa", now=now)


def write_report(report: Dataset, path: Path) -> None:
    """Write a report as a DICOM file."""
    report.save_as(path, write_like_original=False)


def _group(source: Dataset, box: SeptalBox, observer: Observer, identity: Sequence[str]) -> Dataset:
    codes = sr.dictionary()
    name = SHORT_NAMES[box.septum]
    corners = [(box.x1, box.y1), (box.x2, box.y1), (box.x2, box.y2), (box.x1, box.y2), (box.x1, box.y1)]
    picture = sr.image(source.SOPClassUID, source.SOPInstanceUID, "SELECTED FROM", box.frame_index + 1)
    coordinates = sr.polyline(corners, picture)
    if box.score is None:
        pixels = (box.x2 - box.x1) * (box.y2 - box.y1)
        measurement = sr.number(codes.SCT.Area, pixels, sr.own_code("{pixels}", "UCUM", "pixels"), [coordinates])
    else:
        measurement = sr.number(codes.DCM.Probability, box.score, codes.UCUM.NoUnits, [coordinates])
    items = [
        sr.text(codes.DCM.TrackingIdentifier, TRACKING_IDENTIFIER, "HAS OBS CONTEXT"),
        sr.uid_reference(codes.DCM.TrackingUniqueIdentifier, _uid("tracking", identity), "HAS OBS CONTEXT"),
    ]
    if box.septum.code is not None:
        items.append(sr.code(codes.DCM.Finding, box.septum.code))
    if observer.version is not None:
        items.append(sr.text(codes.DCM.AlgorithmName, observer.name, "HAS CONCEPT MOD"))
        items.append(sr.text(codes.DCM.AlgorithmVersion, observer.version, "HAS CONCEPT MOD"))
    label = name if box.score is None else f"{name} {box.score:.2f}"
    return sr.container(codes.DCM.MeasurementGroup, [*items, measurement, sr.text(codes.DCM.Comment, label)])


def context(observer: Observer) -> list[Dataset]:
    """Return the items that say the language and who observed."""
    codes = sr.dictionary()
    language = sr.code(
        codes.DCM.LanguageOfContentItemAndDescendants, sr.own_code("en", "RFC5646", "English"), "HAS CONCEPT MOD"
    )
    if observer.version is None:
        return [
            language,
            sr.code(codes.DCM.ObserverType, codes.DCM.Person, "HAS OBS CONTEXT"),
            sr.person(codes.DCM.PersonObserverName, observer.name),
        ]
    model = f"{observer.name} {observer.version}"
    trained = f" (trained on {observer.trained_on})" if observer.trained_on else ""
    device_uid = _uid("device", [observer.name, observer.version])
    return [
        language,
        sr.code(codes.DCM.ObserverType, codes.DCM.Device, "HAS OBS CONTEXT"),
        sr.uid_reference(codes.DCM.DeviceObserverUID, device_uid, "HAS OBS CONTEXT"),
        sr.text(codes.DCM.DeviceObserverName, model + trained, "HAS OBS CONTEXT"),
        sr.text(codes.DCM.DeviceObserverManufacturer, MANUFACTURER, "HAS OBS CONTEXT"),
    ]


def procedure() -> Dataset:
    """Return the item that says what was done: an echocardiography."""
    codes = sr.dictionary()
    return sr.code(codes.DCM.ProcedureReported, codes.SCT.Echocardiography, "HAS CONCEPT MOD")


def document(
    source: Dataset, root: Dataset, sop_class: uid.UID, series: Sequence[str], *, description: str, now: datetime
) -> Dataset:
    """Return the whole SR object around its content, UNVERIFIED, in the patient and study of ``source``.

    Its SOP Instance UID is made of all that it holds but of when it was made: whoever says the same again names the
    same object, and what differs in anything else, also in the patient's header, is another one (PS3.5 9). Of two
    objects that differ in their time only, one is to be stored: an archive has one content for a UID.
    """
    report = Dataset()
    report.SpecificCharacterSet = "ISO_IR 192"
    for keyword in _COPIED:
        if keyword in source:
            report[keyword] = source[keyword]
    for keyword in _EMPTY_ALLOWED:
        if keyword not in report:
            setattr(report, keyword, "")
    report.SOPClassUID = sop_class
    report.SeriesInstanceUID = _uid("series", [str(source.StudyInstanceUID), *series])
    report.Modality, report.SeriesNumber, report.InstanceNumber = "SR", 990, 1
    report.SeriesDescription = description
    report.Manufacturer, report.ManufacturerModelName = MANUFACTURER, MANUFACTURER
    report.CompletionFlag, report.VerificationFlag = "COMPLETE", "UNVERIFIED"
    report.ReferencedPerformedProcedureStepSequence = Items([])
    report.PerformedProcedureCodeSequence = Items([])
    report.CurrentRequestedProcedureEvidenceSequence = Items([_evidence(source)])
    report.update(root)
    report.ContentTemplateSequence = Items([_template("1500" if sop_class == uid.ComprehensiveSRStorage else "2000")])
    report.SOPInstanceUID = _uid("report", [report.to_json()])  # the time is not in it yet
    report.ContentDate, report.ContentTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    report.SeriesDate, report.SeriesTime = report.ContentDate, report.ContentTime
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, report.SOPInstanceUID
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    report.file_meta, report.is_little_endian, report.is_implicit_VR = meta, True, False
    report.preamble = b"\0" * 128
    return report


def _evidence(source: Dataset) -> Dataset:
    instance, series, study = Dataset(), Dataset(), Dataset()
    instance.ReferencedSOPClassUID, instance.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    series.SeriesInstanceUID, series.ReferencedSOPSequence = source.SeriesInstanceUID, Items([instance])
    study.StudyInstanceUID, study.ReferencedSeriesSequence = source.StudyInstanceUID, Items([series])
    return study


def _template(identifier: str) -> Dataset:
    item = Dataset()
    item.MappingResource, item.TemplateIdentifier = "DCMR", identifier
    return item


def _uid(what: str, identity: Iterable[str]) -> str:
    return str(uid.generate_uid(entropy_srcs=[MANUFACTURER, what, *identity]))
