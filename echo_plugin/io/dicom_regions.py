# SPDX-License-Identifier: Apache-2.0
"""The ultrasound regions of a DICOM header: which rectangle shows what, and how many mm a pixel is.

References
----------
PS3.3 C.8.5.5, *US Region Calibration Module*
"""

from __future__ import annotations

from collections.abc import Iterable

from pydicom.dataset import Dataset

from echo_plugin.cine import RegionDataType, UltrasoundRegion
from echo_plugin.io.dicom_times import positive_number, stated

_CENTIMETRES = 3
"""(0018,6024), (0018,6026) *Physical Units X/Y Direction*, C.8.5.5.1.15."""
_TWO_DIMENSIONAL = 1
"""(0018,6012) *Region Spatial Format*, C.8.5.5.1.1; M-mode and spectra are other formats."""


def valid_regions(items: Iterable[Dataset], height: int, width: int) -> tuple[UltrasoundRegion, ...]:
    """Return the regions of (0018,6011) *Sequence of Ultrasound Regions*, in order; empty: none that can be trusted.

    One region that leaves the pixel matrix shows that the whole sequence was written for another matrix (a resized
    copy), so none is returned then. A maximum equal to the matrix, one px too many, is common and is cut. An item
    without corners is passed over.
    """
    regions = []
    for item in items:
        corners = [stated(item, f"RegionLocation{corner}") for corner in ("MinX0", "MinY0", "MaxX1", "MaxY1")]
        if not all(isinstance(corner, int) for corner in corners):
            continue
        x1, y1, x2, y2 = corners[0], corners[1], corners[2] + 1, corners[3] + 1
        if not (0 <= x1 < x2 <= width + 1 and 0 <= y1 < y2 <= height + 1):
            return ()
        x2, y2 = min(x2, width), min(y2, height)
        if x1 < x2 and y1 < y2:
            mm_x, mm_y = _spacing_mm(item, "X"), _spacing_mm(item, "Y")
            regions.append(UltrasoundRegion(x1, y1, x2, y2, mm_x, mm_y, _data_type(item)))
    return tuple(regions)


def _spacing_mm(item: Dataset, direction: str) -> float | None:
    if stated(item, f"PhysicalUnits{direction}Direction") != _CENTIMETRES:
        return None
    delta_cm = stated(item, f"PhysicalDelta{direction}")  # negative where the axis points the other way
    return positive_number(abs(delta_cm) * 10.0) if isinstance(delta_cm, float | int) else None


def _data_type(item: Dataset) -> RegionDataType:
    number = stated(item, "RegionDataType")
    if number == RegionDataType.TISSUE and stated(item, "RegionSpatialFormat") not in (None, _TWO_DIMENSIONAL):
        return RegionDataType.OTHER  # M-mode of tissue: its columns are times
    try:
        return RegionDataType(number)
    except ValueError:
        return RegionDataType.OTHER
