# SPDX-License-Identifier: Apache-2.0
"""The ROIs and point lists of a 3D Slicer markups document, in LPS mm; what they mean is in ``io.markups``.

Schemas 1.0.0 to 1.0.4 write a ROI alike. Positions are vectors of the document's coordinate system; the columns of
*orientation* are the ROI's own axes in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from echo_plugin.errors import AnnotationError

FloatArray = NDArray[np.float64]

SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)

_DISPLAY: Mapping[str, object] = {
    "visibility": True,
    "propertiesLabelVisibility": False,
    "pointLabelsVisibility": True,
}
_MM_PER_UNIT = {"mm": 1.0, "um": 1e-3}
_LPS_PER_SYSTEM = {"LPS": np.array([1.0, 1.0, 1.0]), "RAS": np.array([-1.0, -1.0, 1.0])}
_NOT_PLACED = ("undefined", "preview")


@dataclass(frozen=True)
class Roi:
    """One ROI somebody placed.

    ``center_lps_mm`` : (3,). ``size_mm`` : (3,) full lengths, >= 0. ``axes_lps`` : (3, 3), its axes as columns.
    ``label, description`` : of its first placed control point. ``place`` : what an error message calls it.
    """

    center_lps_mm: FloatArray = field(repr=False)
    size_mm: FloatArray = field(repr=False)
    axes_lps: FloatArray = field(repr=False)
    label: str
    description: str
    name: str
    place: str = "A ROI"


def markups_text(markups: Sequence[Mapping[str, object]]) -> str:
    """Return the JSON text of a document of the given markups."""
    return json.dumps({"@schema": SCHEMA, "markups": markups}, indent=1, allow_nan=False)


def roi_markup(roi: Roi, colour: Sequence[float]) -> dict[str, object]:
    """Return the markup of a box ROI that shows its control point's label, in ``colour`` (R, G, B 0..1)."""
    orientation = _plain(roi.axes_lps)
    point = _control_point("1", roi.label, roi.center_lps_mm)
    point |= {"description": roi.description, "orientation": orientation}
    return {
        "type": "ROI",
        "name": roi.name,
        "coordinateSystem": "LPS",
        "coordinateUnits": "mm",
        "locked": False,
        "roiType": "Box",
        "center": _plain(roi.center_lps_mm),
        "orientation": orientation,
        "size": _plain(roi.size_mm),
        "insideOut": False,
        "controlPoints": [point],
        # MONAI Label's module renames every ROI it loads, so the name (properties label) says less than the label
        "display": {**_DISPLAY, "color": list(colour), "selectedColor": list(colour)},
    }


def point_list_markup(name: str, points: Sequence[tuple[str, FloatArray]]) -> dict[str, object]:
    """Return the markup of a locked list of (text, (3,) LPS mm) points; no ROI, so it is never submitted."""
    return {
        "type": "Fiducial",
        "name": name,
        "coordinateSystem": "LPS",
        "coordinateUnits": "mm",
        "locked": True,
        "controlPoints": [_control_point(str(n), *point) for n, point in enumerate(points, start=1)],
        "display": _DISPLAY,
    }


def read_rois(text: str) -> Iterator[Roi]:
    """Yield the placed ROIs of a markups JSON text in its order; all else is passed over.

    Raises
    ------
    AnnotationError
        If the text is no markups document, or a ROI has a field that cannot be; the message names both.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as exc:
        msg = f"Markups are not JSON ({type(exc).__name__}); a 3D Slicer markups document is accepted."
        raise AnnotationError(msg) from exc
    markups = document.get("markups") if isinstance(document, dict) else None
    if not isinstance(markups, list) or not all(isinstance(markup, dict) for markup in markups):
        msg = "The JSON document has no list 'markups'; a 3D Slicer markups document is accepted."
        raise AnnotationError(msg)
    for number, markup in enumerate(markups, start=1):
        if markup.get("type") == "ROI" and (points := _placed_points(markup, f"Markup {number} (a ROI)")):
            yield _read_roi(markup, points[0], f"Markup {number} (a ROI)")


def _control_point(number: str, label: str, position: FloatArray) -> dict[str, object]:
    return {
        "id": number,
        "label": label,
        "position": _plain(position),
        "selected": True,
        "locked": False,
        "visibility": True,
        "positionStatus": "defined",
    }


def _plain(numbers: FloatArray) -> list[float]:
    """Return the numbers, row by row, for JSON; 0.0 for -0.0."""
    return [float(number) + 0.0 for number in numbers.ravel()]


def _placed_points(markup: Mapping[str, object], place: str) -> list[Mapping[str, object]]:
    points = markup.get("controlPoints", [])
    if not isinstance(points, list) or not all(isinstance(point, dict) for point in points):
        msg = f"{place}: 'controlPoints' is no list of objects."
        raise AnnotationError(msg)
    return [point for point in points if point.get("positionStatus", "defined") not in _NOT_PLACED]


def _read_roi(markup: Mapping[str, object], point: Mapping[str, object], place: str) -> Roi:
    system, unit = markup.get("coordinateSystem", "LPS"), markup.get("coordinateUnits", "mm")
    if isinstance(unit, list) and unit:  # a coded unit: value, scheme, meaning
        unit = unit[0]
    if system not in ("LPS", "RAS") or unit not in ("mm", "um"):
        msg = f"{place} is in {str(system)[:20]!r}, {str(unit)[:20]!r}; 'LPS' or 'RAS', 'mm' or 'um' are accepted."
        raise AnnotationError(msg)
    to_lps, mm = _LPS_PER_SYSTEM[system], _MM_PER_UNIT[unit]
    axes = _numbers(markup, "orientation", 9, place).reshape(3, 3) if "orientation" in markup else np.diag(to_lps)
    if not np.allclose(axes.T @ axes, np.eye(3), atol=1e-3):
        msg = f"{place}: 'orientation' {np.round(axes, 3).tolist()} is no rotation."
        raise AnnotationError(msg)
    size_mm = _numbers(markup, "size", 3, place) * mm
    if np.any(size_mm < 0):
        msg = f"{place}: 'size' {size_mm.tolist()} is negative."
        raise AnnotationError(msg)
    return Roi(
        center_lps_mm=_numbers(markup, "center", 3, place) * to_lps * mm,
        size_mm=size_mm,
        axes_lps=to_lps[:, None] * axes,
        label=str(point.get("label", "")),
        description=str(point.get("description", "")),
        name=str(markup.get("name", "")),
        place=place,
    )


def _numbers(markup: Mapping[str, object], key: str, count: int, place: str) -> FloatArray:
    values = markup.get(key)
    is_list = isinstance(values, list) and len(values) == count
    if is_list and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):  # type: ignore[attr-defined]
        try:
            numbers = np.array(values, dtype=np.float64)
        except OverflowError:
            numbers = np.array([np.inf])
        if np.all(np.abs(numbers) < 1e9):  # also refuses NaN; beyond it, sums of squares lose the pixel
            return numbers
    msg = f"{place}: {key!r} is {str(values)[:80]}; {count} finite numbers are accepted."
    raise AnnotationError(msg)
