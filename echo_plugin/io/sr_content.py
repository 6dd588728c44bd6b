# SPDX-License-Identifier: Apache-2.0
"""Content items of a structured report (PS3.3 C.17.3): one function for each value type that a heart report needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

if TYPE_CHECKING:
    from pydicom.sr.coding import Code


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


def text(name: Code, value: str, relationship: str = "CONTAINS", children: Sequence[Dataset] = ()) -> Dataset:
    """Return a TEXT item."""
    item = _item("TEXT", name, relationship, children)
    item.TextValue = value
    return item


def code(name: Code, value: Code, relationship: str = "CONTAINS", children: Sequence[Dataset] = ()) -> Dataset:
    """Return a CODE item."""
    item = _item("CODE", name, relationship, children)
    item.ConceptCodeSequence = Items([coded(value)])
    return item


def number(name: Code, value: float, unit: Code, children: Sequence[Dataset] = ()) -> Dataset:
    """Return a NUM item."""
    item = _item("NUM", name, "CONTAINS", children)
    measured = Dataset()
    measured.NumericValue = f"{value:.8g}"  # a decimal string has at most 16 characters
    measured.MeasurementUnitsCodeSequence = Items([coded(unit)])
    item.MeasuredValueSequence = Items([measured])
    return item


def uid_reference(name: Code, value: str, relationship: str = "CONTAINS") -> Dataset:
    """Return a UIDREF item."""
    item = _item("UIDREF", name, relationship)
    item.UID = value
    return item


def person(name: Code, value: str) -> Dataset:
    """Return a PNAME item that says who observed."""
    item = _item("PNAME", name, "HAS OBS CONTEXT")
    item.PersonName = value if "^" in value else f"{value}^"  # a name without a given one
    return item


def image(sop_class_uid: str, sop_instance_uid: str, relationship: str, frame_number: int | None = None) -> Dataset:
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
