# SPDX-License-Identifier: Apache-2.0
"""Where the probe stands for each view, in unit-heart coordinates, and how sonographer, heart and breath move it.

Every view is a plane through the one heart: a virtual apex of the sector, a beam axis and the direction of image right.
In a recording the standard plane is missed a little and searched.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial.transform import Rotation

from echo_plugin.anatomy import SEPTAL_VIEWS, View
from echo_plugin.phantom.chambers import FloatArray
from echo_plugin.phantom.heart import Heart, sample_hole
from echo_plugin.phantom.motion import contraction

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Window:
    """A standard plane: probe and target in unit-heart coordinates, the direction of image right, the depth shown.

    ``lifts_with_apex``: the probe's z is above the tip of the left ventricle rather than above the crux.
    """

    probe: Vector
    target: Vector
    lateral: Vector
    depth: float
    lifts_with_apex: bool = False


WINDOWS: dict[View, Window] = {
    View.A4C: Window((0.32, 0.0, 0.5), (0.06, -0.12, -0.3), (1.0, 0.0, 0.0), 3.6, True),
    View.A5C: Window((0.32, -0.05, 0.5), (0.12, 0.34, -0.2), (1.0, 0.1, 0.0), 3.6, True),
    View.A2C: Window((0.47, 0.0, 0.5), (0.46, -0.1, -0.4), (0.3, 0.95, 0.0), 3.6, True),
    View.A3C_LV: Window((0.46, 0.02, 0.5), (0.33, 0.17, -0.3), (-0.65, 0.76, 0.0), 3.6, True),
    View.A3C_RV: Window((-0.2, 0.12, 0.25), (-0.38, 0.16, -0.1), (-0.1, 1.0, 0.0), 3.1, True),
    View.PLAX_LV: Window((-0.4, 1.02, 0.42), (0.6, -0.15, 0.34), (0.0, 0.0, -1.0), 2.5),
    View.PLAX_RV_IN: Window((0.0, 1.15, 0.55), (-0.43, -0.1, -0.05), (0.0, -0.2, -1.0), 2.5),
    View.PLAX_RV_OUT: Window((0.0, 1.3, 0.05), (0.4, 0.3, -0.5), (0.25, -0.1, -1.0), 2.4),
    View.PSAX_AV: Window((-0.1, 1.3, -0.04), (0.13, -0.1, -0.22), (1.0, 0.2, 0.0), 2.5),
    View.PSAX_MV: Window((-0.05, 1.25, 0.46), (0.35, 0.0, 0.40), (1.0, 0.3, 0.0), 2.4),
    View.PSAX_PM: Window((-0.05, 1.2, 0.98), (0.38, 0.0, 0.92), (1.0, 0.3, 0.0), 2.35),
    View.PSAX_APEX: Window((0.1, 1.05, 1.42), (0.42, 0.0, 1.38), (1.0, 0.3, 0.0), 2.1),
    View.SUBCOSTAL_4C: Window((-1.65, -0.75, 0.3), (0.05, -0.04, 0.1), (0.0, 0.1, 1.0), 3.3),
    View.SUBCOSTAL_BICAVAL: Window((-1.7, -0.5, -0.25), (0.0, -0.05, -0.45), (0.0, 0.7, -0.7), 3.0),
    View.SUPRASTERNAL_ARCH: Window((0.18, 0.95, -2.45), (0.22, -0.1, -1.3), (0.45, -0.75, -0.45), 2.5),
}


@dataclass(frozen=True)
class Pose:
    """The sector's virtual apex (unit-heart) and the orthonormal beam axis, image right and elevation (3,)."""

    apex: FloatArray
    beam: FloatArray
    lateral: FloatArray
    elevation: FloatArray

    def to_image(self, points: FloatArray, size_mm: float) -> FloatArray:
        """Return (N, 3) points of the unit heart as depth, lateral and elevation in mm."""
        axes = np.stack([self.beam, self.lateral, self.elevation], axis=1).astype(np.float32) * np.float32(size_mm)
        return points @ axes - (self.apex.astype(np.float32) @ axes)

    def to_heart(self, image_points_mm: FloatArray, size_mm: float) -> FloatArray:
        """Return (N, 3) depth, lateral and elevation in mm as points of the unit heart."""
        axes = np.stack([self.beam, self.lateral, self.elevation]).astype(np.float32)
        return (image_points_mm / np.float32(size_mm)) @ axes + self.apex.astype(np.float32)

    def turned(self, rotation: Rotation, about: FloatArray) -> Pose:
        """Return the pose after a rotation of the probe about a point."""
        return Pose(
            about + rotation.apply(self.apex - about),
            rotation.apply(self.beam),
            rotation.apply(self.lateral),
            rotation.apply(self.elevation),
        )


def look_at(apex: FloatArray, target: FloatArray, lateral: FloatArray) -> Pose:
    """Return the pose at ``apex`` with the beam to ``target`` and image right as near to ``lateral`` as can be."""
    beam = target - apex
    beam = beam / np.linalg.norm(beam)
    lateral = lateral - (lateral @ beam) * beam
    lateral = lateral / np.linalg.norm(lateral)
    return Pose(apex, beam, lateral, np.cross(beam, lateral))


def standard_pose(heart: Heart, view: View) -> Pose:
    """Return the textbook pose of a standard view."""
    window = WINDOWS[view]
    apex = np.array(window.probe) + np.array([0.0, 0.0, heart.lv_length if window.lifts_with_apex else 0.0])
    return look_at(apex, np.array(window.target), np.array(window.lateral))


def jittered_pose(heart: Heart, view: View, rng: np.random.Generator, *, spread: float = 1.0) -> Pose:
    """Return a pose as a sonographer finds it: shifted, tilted, turned; ``spread`` 0 is the textbook."""
    pose = standard_pose(heart, view)
    return _jitter(pose, rng, spread)


