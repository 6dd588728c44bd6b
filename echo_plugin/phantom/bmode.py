# SPDX-License-Identifier: Apache-2.0
"""Record a cine of a heart: the chain from moving scatterers to labelled grey frames.

What the imaging of a phantom heart yields: a grey cine with everything known about it by construction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from echo_plugin.anatomy import PAEDIATRIC, Defect, Septum, View
from echo_plugin.annotations import SeptalBox
from echo_plugin.cine import ByteArray, UltrasoundRegion
from echo_plugin.phantom import septa
from echo_plugin.phantom.chambers import FloatArray
from echo_plugin.phantom.heart import Heart
from echo_plugin.phantom.image_formation import (
    ComplexArray,
    Disturbances,
    PolarGrid,
    sample_disturbances,
    scan_converter,
    smooth,
    to_grey,
)
from echo_plugin.phantom.motion import Valve, sample_valves
from echo_plugin.phantom.probe import Probe
from echo_plugin.phantom.scan_planes import Pose, hold, moved_pose, swept_pose
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
from echo_plugin.phantom.septa import Visibility


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

    def __post_init__(self) -> None:
        if self.pixels.ndim != 3 or self.pixels.dtype != np.uint8:
            msg = f"Phantom cine is {self.pixels.dtype} of shape {self.pixels.shape}; (T, H, W) uint8 is accepted."
            raise ValueError(msg)
        T, H, W = self.pixels.shape
        if self.phases.shape != (T,) or np.any(self.phases < 0) or np.any(self.phases > 1):
            msg = f"Phantom cine of {T} frames has phases {self.phases.shape}; {T} values of 0..1 are accepted."
            raise ValueError(msg)
        if not self.region.is_calibrated or self.region.x2 > W or self.region.y2 > H:
            msg = f"Phantom cine of {W} x {H} px: {self.region} must be calibrated and inside the picture."
            raise ValueError(msg)
        if any(box.frame_index >= T for box in self.boxes):
            msg = f"Phantom cine of {T} frames has a box beyond its last frame."
            raise ValueError(msg)
        if (self.defect is Defect.NORMAL) != (self.defect_size_mm is None):
            msg = f"Phantom cine: {self.defect.value} with size {self.defect_size_mm}; a size with a defect, else None."
            raise ValueError(msg)


OTHER_KINDS = ("off_axis", "off_axis", "sweep", "lung", "abdomen")
KEY_PHASES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9)
LEAFLET_STRENGTH = 3.0
LEAST_BRIGHT_GREY = 0.12
"""The grey of the brightest 7 % of a picture that a sonographer would still accept."""


@dataclass(frozen=True)
class Acquisition:
    """One probe at one place over one heart: everything that stays the same from frame to frame."""

    heart: Heart
    probe: Probe
    grid: PolarGrid
    pose: Pose
    tissue: tuple[Scatterers, ...]
    valves: tuple[Valve, ...]
    walls: tuple[septa.SeptalWall, ...]
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
        found = [
            septa.box_of(
                wall,
                self.heart,
                pose,
                self.probe,
                phase=phase,
                frame_index=frame_index,
                least_extent=septa.least_extent(wall.septum, view),
            )
            for wall in self.walls
        ]
        return [box for box in found if box is not None]

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
    """Return a cine of ``frames`` frames of the heart in a view as a hand and a machine would record it.

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
    held = hold(heart, view, kind, rng)
    probe = Probe.sample(rng, depth_mm=held.depth * heart.size_mm, age_days=heart.age_days)
    return _with_usable_gain(set_up(heart, held.pose, probe, rng, kind=kind, sweep_rad=held.sweep_rad))


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
    walls = septa.septal_walls(heart, slab.points.rest, rng)
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
    in_plane = septa.hole_in_plane_share(acquisition.heart, middle, acquisition.probe)
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
