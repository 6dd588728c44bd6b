# SPDX-License-Identifier: Apache-2.0
"""Structured reports for viewers without our panel: of boxes, of view and defect, and those that a person saved.

Boxes are TID 1500 groups whose spatial coordinates hang below a measurement, because OHIF hydrates no other form; a
TID 1500 document without coordinates stops that viewer, so view and defect have a document of their own, as text. What
OHIF's "Create SR" saves are TID 1500 groups too: a tracking identifier that ends in ``:RectangleROI``, and the same
coordinates below each of several measurements; scores and other items that came with a box are gone.

Plain pydicom: the highdicom that runs with pydicom 2 cannot put coordinates below a measurement.

References
----------
PS3.16 TID 1500, 1501, 2000, 2001, 4019; PS3.3 A.35.2, A.35.3, C.17.3 (content items), C.18.6 (spatial coordinates);
PS3.5 9 (unique identifiers)
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydicom import dcmread, uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items

from echo_plugin.anatomy import DETECTED_SEPTA, SHORT_NAMES, Defect, Septum, View, septum_named_in
from echo_plugin.annotations import DefectPrediction, SeptalBox, ViewPrediction
from echo_plugin.errors import AnnotationError

if TYPE_CHECKING:
    from pydicom.sr.coding import Code

Named = TypeVar("Named", View, Defect)

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
RECTANGLE_SUFFIX = ":RectangleROI"
NOT_CLINICAL = "Research only: not for clinical use."
_MOST_ITEMS = 200_000


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
    codes = dictionary()
    if not boxes:
        msg = f"Image {source.SOPInstanceUID} has no box to report; a report of boxes needs at least one."
        raise AnnotationError(msg)
    identity = [str(source.SOPInstanceUID), "boxes", repr(observer), *(repr(box) for box in boxes)]
    groups = [_group(source, box, observer, [*identity, str(n)]) for n, box in enumerate(boxes)]
    root = container(
        codes.DCM.ImagingMeasurementReport,
        [*context(observer), procedure(), container(codes.DCM.ImagingMeasurements, groups)],
        relationship=None,
    )
    what = "AI boxes" if observer.version else "Boxes"
    series = ("boxes", repr(observer))
    return document(source, root, uid.ComprehensiveSRStorage, series, description=f"{what}: septa", now=now)


def write_report(report: Dataset, path: Path) -> None:
    """Write a report as a DICOM file."""
    report.save_as(path, write_like_original=False)


def _group(source: Dataset, box: SeptalBox, observer: Observer, identity: Sequence[str]) -> Dataset:
    codes = dictionary()
    name = SHORT_NAMES[box.septum]
    corners = [(box.x1, box.y1), (box.x2, box.y1), (box.x2, box.y2), (box.x1, box.y2), (box.x1, box.y1)]
    picture = image_item(source.SOPClassUID, source.SOPInstanceUID, "SELECTED FROM", box.frame_index + 1)
    coordinates = polyline(corners, picture)
    if box.score is None:
        pixels = (box.x2 - box.x1) * (box.y2 - box.y1)
        measurement = number_item(codes.SCT.Area, pixels, own_code("{pixels}", "UCUM", "pixels"), [coordinates])
    else:
        measurement = number_item(codes.DCM.Probability, box.score, codes.UCUM.NoUnits, [coordinates])
    items = [
        text_item(codes.DCM.TrackingIdentifier, TRACKING_IDENTIFIER, "HAS OBS CONTEXT"),
        uid_item(codes.DCM.TrackingUniqueIdentifier, _uid("tracking", identity), "HAS OBS CONTEXT"),
    ]
    if box.septum.code is not None:
        items.append(code_item(codes.DCM.Finding, box.septum.code))
    if observer.version is not None:
        items.append(text_item(codes.DCM.AlgorithmName, observer.name, "HAS CONCEPT MOD"))
        items.append(text_item(codes.DCM.AlgorithmVersion, observer.version, "HAS CONCEPT MOD"))
    label = name if box.score is None else f"{name} {box.score:.2f}"
    return container(codes.DCM.MeasurementGroup, [*items, measurement, text_item(codes.DCM.Comment, label)])


def text_report(
    source: Dataset,
    view: ViewPrediction | None,
    defect: DefectPrediction | None,
    observer: Observer,
    *,
    now: datetime,
) -> Dataset:
    """Return an Enhanced SR that says view and defect with their probabilities, in codes and in words.

    Raises
    ------
    AnnotationError
        If there is neither.
    """
    codes = dictionary()
    findings: list[Dataset] = []
    if view is not None:
        if view.view.code is not None:
            findings.append(code_item(codes.DCM.ImageView, view.view.code))
        findings += _words(source, "View", view.view, view.probabilities)
    if defect is not None:
        if defect.defect.code is not None:
            findings.append(code_item(codes.DCM.Finding, defect.defect.code))
        findings += _words(source, "Septal defect", defect.defect, defect.probabilities)
    if not findings:
        msg = f"Image {source.SOPInstanceUID} has neither view nor defect to report."
        raise AnnotationError(msg)
    findings += [text_item(codes.DCM.Comment, comment) for comment in (_which_cine(source), NOT_CLINICAL) if comment]
    root = container(
        codes.LN.DiagnosticImagingReport,
        [*context(observer), procedure(), container(codes.DCM.Findings, findings)],
        relationship=None,
    )
    series = ("text", repr(observer))
    return document(source, root, uid.EnhancedSRStorage, series, description="AI view and defect", now=now)


def _words(source: Dataset, what: str, said: Named, probabilities: Mapping[Named, float]) -> list[Dataset]:
    """Return what is said, in words, inferred from the cine: an image of its own without a name stops OHIF."""
    codes = dictionary()
    likely = sorted(probabilities.items(), key=lambda pair: -pair[1])[:5]
    shown = ", ".join(f"{name.value} {probability:.2f}" for name, probability in likely)
    cine = image_item(source.SOPClassUID, source.SOPInstanceUID, "INFERRED FROM")
    return [
        text_item(codes.DCM.Finding, f"{what}: {said.value} (probabilities: {shown})", children=[cine]),
        number_item(codes.DCM.Probability, round(100 * probabilities[said], 1), codes.UCUM.Percent),
    ]


def _which_cine(source: Dataset) -> str | None:
    """Return by which numbers a viewer lists the cine; None: it has none."""
    series, instance = source.get("SeriesNumber"), source.get("InstanceNumber")
    return None if series is None or instance is None else f"About series {series}, instance {instance}."


def context(observer: Observer) -> list[Dataset]:
    """Return the items that say the language and who observed."""
    codes = dictionary()
    language = code_item(
        codes.DCM.LanguageOfContentItemAndDescendants, own_code("en", "RFC5646", "English"), "HAS CONCEPT MOD"
    )
    if observer.version is None:
        return [
            language,
            code_item(codes.DCM.ObserverType, codes.DCM.Person, "HAS OBS CONTEXT"),
            person_item(codes.DCM.PersonObserverName, observer.name),
        ]
    model = f"{observer.name} {observer.version}"
    trained = f" (trained on {observer.trained_on})" if observer.trained_on else ""
    device_uid = _uid("device", [observer.name, observer.version])
    return [
        language,
        code_item(codes.DCM.ObserverType, codes.DCM.Device, "HAS OBS CONTEXT"),
        uid_item(codes.DCM.DeviceObserverUID, device_uid, "HAS OBS CONTEXT"),
        text_item(codes.DCM.DeviceObserverName, model + trained, "HAS OBS CONTEXT"),
        text_item(codes.DCM.DeviceObserverManufacturer, MANUFACTURER, "HAS OBS CONTEXT"),
    ]


def procedure() -> Dataset:
    """Return the item that says what was done: an echocardiography."""
    codes = dictionary()
    return code_item(codes.DCM.ProcedureReported, codes.SCT.Echocardiography, "HAS CONCEPT MOD")


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


@dataclass(frozen=True)
class PersonReport:
    """What a person drew: boxes by SOP Instance UID; ``author``: None where the report names nobody."""

    boxes: Mapping[str, tuple[SeptalBox, ...]]
    author: str | None = None


def read_report(content: bytes) -> Dataset:
    """Return the data set of a report.

    Raises
    ------
    AnnotationError
        If it cannot be parsed.
    """
    try:
        return dcmread(io.BytesIO(content), force=True)
    except Exception as exc:  # parsers of damaged bytes raise nearly everything
        msg = f"Report cannot be parsed as DICOM ({type(exc).__name__})."
        raise AnnotationError(msg) from exc


def is_ours(report: Dataset) -> bool:
    """Whether this program wrote a report; one that a person saved, also after changing ours, names another maker."""
    return str(report.get("Manufacturer", "")).strip() == MANUFACTURER


def boxes_of_person(report: Dataset) -> PersonReport:
    """Return the boxes of a report; empty where it has none that are drawn on images.

    A box takes its septum from the comment beside it if that names one, else from the finding's code.

    Raises
    ------
    AnnotationError
        If coordinates are malformed.
    """
    codes = dictionary()
    found: dict[str, dict[SeptalBox, None]] = {}
    author = None
    for number, item in enumerate(below(report)):
        if number > _MOST_ITEMS:
            msg = f"Report {report.get('SOPInstanceUID', '')} has more than {_MOST_ITEMS} content items."
            raise AnnotationError(msg)
        if is_named(item, codes.DCM.PersonObserverName):
            author = _name(str(item.get("PersonName", "")))
        if is_named(item, codes.DCM.MeasurementGroup) and _is_rectangle(item):
            septum = _septum(item)
            for coordinates in below(item):
                if coordinates.get("ValueType") != "SCOORD":
                    continue
                sop_uid, box = _box(report, coordinates, septum)
                found.setdefault(sop_uid, {})[box] = None  # several measurements repeat the coordinates
    return PersonReport({uid: tuple(boxes) for uid, boxes in found.items()}, author)


def _name(person: str) -> str | None:
    """Return a person's name as text; None: there is none, or it is OHIF's ``unknown^unknown``."""
    words = person.replace("^", " ").split()
    return " ".join(words)[:64] if {word.lower() for word in words} - {"unknown"} else None


def _is_rectangle(group: Dataset) -> bool:
    return any(
        is_named(item, dictionary().DCM.TrackingIdentifier)
        and str(item.get("TextValue", "")).endswith(RECTANGLE_SUFFIX)
        for item in below(group)
    )


def _septum(group: Dataset) -> Septum:
    codes = dictionary()
    finding = Septum.UNSPECIFIED
    for item in below(group):
        if is_named(item, codes.DCM.Comment):
            named = septum_named_in(str(item.get("TextValue", "")))
            if named is not Septum.UNSPECIFIED:
                return named
        if is_named(item, codes.DCM.Finding):
            said = concept(item, "ConceptCodeSequence")
            finding = next((s for s in DETECTED_SEPTA if s.code and _is_code(said, s.code)), finding)
    return finding


def _is_code(said: tuple[str, str] | None, code: Code) -> bool:
    return said == (code.value, code.scheme_designator)


def _box(report: Dataset, coordinates: Dataset, septum: Septum) -> tuple[str, SeptalBox]:
    """Return the SOP Instance UID and the upright hull of the coordinates."""
    try:
        values = [float(value) for value in coordinates.GraphicData]
        image = next(item for item in below(coordinates) if item.ValueType == "IMAGE")
        reference = image.ReferencedSOPSequence[0]
        frame = reference.get("ReferencedFrameNumber") or 1
        frame_number = int(frame if isinstance(frame, int | str) else frame[0])
        columns, rows = values[0::2], values[1::2]
        box = SeptalBox(frame_number - 1, min(columns), min(rows), max(columns), max(rows), septum)
        return str(reference.ReferencedSOPInstanceUID), box
    except (AttributeError, IndexError, StopIteration, TypeError, ValueError) as exc:
        msg = (
            f"Report {report.get('SOPInstanceUID', '')} has coordinates that cannot be read ({type(exc).__name__});"
            " a polyline on a frame of an image is accepted."
        )
        raise AnnotationError(msg) from exc


def dictionary() -> Any:
    """Return pydicom's dictionaries of codes, which take half a second to load."""
    from pydicom.sr.codedict import codes

    return codes


