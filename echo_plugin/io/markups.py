# SPDX-License-Identifier: Apache-2.0
"""Septal boxes to 3D Slicer's markups JSON (schema 1.0.3) and back, through the affine of the rendition shown.

Ours are continuous pixels from the outer corner of the first pixel; Slicer's are mm at voxel centres, i = x - 0.5.
That half pixel exists in this file alone. A box is a ROI one frame thick, its axes along those of the rendition. What
Slicer submits is *every* ROI of its scene (schemas 1.0.0 to 1.0.4 write one alike); reading therefore

* drops ROIs nobody drew: without a placed control point ('SAM2 ROI' is always there) or without an area;
* ignores the thickness, which Slicer sets to the shorter side: the frame is the one nearest to the centre;
* takes the axis-aligned hull of a turned ROI, in LPS or RAS, in mm or um;
* takes the septum from the control point's label, else its description, else the ROI's name (which Slicer renames);
* drops duplicates: running inference again adds its boxes to those that are there. Of boxes that share frame,
  septum and most of their area, one that a person moved or drew is kept before one that lies where a model proposed it
  (which the description remembers), then the earlier;
* calls every box a person's (score None), for a person submitted it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from echo_plugin.anatomy import SHORT_NAMES, Septum, septum_named_in
from echo_plugin.annotations import SeptalBox
from echo_plugin.errors import AnnotationError
from echo_plugin.geometry import box_iou

if TYPE_CHECKING:
    from echo_plugin.io.volume import RenditionGeometry

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
DUPLICATE_IOU = 0.5
"""One wall has one box on a frame: two of one septum that overlap by more are the same wall twice."""

_COLOURS = {
    Septum.INTERATRIAL: [0.2, 0.8, 1.0],
    Septum.INTERVENTRICULAR: [1.0, 0.6, 0.1],
    Septum.UNSPECIFIED: [1.0, 1.0, 0.3],
}
_UNTOUCHED_PX = 0.01  # a person cannot move a box by less; Slicer's own arithmetic stays below 1e-9
_EMPTY_PX = 1e-6


@dataclass(frozen=True)
class PointLabel:
    """A text shown in Slicer at a place of one frame, e.g. 'ASD 0.91 (41 deg)'; x, y in px from the outer corner."""

    text: str
    frame_index: int
    x: float
    y: float

    def __post_init__(self) -> None:
        if not self.text or self.frame_index < 0 or not (math.isfinite(self.x) and math.isfinite(self.y)):
            msg = (
                f"Point label {self.text!r} is at ({self.x}, {self.y}) of frame index {self.frame_index};"
                " a text at finite px of a 0-based frame is accepted."
            )
            raise ValueError(msg)


def boxes_to_markups(
    boxes: Iterable[SeptalBox], geometry: RenditionGeometry, *, point_labels: Sequence[PointLabel] = ()
) -> str:
    """Return the markups JSON text that shows ``boxes`` and ``point_labels`` on a rendition of ``geometry``.

    Without boxes it is a valid document with an empty list.

    Raises
    ------
    AnnotationError
        If a box or label is on a frame that the rendition does not have.
    """
    axes, spacing_mm = _roi_axes(geometry)
    markups = [_roi_markup(box, geometry, axes, spacing_mm) for box in boxes]
    if point_labels:
        markups.append(point_list_markup("Echo prediction", [_placed(label, geometry) for label in point_labels]))
    return markups_text(markups)


def boxes_from_markups(text: str, geometry: RenditionGeometry) -> tuple[SeptalBox, ...]:
    """Return the boxes, in the order of the document, of a markups JSON text drawn on a rendition of ``geometry``.

    Every ``score`` is None. Only ROIs count; point lists are passed over. No boxes: the annotator says "no septum"
    (see ``annotated_frames``).

    Raises
    ------
    AnnotationError
        If the text is no markups document, or a ROI lies outside the cine.
    """
    found = [(box, _is_proposal(roi, box)) for roi in read_rois(text) if (box := _box_of(roi, geometry)) is not None]
    return _without_duplicates(found)


def annotated_frames(
    boxes: Iterable[SeptalBox], frame_count: int, asked_frames: Collection[int] | None = None
) -> tuple[int, ...]:
    """Return the 0-based frames, ascending, that a submission of ``boxes`` makes a statement about.

    These are the frames with a box, and ``asked_frames``: those that the client says were looked at, or for which
    it had been given proposals; one of them without a box is a true negative. Slicer says nothing of the kind: then a
    submission without any box is a negative for the one frame Slicer certainly showed, the middle one, where its slice
    view stands after loading. More is not claimed: boxes can get lost in Slicer on the way to submission.

    Raises
    ------
    AnnotationError
        If an asked frame is not in 0..frame_count-1.
    """
    frames = {box.frame_index for box in boxes} | set(asked_frames or ())
    if not frames and asked_frames is None:
        frames = {frame_count // 2}
    for frame_index in frames:
        _require_frame(frame_index, frame_count, "An annotated frame")
    return tuple(sorted(frames))


def _require_frame(frame_index: int, frame_count: int, what: str) -> None:
    if not 0 <= frame_index < frame_count:
        msg = f"{what} is on frame index {frame_index} (0-based); the cine has 0 to {frame_count - 1}."
        raise AnnotationError(msg)


def _roi_axes(geometry: RenditionGeometry) -> tuple[FloatArray, FloatArray]:
    """Return the (3, 3) right-handed ROI axes (columns, LPS) along the rendition's, and its (3,) spacing in mm."""
    linear = np.asarray(geometry.ijk_to_lps, dtype=np.float64)[:3, :3]
    spacing_mm: FloatArray = np.linalg.norm(linear, axis=0)
    directions = linear / spacing_mm
    if not np.allclose(directions.T @ directions, np.eye(3), atol=1e-6):
        msg = f"Rendition axes {directions.tolist()} are not at right angles, which no ROI can show."
        raise ValueError(msg)
    axes = directions * np.array([-1.0, -1.0, 1.0])  # Slicer's identity, written in LPS
    if np.linalg.det(axes) < 0:
        axes[:, 2] *= -1.0
    return axes, spacing_mm


