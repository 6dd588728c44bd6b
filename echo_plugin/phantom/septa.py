# SPDX-License-Identifier: Apache-2.0
"""Where each septum lies in the picture, frame by frame, and how much of it can be seen.

The walls are followed as material points, the hole of a defect included, so a box is true by construction:
that of the wall as imaged, with half a pulse and half a beam round it.

How much of a septum can be seen: where its own echo stands out from haze, blood and noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from echo_plugin.anatomy import SEPTAL_VIEWS, Septum, View
from echo_plugin.annotations import SeptalBox
from echo_plugin.phantom.chambers import FloatArray, in_interatrial_septum, in_interventricular_septum
from echo_plugin.phantom.heart import Heart
from echo_plugin.phantom.image_formation import ComplexArray, Disturbances, PolarGrid, to_grey
from echo_plugin.phantom.motion import MaterialPoints, material_points
from echo_plugin.phantom.probe import Probe
from echo_plugin.phantom.scan_planes import Pose, moved_pose

LEAST_EXTENT = {Septum.INTERVENTRICULAR: 0.62, Septum.INTERATRIAL: 0.42}
"""The imaged length, unit-heart, from which a wall counts as shown."""
LEAST_SHARE = 0.5
"""The share of the wall in the plane that must lie in the sector."""
WALLS = {Septum.INTERVENTRICULAR: in_interventricular_septum, Septum.INTERATRIAL: in_interatrial_septum}
FULLEST_CUT = 0.4
"""A wall cut lengthwise is a band: the ratio of its spread across and along is below this."""


@dataclass(frozen=True)
class SeptalWall:
    """Material points of one septum."""

    septum: Septum
    points: MaterialPoints

    def in_plane(self, heart: Heart, pose: Pose, probe: Probe, phase: float) -> FloatArray:
        """Return depth and lateral (N, 2) in mm of the points that the plane cuts at a phase."""
        image = pose.to_image(self.points.at(heart, phase), heart.size_mm)
        return image[np.abs(image[:, 2]) < 0.6 * probe.elevation_mm][:, :2]


def septal_walls(heart: Heart, candidates: FloatArray, rng: np.random.Generator) -> tuple[SeptalWall, ...]:
    """Return both septa sampled at those of the candidate points (N, 3, unit heart) that belong to them."""
    walls = []
    for septum, belongs in WALLS.items():
        chosen = candidates[_near(candidates, septum)]
        chosen = chosen[belongs(chosen, heart)]
        if len(chosen) > 20_000:
            chosen = chosen[rng.choice(len(chosen), 20_000, replace=False)]
        walls.append(SeptalWall(septum, material_points(chosen, heart)))
    return tuple(walls)


def _near(points: FloatArray, septum: Septum) -> NDArray[np.bool_]:
    """Return a cheap superset of the wall."""
    if septum is Septum.INTERATRIAL:
        return (np.abs(points[:, 0]) < 0.4) & (points[:, 2] < 0.05) & (points[:, 2] > -1.4)
    return (points[:, 2] > -0.1) & (points[:, 2] < 2.8) & (np.abs(points[:, 0]) < 1.2)


def in_sector(depth_lateral_mm: FloatArray, probe: Probe) -> NDArray[np.bool_]:
    """Return which (N, 2) points lie in the displayed sector."""
    depth, lateral = depth_lateral_mm[:, 0], depth_lateral_mm[:, 1]
    reach = np.hypot(depth, lateral)
    inside: NDArray[np.bool_] = (reach > probe.near_mm) & (reach < probe.depth_mm)
    return inside & (np.abs(np.arctan2(lateral, depth)) < probe.half_angle_rad)


def to_pixels(depth_lateral_mm: FloatArray, probe: Probe) -> FloatArray:
    """Return (N, 2) x and y in px of the picture."""
    return np.stack(
        [
            probe.apex_x + depth_lateral_mm[:, 1] / probe.mm_per_px,
            probe.apex_y + depth_lateral_mm[:, 0] / probe.mm_per_px,
        ],
        axis=1,
    )


def _as_imaged(depth_lateral_mm: FloatArray, probe: Probe) -> FloatArray:
    """Return points (4 N, 2) on the rim of each point's picture: half a pulse along, half a beam across."""
    reach = np.hypot(depth_lateral_mm[:, 0], depth_lateral_mm[:, 1])[:, None]
    along = depth_lateral_mm / reach
    across = np.stack([-along[:, 1], along[:, 0]], axis=1)
    half_beam = 0.5 * probe.beam_width_rad(reach) * reach * across
    half_pulse = 0.5 * probe.axial_fwhm_mm * along
    return np.concatenate([depth_lateral_mm + step for step in (half_beam, -half_beam, half_pulse, -half_pulse)])


def box_of(
    wall: SeptalWall, heart: Heart, pose: Pose, probe: Probe, *, phase: float, frame_index: int, least_extent: float
) -> SeptalBox | None:
    """Return the box of a wall at a phase; None when less than ``least_extent`` (unit-heart) is in the picture."""
    cut = wall.in_plane(heart, pose, probe, phase)
    if len(cut) < 12:
        return None
    shown = cut[in_sector(cut, probe)]
    if len(shown) < LEAST_SHARE * len(cut):
        return None
    spread = np.sqrt(np.linalg.eigvalsh(np.cov(shown.T)))
    if spread[0] > FULLEST_CUT * spread[1]:
        return None
    low, high = shown.min(axis=0), shown.max(axis=0)
    if np.hypot(*(high - low)) < least_extent * heart.size_mm:
        return None
    blurred = _as_imaged(shown, probe)
    corners = to_pixels(np.stack([blurred.min(axis=0), blurred.max(axis=0)]), probe)
    region = probe.region
    x1, y1 = max(corners[0, 0], region.x1), max(corners[0, 1], region.y1)
    x2, y2 = min(corners[1, 0], region.x2), min(corners[1, 1], region.y2)
    if x2 - x1 < 2 or y2 - y1 < 2:
        return None
    return SeptalBox(frame_index, float(x1), float(y1), float(x2), float(y2), wall.septum)


def least_extent(septum: Septum, view: View) -> float:
    """Return the imaged length, unit-heart, that counts as shown; more in a view that ordinarily lacks the wall."""
    is_expected = view is View.OTHER or view in SEPTAL_VIEWS[septum]
    return LEAST_EXTENT[septum] * (1.0 if is_expected else 2.2)


def hole_in_plane_share(heart: Heart, pose: Pose, probe: Probe) -> float:
    """Return the share 0..1 of the beat in which the plane cuts the hole near its middle, inside the sector."""
    if heart.hole is None:
        return 0.0
    point = material_points(np.asarray([heart.hole.centre], np.float32), heart)
    reach = max(0.7 * heart.hole.radius * heart.size_mm, 0.3 * probe.elevation_mm)
    phases = np.arange(8) / 8
    images = [moved_pose(pose, heart, p, 0.0).to_image(point.at(heart, p), heart.size_mm) for p in phases]
    return float(np.mean([abs(i[0, 2]) < reach and in_sector(i[:, :2], probe)[0] for i in images]))


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
