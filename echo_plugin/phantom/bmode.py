# SPDX-License-Identifier: Apache-2.0
"""Record a cine of a heart: the chain from moving scatterers to grey frames, labelled by construction.

The walls are followed as material points, the hole of a defect included, so a box is true: that of the wall as imaged,
with half a pulse and half a beam round it. How much of a septum can be seen is where its own echo stands out from haze,
blood and noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from echo_plugin.anatomy import PAEDIATRIC, SEPTAL_VIEWS, Defect, Septum, View
from echo_plugin.annotations import SeptalBox
from echo_plugin.cine import ByteArray, UltrasoundRegion
from echo_plugin.phantom.chambers import FloatArray, in_interatrial_septum, in_interventricular_septum
from echo_plugin.phantom.heart import Heart
from echo_plugin.phantom.image_formation import (
    ComplexArray,
    Disturbances,
    PolarGrid,
    Probe,
    sample_disturbances,
    scan_converter,
    smooth,
    to_grey,
)
from echo_plugin.phantom.motion import MaterialPoints, Valve, material_points, sample_valves
from echo_plugin.phantom.scan_planes import Pose, moved_pose, place_probe, swept_pose
from echo_plugin.phantom.scatterers import (
    SPECULAR_POWER,
    Moment,
    Scatterers,
    elevation_weight,
    heart_scatterers,
    interface_scatterers,
    sample_abdomen,
    sample_lung,
    sample_slab,
)

OTHER_KINDS = ("off_axis", "off_axis", "sweep", "lung", "abdomen")
KEY_PHASES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9)
LEAFLET_STRENGTH = 3.0
LEAST_BRIGHT_GREY = 0.12
"""The grey of the brightest 7 % of a picture that a sonographer would still accept."""
LEAST_EXTENT = {Septum.INTERVENTRICULAR: 0.62, Septum.INTERATRIAL: 0.42}
"""The imaged length, unit-heart, from which a wall counts as shown."""
LEAST_SHARE = 0.5
"""The share of the wall in the plane that must lie in the sector."""
WALLS = {Septum.INTERVENTRICULAR: in_interventricular_septum, Septum.INTERATRIAL: in_interatrial_septum}
FULLEST_CUT = 0.4
"""A wall cut lengthwise is a band: the ratio of its spread across and along is below this."""
VISIBLE_RATIO, VISIBLE_GREY = 1.5, 0.06
"""A wall is seen where its echo exceeds 1.5 times the background and 6 % of the brightest grey."""
STRETCHES_PER_UNIT = 20
"""A wall is judged in stretches of a twentieth of the unit heart from the crux to its end."""


@dataclass(frozen=True)
class PhantomCine:
    """A synthetic cine before a machine draws its overlay and a file format takes it.

    ``pixels`` : (T, H, W) uint8 grey, the sector on black with the margins of the whole picture.
    ``region`` : calibrated, tight round the sector.
    ``phases`` : (T,) float64 in 0..1, the place in the cardiac cycle; 0 = R peak.
    ``boxes`` : true septal boxes, score None.
    ``defect_size_mm`` : the largest diameter; None for a normal heart.
    ``facts`` : how the cine came to be (age_days, septal_dropout, gain_db, depth_mm, ...).
    """

    pixels: ByteArray = field(repr=False)
    region: UltrasoundRegion
    frame_time_ms: float
    phases: NDArray[np.float64] = field(repr=False)
    heart_rate_bpm: float
    view: View
    boxes: tuple[SeptalBox, ...] = field(repr=False)
    defect: Defect
    defect_size_mm: float | None
    facts: Mapping[str, float | str] = field(repr=False)


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


def hole_in_plane_share(heart: Heart, pose: Pose, probe: Probe) -> float:
    """Return the share 0..1 of the beat in which the plane cuts the hole near its middle, inside the sector."""
    if heart.hole is None:
        return 0.0
    point = material_points(np.asarray([heart.hole.centre], np.float32), heart)
    reach = max(0.7 * heart.hole.radius * heart.size_mm, 0.3 * probe.elevation_mm)
    phases = np.arange(8) / 8
    images = [moved_pose(pose, heart, p, 0.0).to_image(point.at(heart, p), heart.size_mm) for p in phases]
    return float(np.mean([abs(i[0, 2]) < reach and in_sector(i[:, :2], probe)[0] for i in images]))


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


@dataclass(frozen=True)
class Acquisition:
    """One probe at one place over one heart: everything that stays the same from frame to frame."""

    heart: Heart
    probe: Probe
    grid: PolarGrid
    pose: Pose
    tissue: tuple[Scatterers, ...]
    valves: tuple[Valve, ...]
    walls: tuple[SeptalWall, ...]
    disturbances: Disturbances
    sweep_rad: float = 0.0

    def pose_at(self, phase: float, time_ms: float, share: float) -> Pose:
        """Return the pose relative to the heart; ``share`` 0..1 of the recording is over."""
        return moved_pose(swept_pose(self.pose, self.sweep_rad, share), self.heart, phase, time_ms)

    def echoes(self, pose: Pose, phase: float) -> ComplexArray:
        """Return the (R, B) blurred echoes of all tissue, undisturbed."""
        positions = [s.points.at(self.heart, phase) for s in self.tissue]
        amplitudes = [s.amplitude for s in self.tissue]
        for valve in self.valves:
            points, normals = valve.at(self.heart, phase)
            positions.append(points)
            amplitudes.append(self._leaflet_amplitude(points, normals, pose))
        image = pose.to_image(np.concatenate(positions), self.heart.size_mm)
        amplitude = np.concatenate(amplitudes) * elevation_weight(image[:, 2], self.probe.elevation_mm)
        depth, angle = np.hypot(image[:, 0], image[:, 1]), np.arctan2(image[:, 1], image[:, 0])
        return self.grid.blur(self.grid.accumulate(depth, angle, amplitude))

    def boxes_on(self, frame_index: int, phase: float, pose: Pose, view: View) -> list[SeptalBox]:
        """Return the boxes of the walls that a frame shows; of those that the view ordinarily lacks, more must show."""
        boxes = []
        for wall in self.walls:
            is_expected = view is View.OTHER or view in SEPTAL_VIEWS[wall.septum]
            least = LEAST_EXTENT[wall.septum] * (1.0 if is_expected else 2.2)
            box = box_of(wall, self.heart, pose, self.probe, phase=phase, frame_index=frame_index, least_extent=least)
            boxes += [] if box is None else [box]
        return boxes

    def _leaflet_amplitude(self, points: FloatArray, normals: FloatArray, pose: Pose) -> FloatArray:
        """Return the echo of leaflet points: mirrors across the beam, faint along it."""
        beams = points - pose.apex.astype(np.float32)
        distance = np.linalg.norm(beams, axis=1) + np.float32(1e-6)
        cosine = np.abs(np.einsum("ij,ij->i", beams, normals)) / distance
        # points per leaflet area are fixed, a cell's area grows with depth: keep the echo of a cell the same
        area = 0.45 * self.heart.size_mm**2
        cell_area = np.maximum(distance * self.heart.size_mm, 5.0) * self.grid.beam_step_rad * self.probe.elevation_mm
        per_cell = len(points) / area * cell_area * 1.8
        return (LEAFLET_STRENGTH * (0.3 + cosine**SPECULAR_POWER) / per_cell).astype(np.float32)


def acquire_cine(heart: Heart, view: View, rng: np.random.Generator, *, frames: int = 32) -> PhantomCine:
    """Return a cine of ``frames`` frames of the heart in a view as a sonographer and a machine would record it.

    Raises
    ------
    ValueError
        If the view is not one of the paediatric vocabulary or ``frames`` is not positive.
    """
    if view not in PAEDIATRIC:
        msg = f"View {view.value} has no phantom; {[v.value for v in PAEDIATRIC]} are accepted."
        raise ValueError(msg)
    if frames < 1:
        msg = f"A phantom cine of {frames} frames was asked for; at least one is accepted."
        raise ValueError(msg)
    kind = str(rng.choice(OTHER_KINDS)) if view is View.OTHER else "standard"
    acquisition = _set_up(heart, view, kind, rng)
    return record(acquisition, view, kind, rng, frames)


def _set_up(heart: Heart, view: View, kind: str, rng: np.random.Generator) -> Acquisition:
    placed = place_probe(heart, view, kind, rng)
    probe = Probe.sample(rng, depth_mm=placed.depth * heart.size_mm, age_days=heart.age_days)
    return _with_usable_gain(set_up(heart, placed.pose, probe, rng, kind=kind, sweep_rad=placed.sweep_rad))


def _with_usable_gain(acquisition: Acquisition) -> Acquisition:
    """Return the acquisition with gain turned up or down where nothing, or nothing but white, could be seen."""
    probe = acquisition.probe
    echoes = np.abs(acquisition.echoes(acquisition.pose_at(0.0, 0.0, 0.0), 0.0)) * acquisition.disturbances.shading
    inside = np.abs(acquisition.grid.angles_rad) < probe.half_angle_rad
    middling, bright = np.percentile(echoes[:, inside], [50, 93])
    for _ in range(8):
        if to_grey(bright, probe) < LEAST_BRIGHT_GREY:
            probe = replace(probe, gain_db=probe.gain_db + 3.0)
        elif to_grey(middling, probe) > 0.7 * probe.brightness:
            probe = replace(probe, gain_db=probe.gain_db - 3.0)
    return replace(acquisition, probe=probe)


def set_up(
    heart: Heart, pose: Pose, probe: Probe, rng: np.random.Generator, *, kind: str = "standard", sweep_rad: float = 0.0
) -> Acquisition:
    """Return the acquisition of a heart with a given pose and given settings."""
    grid = PolarGrid(probe)
    disturbances = sample_disturbances(grid, rng)
    if kind in ("lung", "abdomen"):
        still = replace(heart, respiration=0.12)
        sample = sample_lung if kind == "lung" else sample_abdomen
        return Acquisition(still, probe, grid, pose, (sample(still, pose, grid, rng),), (), (), disturbances)
    slab = sample_slab(heart, _moments(heart, pose, sweep_rad), grid, rng)
    middle = swept_pose(pose, sweep_rad, 0.5)
    tissue = (heart_scatterers(heart, middle, slab, rng), interface_scatterers(heart, middle, grid, slab))
    walls = septal_walls(heart, slab.points.rest, rng)
    return Acquisition(heart, probe, grid, pose, tissue, sample_valves(heart, rng), walls, disturbances, sweep_rad)


def _moments(heart: Heart, pose: Pose, sweep_rad: float) -> list[Moment]:
    """Return phases and poses that span what a recording can meet: beats, both ends of the breath and of a sweep."""
    ends = (0.0, 1.0) if sweep_rad else (0.0,)
    breaths = (0.25 * heart.respiration_period_ms, 0.75 * heart.respiration_period_ms)
    moments = [(0.0, swept_pose(pose, sweep_rad, 0.5 if sweep_rad else 0.0))]
    for phase in KEY_PHASES:
        for share in ends:
            moments += [(phase, moved_pose(swept_pose(pose, sweep_rad, share), heart, phase, t)) for t in breaths]
    return moments


def record(acquisition: Acquisition, view: View, kind: str, rng: np.random.Generator, frames: int) -> PhantomCine:
    """Return the cine that an acquisition yields."""
    heart, probe = acquisition.heart, acquisition.probe
    start = float(rng.random())
    times = probe.frame_time_ms * np.arange(frames)
    phases = (start + times / heart.beat_ms) % 1.0
    converter = scan_converter(acquisition.grid)
    pictures: list[ByteArray] = []
    boxes: list[SeptalBox] = []
    seen = Visibility(heart, probe, acquisition.grid, acquisition.disturbances)
    haze, last = None, None
    for frame_index, (phase, time_ms) in enumerate(zip(phases, times, strict=True)):
        pose = acquisition.pose_at(phase, time_ms, frame_index / frames)
        echoes = acquisition.echoes(pose, phase)
        haze = acquisition.disturbances.next_haze(haze, rng)
        envelope = np.abs(acquisition.disturbances.frame(echoes, haze, rng))
        last = envelope if last is None else (1 - probe.persistence) * envelope + probe.persistence * last
        pictures.append(converter.picture(to_grey(smooth(last, probe), probe)))
        boxes += acquisition.boxes_on(frame_index, phase, pose, view)
        if frame_index % 4 == 0:
            for wall in acquisition.walls:
                if wall.septum is Septum.INTERATRIAL:
                    seen.look(wall, echoes, pose, phase)
    return PhantomCine(
        pixels=np.stack(pictures),
        region=probe.region,
        frame_time_ms=probe.frame_time_ms,
        phases=phases,
        heart_rate_bpm=heart.heart_rate_bpm,
        view=view,
        boxes=tuple(boxes),
        defect=heart.defect,
        defect_size_mm=heart.defect_size_mm,
        facts=_facts(acquisition, kind, boxes, frames) | {"septal_dropout": seen.dropout()},
    )


def _shows_defect(acquisition: Acquisition, boxes: Sequence[SeptalBox], frames: int) -> bool:
    """Return whether, most of the time, the plane cuts the hole and its wall is in the picture."""
    hole = acquisition.heart.hole
    if hole is None or not acquisition.walls:
        return False
    middle = swept_pose(acquisition.pose, acquisition.sweep_rad, 0.5)
    boxed = len({box.frame_index for box in boxes if box.septum is hole.septum})
    in_plane = hole_in_plane_share(acquisition.heart, middle, acquisition.probe)
    return boxed >= 0.5 * frames and in_plane >= 0.5


def _facts(acquisition: Acquisition, kind: str, boxes: Sequence[SeptalBox], frames: int) -> dict[str, float | str]:
    """Return what is true of a recording, for tables."""
    heart, probe = acquisition.heart, acquisition.probe
    return {
        "acquisition": kind,
        "age_days": float(heart.age_days),
        "body_surface_m2": heart.body_surface_m2,
        "heart_rate_bpm": heart.heart_rate_bpm,
        "lv_diameter_mm": heart.size_mm * heart.lv_scale,
        "rv_scale": heart.rv_scale,
        "lv_scale": heart.lv_scale,
        "defect_kind": heart.hole.kind if heart.hole else "none",
        "defect_in_plane": float(_shows_defect(acquisition, boxes, frames)),
        "respiration_mm": heart.respiration * heart.size_mm,
        "image_quality": probe.image_quality,
        "gain_db": probe.gain_db,
        "dynamic_range_db": probe.dynamic_range_db,
        "grey_gamma": probe.grey_gamma,
        "brightness": probe.brightness,
        "haze_db": probe.haze_db,
        "depth_mm": probe.depth_mm,
        "frequency_mhz": probe.frequency_mhz,
        "sector_angle_deg": float(np.rad2deg(2 * probe.half_angle_rad)),
    }
