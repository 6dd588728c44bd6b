# SPDX-License-Identifier: Apache-2.0
"""How much of a septum can be seen: where its own echo stands out from haze, blood and noise."""

from __future__ import annotations

import numpy as np

from echo_plugin.phantom.disturbances import Disturbances
from echo_plugin.phantom.grey_scale import to_grey
from echo_plugin.phantom.heart import Heart
from echo_plugin.phantom.probe import Probe
from echo_plugin.phantom.scan_planes import Pose
from echo_plugin.phantom.septa import SeptalWall, in_sector
from echo_plugin.phantom.speckle import ComplexArray, PolarGrid

VISIBLE_RATIO, VISIBLE_GREY = 1.5, 0.06
"""A wall is seen where its echo exceeds 1.5 times the background and 6 % of the brightest grey."""
STRETCHES_PER_UNIT = 20
"""A wall is judged in stretches of a twentieth of the unit heart from the crux to its end."""


class Visibility:
    """Gathers, over frames, the stretches of a wall that can be told from the background."""

    def __init__(self, heart: Heart, probe: Probe, grid: PolarGrid, disturbances: Disturbances) -> None:
        self._heart, self._probe, self._grid, self._disturbances = heart, probe, grid, disturbances
        self._seen: dict[int, list[float]] = {}

    def look(self, wall: SeptalWall, echoes: ComplexArray, pose: Pose, phase: float) -> None:
        """Add what one frame's undisturbed echoes (R, B) show of the wall."""
        image = pose.to_image(wall.points.at(self._heart, phase), self._heart.size_mm)
        cut = (np.abs(image[:, 2]) < 0.6 * self._probe.elevation_mm) & in_sector(image[:, :2], self._probe)
        depth, lateral = image[cut, 0], image[cut, 1]
        rows, columns = self._grid.cells(np.hypot(depth, lateral), np.arctan2(lateral, depth))
        cell = (np.rint(rows).astype(int), np.rint(columns).astype(int))
        echo = np.abs(echoes[cell]) * self._disturbances.shading[cell]
        grey = to_grey(echo, self._probe) / self._probe.brightness
        visible = (echo > VISIBLE_RATIO * self._disturbances.background()[cell]) & (grey > VISIBLE_GREY)
        stretch = np.floor(wall.points.rest[cut, 2] * STRETCHES_PER_UNIT).astype(int)
        for number in np.unique(stretch):
            self._seen.setdefault(int(number), []).append(float(visible[stretch == number].mean()))

    def dropout(self) -> float:
        """Return the share 0..1 of stretches that are visible in less than half of what was looked at; 0 for none."""
        if not self._seen:
            return 0.0
        return float(np.mean([np.mean(seen) < 0.5 for seen in self._seen.values()]))