def own_code(value: str, scheme: str, meaning: str) -> Code:
    """Return a code that pydicom's dictionaries do not list: a language tag, a unit in braces."""
    from pydicom.sr.coding import Code

    return Code(value, scheme, meaning)


def coded(code: Code) -> Dataset:
    """Return a code as an item of a code sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme_designator, code.meaning
    return item


def container(name: Code, children: Sequence[Dataset], relationship: str | None = "CONTAINS") -> Dataset:
    """Return a CONTAINER with its children; ``relationship`` None: the root of the document."""
    item = _item("CONTAINER", name, relationship, children)
    item.ContinuityOfContent = "SEPARATE"
    return item


def text_item(name: Code, value: str, relationship: str = "CONTAINS", children: Sequence[Dataset] = ()) -> Dataset:
    """Return a TEXT item."""
    item = _item("TEXT", name, relationship, children)
    item.TextValue = value
    return item


def code_item(name: Code, value: Code, relationship: str = "CONTAINS", children: Sequence[Dataset] = ()) -> Dataset:
    """Return a CODE item."""
    item = _item("CODE", name, relationship, children)
    item.ConceptCodeSequence = Items([coded(value)])
    return item


def number_item(name: Code, value: float, unit: Code, children: Sequence[Dataset] = ()) -> Dataset:
    """Return a NUM item."""
    item = _item("NUM", name, "CONTAINS", children)
    measured = Dataset()
    measured.NumericValue = f"{value:.8g}"  # a decimal string has at most 16 characters
    measured.MeasurementUnitsCodeSequence = Items([coded(unit)])
    item.MeasuredValueSequence = Items([measured])
    return item


def uid_item(name: Code, value: str, relationship: str = "CONTAINS") -> Dataset:
    """Return a UIDREF item."""
    item = _item("UIDREF", name, relationship)
    item.UID = value
    return item


def person_item(name: Code, value: str) -> Dataset:
    """Return a PNAME item that says who observed."""
    item = _item("PNAME", name, "HAS OBS CONTEXT")
    item.PersonName = value if "^" in value else f"{value}^"  # a name without a given one
    return item


def image_item(
    sop_class_uid: str, sop_instance_uid: str, relationship: str, frame_number: int | None = None
) -> Dataset:
    """Return an IMAGE item; ``frame_number`` is 1-based, None: the whole instance."""
    item = _item("IMAGE", None, relationship)
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = sop_class_uid, sop_instance_uid
    if frame_number is not None:
        reference.ReferencedFrameNumber = frame_number
    item.ReferencedSOPSequence = Items([reference])
    return item


def polyline(points: Sequence[tuple[float, float]], source: Dataset) -> Dataset:
    """Return a SCOORD of (column, row) points, origin at the outer corner of the first pixel, on an IMAGE item."""
    item = _item("SCOORD", None, "INFERRED FROM", [source])
    item.GraphicType = "POLYLINE"
    item.GraphicData = [float(value) for point in points for value in point]
    return item


def below(item: Dataset) -> Iterator[Dataset]:
    """Yield all content items under an item, each before its children."""
    for child in item.get("ContentSequence", ()):
        yield child
        yield from below(child)


def concept(item: Dataset, sequence: str = "ConceptNameCodeSequence") -> tuple[str, str] | None:
    """Return (value, scheme) of an item's name, or of another code of it; None: it has none."""
    codes = item.get(sequence) or ()
    return (str(codes[0].get("CodeValue", "")), str(codes[0].get("CodingSchemeDesignator", ""))) if codes else None


def is_named(item: Dataset, name: Code) -> bool:
    """Whether the item's concept name is ``name``."""
    return concept(item) == (name.value, name.scheme_designator)


def _item(value_type: str, name: Code | None, relationship: str | None, children: Sequence[Dataset] = ()) -> Dataset:
    item = Dataset()
    if relationship is not None:
        item.RelationshipType = relationship
    item.ValueType = value_type
    if name is not None:
        item.ConceptNameCodeSequence = Items([coded(name)])
    if children:
        item.ContentSequence = Items(children)
    return item
