# SPDX-License-Identifier: Apache-2.0
"""How much higher than wide a pixel is, by the header of an image.

References
----------
PS3.3 10.7 (Pixel Spacing: rows first), C.7.6.3.1.7 (Pixel Aspect Ratio: vertical first), C.8.5.5 (US regions)
"""

from __future__ import annotations

from collections.abc import Sequence

from echo_plugin.cine import RegionDataType
from echo_plugin.io.dicom_header import DicomHeader
from echo_plugin.io.dicom_times import positive_number, stated


def height_to_width(header: DicomHeader) -> float:
    """Return the height of a pixel divided by its width; 1 where the header says nothing of it that can be true.

    *Pixel Spacing* or *Pixel Aspect Ratio* if there is one, else the spacing of the first region of tissue.
    """
    for keyword in ("PixelSpacing", "PixelAspectRatio"):
        pair = stated(header.dataset, keyword)
        if isinstance(pair, Sequence) and len(pair) == 2:
            vertical, horizontal = positive_number(pair[0]), positive_number(pair[1])
            if vertical and horizontal:
                return vertical / horizontal
    region = next((one for one in header.regions if one.data_type is RegionDataType.TISSUE), None)
    if region is None or region.mm_per_px_x is None or region.mm_per_px_y is None:
        return 1.0
    return region.mm_per_px_y / region.mm_per_px_x