def _jitter(pose: Pose, rng: np.random.Generator, spread: float) -> Pose:
    slide = np.clip(rng.normal(0.0, 1.0, 3), -1.6, 1.6) * np.array([0.1, 0.13, 0.025]) * spread
    apex = pose.apex + slide[0] * pose.beam + slide[1] * pose.lateral + slide[2] * pose.elevation
    rock, tilt, turn = np.clip(rng.normal(0.0, 1.0, 3), -1.6, 1.6) * np.deg2rad([7.0, 1.7, 7.0]) * spread
    # the sonographer keeps the heart in the picture: half of a slide is steered back
    rock -= 0.35 * slide[1]
    axes = rock * pose.elevation + tilt * pose.lateral + turn * pose.beam
    return replace(pose, apex=apex).turned(Rotation.from_rotvec(axes), apex)


def off_axis_pose(heart: Heart, rng: np.random.Generator) -> Pose:
    """Return a plane through the heart that is no standard view: a standard one tilted and turned far."""
    view = list(WINDOWS)[int(rng.integers(len(WINDOWS)))]
    pose = standard_pose(heart, view)
    turn = np.deg2rad(rng.uniform(25.0, 60.0)) * rng.choice([-1, 1])
    tilt = np.deg2rad(rng.uniform(16.0, 35.0)) * rng.choice([-1, 1])
    rotation = Rotation.from_rotvec(tilt * pose.lateral) * Rotation.from_rotvec(turn * pose.beam)
    return _jitter(pose.turned(rotation, pose.apex), rng, 1.0)


def swept_pose(pose: Pose, sweep_rad: float, share: float) -> Pose:
    """Return the pose a share 0..1 into a sweep: tilted out of its plane, as before or after a view is held."""
    return pose.turned(Rotation.from_rotvec(sweep_rad * (1.0 + 0.5 * share) * pose.lateral), pose.apex)


def moved_pose(pose: Pose, heart: Heart, phase: float, time_ms: float) -> Pose:
    """Return the pose relative to a heart that swings with the beat and shifts with the breath."""
    angle = heart.swing_rad * contraction(heart, phase)
    centre = np.array([heart.lv_axis_x, 0.0, 0.5 * heart.lv_length])
    swung = pose.turned(Rotation.from_rotvec([0.3 * angle, angle, 0.0]), centre)
    breath = heart.respiration * math.sin(2 * math.pi * time_ms / heart.respiration_period_ms)
    return replace(swung, apex=swung.apex + breath * np.array([0.2, 0.5, -0.45]))


FANNED_SHARE = 0.8
"""How often a septal view is fanned to where a defect is or might be."""
FOUND_SHARE = 0.8
"""How often the fanning stops at the defect that is there."""
MOST_FANNED_RAD = {View.A4C: 0.035, View.PLAX_LV: 0.26, View.PSAX_PM: 0.16, View.SUBCOSTAL_4C: 0.12}
"""How far a view is fanned and still is that view; elsewhere ``FANNED_RAD``."""
FANNED_RAD = 0.09


@dataclass(frozen=True)
class ProbePlacement:
    """The probe's pose, the depth (unit-heart) that the machine is set to, and the tilt of a sweep during recording."""

    pose: Pose
    depth: float
    sweep_rad: float = 0.0


def place_probe(heart: Heart, view: View, kind: str, rng: np.random.Generator) -> ProbePlacement:
    """Return where the probe is held for a view; ``kind`` says what an OTHER is (off_axis, sweep, lung, abdomen)."""
    shown = list(WINDOWS)[int(rng.integers(len(WINDOWS)))] if view is View.OTHER else view
    pose = jittered_pose(heart, shown, rng, spread=float(rng.choice([0.6, 1.0, 1.0, 1.6])))
    farthest = 0.75 if WINDOWS[shown].lifts_with_apex else 0.35
    standoff = float(rng.uniform(-0.15, farthest))
    # drawn back along the beam: a thicker chest wall lies between probe and heart
    pose = replace(pose, apex=pose.apex - standoff * pose.beam)
    if rng.random() < FANNED_SHARE:
        pose = fanned_to_septum(heart, view, pose, rng)
    if kind == "off_axis":
        pose = off_axis_pose(heart, rng)
    sweep_rad = float(rng.choice([-1.0, 1.0]) * rng.uniform(0.25, 0.4)) if kind == "sweep" else 0.0
    return ProbePlacement(pose, WINDOWS[shown].depth + standoff, sweep_rad)


def fanned_to_septum(heart: Heart, view: View, pose: Pose, rng: np.random.Generator) -> Pose:
    """Return the pose tilted, within what the view allows, to the defect of a septum in view or where one might be.

    Normal hearts are searched as the others are, so that the tilt does not give the diagnosis away.
    """
    shown = [septum for septum, views in SEPTAL_VIEWS.items() if view in views]
    if not shown:
        return pose
    hole = sample_hole(heart, shown[int(rng.integers(len(shown)))], rng)
    if heart.hole is not None and heart.hole.septum in shown and rng.random() < FOUND_SHARE:
        hole = heart.hole
    offset, most = np.asarray(hole.centre) - pose.apex, MOST_FANNED_RAD.get(view, FANNED_RAD)
    tilt = math.atan2(offset @ pose.elevation, offset @ pose.beam) + float(rng.normal(0.0, 0.01))
    # beam x elevation = -lateral: a positive turn about it carries the beam to positive elevation
    return pose.turned(Rotation.from_rotvec(-np.clip(tilt, -most, most) * pose.lateral), pose.apex)
