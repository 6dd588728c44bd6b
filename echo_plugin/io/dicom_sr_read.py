# SPDX-License-Identifier: Apache-2.0
"""The boxes of a structured report that a person saved in a viewer, such as OHIF's "Create SR".

OHIF writes TID 1500 groups: a tracking identifier that ends in ``:RectangleROI``, and the same coordinates below each
of several measurements; scores and other items that came with a box are gone.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydicom import dcmread
from pydicom.dataset import Dataset

from echo_plugin.anatomy import DETECTED_SEPTA, Septum
from echo_plugin.annotations import SeptalBox
from echo_plugin.errors import AnnotationError
from echo_plugin.io.dicom_sr import MANUFACTURER
from echo_plugin.io.septum_text import septum_named_in
from echo_plugin.io.sr_content import below, concept, dictionary, is_named

if TYPE_CHECKING:
    from pydicom.sr.coding import Code

RECTANGLE_SUFFIX = ":RectangleROI"
_MOST_ITEMS = 200_000


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