def _to_lps(geometry: RenditionGeometry, x: float, y: float, frame_index: int) -> FloatArray:
    point = np.asarray(geometry.ijk_to_lps, dtype=np.float64) @ np.array([x - 0.5, y - 0.5, frame_index, 1.0])
    return np.asarray(point[:3])


def _roi_markup(
    box: SeptalBox, geometry: RenditionGeometry, axes: FloatArray, spacing_mm: FloatArray
) -> dict[str, object]:
    _require_frame(box.frame_index, geometry.shape[2], "A box")
    name = SHORT_NAMES[box.septum]
    label = name if box.score is None else f"{name} {box.score:.2f}"
    roi = Roi(
        center_lps_mm=_to_lps(geometry, (box.x1 + box.x2) / 2, (box.y1 + box.y2) / 2, box.frame_index),
        size_mm=np.array([box.x2 - box.x1, box.y2 - box.y1, 1.0]) * spacing_mm,
        axes_lps=axes,
        label=label,
        description=_description(box),
        name=f"{label} frame {box.frame_index}",
    )
    return roi_markup(roi, _COLOURS[box.septum])


def _placed(label: PointLabel, geometry: RenditionGeometry) -> tuple[str, FloatArray]:
    _require_frame(label.frame_index, geometry.shape[2], "A point label")
    return label.text, _to_lps(geometry, label.x, label.y, label.frame_index)


def _description(box: SeptalBox) -> str:
    """Return what Slicer keeps for us with a box: its septum and, for a model's, where it was proposed."""
    facts: dict[str, object] = {"septum": box.septum.value}
    if box.score is not None:
        facts["proposed"] = [box.frame_index, box.x1, box.y1, box.x2, box.y2]
        facts["score"] = box.score
    return json.dumps(facts)


def _is_proposal(roi: Roi, box: SeptalBox) -> bool:
    """Whether ``box`` still lies where a model put it."""
    try:
        proposed = np.asarray(json.loads(roi.description)["proposed"], dtype=np.float64)
    except (ValueError, TypeError, LookupError, RecursionError):
        return False  # a person's description
    here = np.array([box.frame_index, *box.xyxy])
    return proposed.shape == here.shape and bool(np.all(np.abs(proposed - here) < _UNTOUCHED_PX))


def _box_of(roi: Roi, geometry: RenditionGeometry) -> SeptalBox | None:
    """Return the box of a ROI in pixels; None if it has no area."""
    affine = np.asarray(geometry.ijk_to_lps, dtype=np.float64)
    lps_to_ijk = np.linalg.inv(affine)
    i, j, k = (lps_to_ijk @ np.append(roi.center_lps_mm, 1.0))[:3]
    through_frames = int(np.argmax(np.abs(roi.axes_lps.T @ affine[:3, 2])))
    half_sides: NDArray[np.float64] = lps_to_ijk[:3, :3] @ (roi.axes_lps * roi.size_mm / 2)
    half_x, half_y, _ = np.abs(np.delete(half_sides, through_frames, axis=1)).sum(axis=1)
    if half_x < _EMPTY_PX or half_y < _EMPTY_PX:
        return None
    W, H, T = geometry.shape
    frame_index = math.floor(k + 0.5)
    _require_frame(frame_index, T, roi.place)
    x1, y1, x2, y2 = (float(c) for c in (i + 0.5 - half_x, j + 0.5 - half_y, i + 0.5 + half_x, j + 0.5 + half_y))
    if x2 <= 0 or y2 <= 0 or x1 >= W or y1 >= H:
        msg = (
            f"{roi.place} spans ({x1:.1f}, {y1:.1f}) to ({x2:.1f}, {y2:.1f}) px, outside the picture of {W} x {H} px;"
            " delete it, or submit it with the cine it was drawn on."
        )
        raise AnnotationError(msg)
    named = (septum_named_in(text) for text in (roi.label, roi.description, roi.name))
    septum = next((s for s in named if s is not Septum.UNSPECIFIED), Septum.UNSPECIFIED)
    return SeptalBox(frame_index, x1, y1, x2, y2, septum)


def _without_duplicates(found: Sequence[tuple[SeptalBox, bool]]) -> tuple[SeptalBox, ...]:
    """Return the boxes to keep, in order, of (box, lies where a model proposed it) pairs."""
    groups: dict[tuple[int, Septum], list[int]] = {}
    for n, (box, _) in enumerate(found):
        groups.setdefault((box.frame_index, box.septum), []).append(n)
    kept: list[int] = []
    for members in groups.values():
        members.sort(key=lambda n: (found[n][1], n))
        iou = box_iou(*[np.stack([found[n][0].xyxy for n in members])] * 2)
        chosen: list[int] = []
        for m in range(len(members)):
            if not np.any(iou[m, chosen] > DUPLICATE_IOU):
                chosen.append(m)
        kept += [members[m] for m in chosen]
    return tuple(found[n][0] for n in sorted(kept))


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
