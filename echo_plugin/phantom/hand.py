# SPDX-License-Identifier: Apache-2.0
"""How a sonographer's hand holds the probe for one recording: the standard plane, missed a little and searched."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from echo_plugin.anatomy import SEPTAL_VIEWS, View
from echo_plugin.phantom.heart import Heart, sample_hole
from echo_plugin.phantom.scan_planes import WINDOWS, Pose, aimed_pose, jittered_pose, off_axis_pose, stood_off

FANNED_SHARE = 0.8
"""How often the hand fans a septal view to where a defect is or might be."""
FOUND_SHARE = 0.8
"""How often the fanning hand stops at the defect that is there."""
MOST_FANNED_RAD = {View.A4C: 0.035, View.PLAX_LV: 0.26, View.PSAX_PM: 0.16, View.SUBCOSTAL_4C: 0.12}
"""How far a view is fanned and still is that view; elsewhere ``FANNED_RAD``."""
FANNED_RAD = 0.09


@dataclass(frozen=True)
class Hold:
    """The probe's pose, the depth (unit-heart) that the machine is set to, and the tilt of a sweep during recording."""

    pose: Pose
    depth: float
    sweep_rad: float = 0.0


def hold(heart: Heart, view: View, kind: str, rng: np.random.Generator) -> Hold:
    """Return how the probe is held for a view; ``kind`` says what an OTHER is (off_axis, sweep, lung, abdomen)."""
    shown = list(WINDOWS)[int(rng.integers(len(WINDOWS)))] if view is View.OTHER else view
    pose = jittered_pose(heart, shown, rng, spread=float(rng.choice([0.6, 1.0, 1.0, 1.6])))
    farthest = 0.75 if WINDOWS[shown].lifts_with_apex else 0.35
    standoff = float(rng.uniform(-0.15, farthest))
    pose = stood_off(pose, standoff)
    if rng.random() < FANNED_SHARE:
        pose = fanned_to_septum(heart, view, pose, rng)
    if kind == "off_axis":
        pose = off_axis_pose(heart, rng)
    sweep_rad = float(rng.choice([-1.0, 1.0]) * rng.uniform(0.25, 0.4)) if kind == "sweep" else 0.0
    return Hold(pose, WINDOWS[shown].depth + standoff, sweep_rad)


def fanned_to_septum(heart: Heart, view: View, pose: Pose, rng: np.random.Generator) -> Pose:
    """Return the pose tilted to a place of a septum in view: to its defect, or to where one might be.

    Normal hearts are searched as the others are, so that the tilt does not give the diagnosis away.
    """
    shown = [septum for septum, views in SEPTAL_VIEWS.items() if view in views]
    if not shown:
        return pose
    place = sample_hole(heart, shown[int(rng.integers(len(shown)))], rng)
    if heart.hole is not None and heart.hole.septum in shown and rng.random() < FOUND_SHARE:
        place = heart.hole
    return aimed_pose(pose, np.asarray(place.centre), rng, most_rad=MOST_FANNED_RAD.get(view, FANNED_RAD))
