# SPDX-License-Identifier: Apache-2.0
"""Where on the screen the ultrasound picture is, from the header or from the pixels.

Echoes flicker in every frame while text, scales and frames of the display stand still, so the largest connected area
of flicker is the sector; in a still, the largest area of speckle texture. An ECG trace, a clock and tick marks are
thin and do not survive the opening.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from echo_plugin.cine import ByteArray, Cine, RegionDataType, UltrasoundRegion, to_grey

_FRAMES_LOOKED_AT = 8
_FLICKER = 3  # grey levels; above what JPEG leaves around text that stands still
_DENSITY = 0.3  # share of a window that flickers
_SMALLEST_SHARE = 0.02  # of the picture


def tissue_region(cine: Cine) -> UltrasoundRegion:
    """Return the region to look at: the header's first of tissue, else the one found in the pixels, else everything.

    A region that is not the header's has no spacing.
    """
    region = header_tissue_region(cine)
    if region is None:
        count = min(_FRAMES_LOOKED_AT, cine.frame_count)
        frame_indices = np.linspace(0, cine.frame_count - 1, count).astype(int).tolist()
        region = find_sector(to_grey(cine.read_frames(frame_indices)))
    return region or UltrasoundRegion(0, 0, cine.width, cine.height)


def header_tissue_region(cine: Cine) -> UltrasoundRegion | None:
    """Return the header's first region of tissue; None: it has none. Decodes nothing."""
    return next((region for region in cine.regions if region.data_type is RegionDataType.TISSUE), None)


def find_sector(grey: ByteArray) -> UltrasoundRegion | None:
    """Return the bounding box of the sector in (T, H, W) uint8 frames; None: nothing looks like one."""
    area = find_sector_area(grey)
    if area is None:
        return None
    rows, columns = np.flatnonzero(area.any(axis=1)), np.flatnonzero(area.any(axis=0))
    return UltrasoundRegion(float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))


def find_sector_area(grey: ByteArray) -> NDArray[np.bool_] | None:
    """Return the (H, W) pixels with signal of the sector in (T, H, W) uint8 frames; None: nothing looks like one."""
    if len(grey) == 0:
        return None
    area = find_flicker_area(grey)
    if area is not None:
        return area
    texture = ndimage.maximum_filter(grey[0], 3) - ndimage.minimum_filter(grey[0], 3)
    return _largest_dense_area(texture >= _FLICKER)


def find_flicker_area(grey: ByteArray) -> NDArray[np.bool_] | None:
    """Return the (H, W) pixels of (T, H, W) uint8 frames that flicker as echoes do; None: a still, or nothing does."""
    if len(grey) < 2:
        return None
    return _largest_dense_area(grey.max(axis=0) - grey.min(axis=0) >= _FLICKER)


def _largest_dense_area(signal: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
    H, W = signal.shape
    size = max(3, min(H, W) // 40) | 1  # px, odd; wider than a trace or a stroke of text
    dense = ndimage.uniform_filter(signal.astype(np.float32), size, mode="constant") >= _DENSITY
    opened = ndimage.maximum_filter(ndimage.minimum_filter(dense, size, mode="constant"), size, mode="constant")
    labels, count = ndimage.label(opened)
    if count == 0:
        return None
    areas = np.bincount(labels.ravel())[1:]
    if areas.max() < _SMALLEST_SHARE * H * W:
        return None
    # what the opening rounded off comes back where there is signal
    largest: NDArray[np.bool_] = labels == 1 + int(areas.argmax())
    return ndimage.maximum_filter(largest, size, mode="constant") & dense & signal
