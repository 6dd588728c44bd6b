# SPDX-License-Identifier: Apache-2.0
"""From the envelope on the polar grid to grey pixels: log compression, grey map, scan conversion."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from echo_plugin.cine import ByteArray
from echo_plugin.phantom.probe import Probe
from echo_plugin.phantom.speckle import PolarGrid
from echo_plugin.phantom.vessels import FloatArray

WHITE_DB = 13.0
"""The echo, relative to heart muscle, that is white at gain 0."""


def to_grey(envelope: FloatArray, probe: Probe) -> FloatArray:
    """Return 0..1 grey of an envelope in which heart muscle has mean power 1."""
    level_db = 20 * np.log10(np.maximum(envelope, 1e-6))
    shown = np.clip((level_db + probe.gain_db - WHITE_DB) / probe.dynamic_range_db + 1, 0, 1)
    return np.float32(probe.brightness) * shown ** np.float32(probe.grey_gamma)


@dataclass(frozen=True)
class ScanConverter:
    """Precomputed bilinear gather from the polar grid to the sector's pixels."""

    pixel: NDArray[np.intp]
    cell: NDArray[np.intp]
    weights: tuple[FloatArray, FloatArray, FloatArray, FloatArray]
    shape: tuple[int, int]
    beam_count: int

    def picture(self, grey: FloatArray) -> ByteArray:
        """Return the (H, W) uint8 picture of (R, B) grey 0..1: the sector on black."""
        flat = np.ascontiguousarray(grey, np.float32).ravel()
        steps = (0, 1, self.beam_count, self.beam_count + 1)
        value = sum(w * flat[self.cell + step] for w, step in zip(self.weights, steps, strict=True))
        picture = np.zeros(self.shape[0] * self.shape[1], np.uint8)
        picture[self.pixel] = np.clip(255 * value + 0.5, 0, 255).astype(np.uint8)
        return picture.reshape(self.shape)


def scan_converter(grid: PolarGrid) -> ScanConverter:
    """Return the converter of a grid; a pixel's echo is that at its centre."""
    probe = grid.probe
    y, x = np.mgrid[0 : probe.height, 0 : probe.width].astype(np.float32) + np.float32(0.5)
    lateral = (x - np.float32(probe.apex_x)) * np.float32(probe.mm_per_px)
    depth = (y - np.float32(probe.apex_y)) * np.float32(probe.mm_per_px)
    reach, angle = np.hypot(lateral, depth), np.arctan2(lateral, depth)
    shown = (reach >= probe.near_mm) & (reach <= probe.depth_mm) & (np.abs(angle) <= probe.half_angle_rad)
    rows, columns = grid.cells(reach[shown], angle[shown])
    rows = np.clip(rows, 0, grid.depth_count - 1.001)
    columns = np.clip(columns, 0, grid.beam_count - 1.001)
    row, column = np.floor(rows).astype(np.intp), np.floor(columns).astype(np.intp)
    down, right = (rows - row).astype(np.float32), (columns - column).astype(np.float32)
    weights = ((1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right)
    return ScanConverter(np.flatnonzero(shown), row * grid.beam_count + column, weights, shown.shape, grid.beam_count)


def smooth(envelope: FloatArray, probe: Probe) -> FloatArray:
    """Return the envelope after spatial smoothing, as compounding and the display do."""
    if probe.smoothing < 0.3:
        return envelope
    return ndimage.gaussian_filter(envelope, (0.8 * probe.smoothing, probe.smoothing), truncate=2.5)
