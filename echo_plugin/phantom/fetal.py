# SPDX-License-Identifier: Apache-2.0
"""A first-trimester fetal heart on a screen: tissue with speckle, colour flow, and what stands in the way.

This is a drawing in two dimensions, not the physics of ``bmode``: it exists to train and test the path from a fetal
still to its view. It varies what differs between patients and machines (pose, size, gain, speckle, colour scale, power
Doppler) and between stills (plane, colour box, drop-out, shadows, distractors).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

from echo_plugin.anatomy import View
from echo_plugin.cine import ByteArray
from echo_plugin.phantom.fetal_flows import Floats, Flow, Plane, cut_plane
from echo_plugin.phantom.fetal_screen import add_colour, on_screen, speckled

SIDE_PX = 192
"""Of the square in which the sector is drawn."""


@dataclass(frozen=True)
class FetalPatient:
    """What stays the same in all stills of one fetus: ``heart_px`` radius, ``speckle_px``, ``looks``, gain, machine.

    ``looks`` : pictures from so many directions that the machine joins in one, which smoothes speckle.
    """

    heart_px: float
    speckle_px: float
    looks: int
    gain_db: float
    dynamic_range_db: float
    half_opening_rad: float
    is_power_doppler: bool
    thorax: float
    """Radius of the chest in radii of the heart."""


@dataclass(frozen=True)
class FetalStill:
    """One still: ``pixels`` (H, W, 3) uint8, and ``focus``, XYXY px: the heart, or what a person looked at instead."""

    pixels: ByteArray = field(repr=False)
    view: View
    focus: tuple[int, int, int, int]


def sample_fetal_patient(rng: np.random.Generator) -> FetalPatient:
    """Return a random fetus with its machine."""
    return FetalPatient(
        heart_px=float(rng.uniform(38, 56)),
        speckle_px=float(rng.uniform(0.7, 1.5)),
        looks=int(rng.integers(2, 7)),
        gain_db=float(rng.normal(0, 4)),
        dynamic_range_db=float(rng.uniform(42, 60)),
        half_opening_rad=float(rng.uniform(0.5, 0.85)),
        is_power_doppler=bool(rng.random() < 0.2),
        thorax=float(rng.uniform(1.6, 2.2)),
    )


def draw_fetal_still(patient: FetalPatient, view: View, rng: np.random.Generator) -> FetalStill:
    """Return a still of ``view``; OTHER is a plane between the standard ones, or another part of the fetus.

    Raises
    ------
    ValueError
        If the view is none of ``anatomy.FETAL_5``.
    """
    plane = cut_plane(view, rng)
    has_heart = view is not View.OTHER or rng.random() < 0.5
    radius = patient.heart_px * rng.uniform(0.85, 1.2)
    middle = np.array([SIDE_PX / 2, SIDE_PX * 0.56]) + rng.uniform(-0.11, 0.11, 2) * SIDE_PX
    angle, mirror = rng.uniform(0, 2 * np.pi), rng.choice([-1.0, 1.0])
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ np.diag([mirror, 1.0])
    ys, xs = np.mgrid[:SIDE_PX, :SIDE_PX].astype(np.float32) + 0.5
    u, v = np.einsum("ij,jhw->ihw", rotation.T / radius, np.stack([xs - middle[0], ys - middle[1]])).astype(np.float32)
    if not has_heart:
        plane = _elsewhere(plane, rng)
    echo = _tissue(u, v, patient, plane, rng, has_heart=has_heart)
    speed = np.zeros_like(echo)
    for flow in plane.flows:
        distance, along = _nearest(flow, u, v, rotation)
        echo = np.where(distance < flow.width * 1.25, 0.5, echo)  # wall
        echo = np.where(distance < flow.width, 0.03, echo)  # blood
        pulse = flow.strength * (1 - 0.5 * (distance / flow.width) ** 2)
        speed = np.where(distance < flow.width, along * pulse, speed)
    grey = speckled(
        echo, (patient.speckle_px, patient.looks), patient.gain_db + rng.normal(0, 2), patient.dynamic_range_db, rng
    )
    picture = add_colour(grey, speed, middle, 1.25 * radius, rng, is_power=patient.is_power_doppler)
    pixels, focus = on_screen(picture, middle, 1.15 * radius, patient.half_opening_rad, rng)
    return FetalStill(pixels, view, focus)


def _tissue(
    u: Floats, v: Floats, patient: FetalPatient, plane: Plane, rng: np.random.Generator, *, has_heart: bool
) -> Floats:
    """Return the (S, S) echo strength, 0..1, of fluid, chest, spine, ribs, heart and chambers."""
    distance = np.hypot(u, v * rng.uniform(0.85, 1.1))
    edge = patient.thorax * (1 + 0.06 * np.sin(np.arctan2(v, u) * 3 + rng.uniform(0, 6)))
    echo = np.where(distance < edge, rng.uniform(0.12, 0.3), 0.02)  # lung in amniotic fluid
    beyond = distance > edge * rng.uniform(1.15, 1.5)
    echo = np.where(beyond, rng.uniform(0.15, 0.35), echo)  # womb
    ribs = (np.abs(distance - edge) < 0.12) & (np.sin(np.arctan2(v, u) * rng.integers(7, 12)) > -0.2)
    echo = np.where(ribs, 0.8, echo)
    spine = np.hypot(u - rng.normal(0, 0.2), v - patient.thorax * 0.8)
    echo = np.where(spine < 0.28, 1.0, echo)
    if has_heart:
        echo = np.where(distance < 1.0, rng.uniform(0.2, 0.38), echo)  # muscle
        echo = np.where(np.abs(distance - 1.0) < 0.05, 0.5, echo)
        for room in plane.chambers:
            along, across = _turned(u - room.centre[0], v - room.centre[1], room.angle_rad)
            inside = np.hypot(along / room.radii[0], across / room.radii[1])
            echo = np.where(inside < 1.18, 0.45, echo)
            echo = np.where(inside < 1.0, 0.04, echo)
    else:
        for _ in range(rng.integers(1, 4)):  # stomach, bladder, brain: dark rooms of any shape
            x, y = rng.uniform(-0.8, 0.8, 2)
            inside = np.hypot((u - x) / rng.uniform(0.2, 0.6), (v - y) / rng.uniform(0.2, 0.6))
            echo = np.where(inside < 1, rng.uniform(0.02, 0.6), echo)
    blurred: Floats = ndimage.gaussian_filter(echo.astype(np.float32), 0.8)
    return blurred


def _elsewhere(plane: Plane, rng: np.random.Generator) -> Plane:
    """Return a plane without a heart; sometimes the cord's vessels are in it, which wind about each other."""
    if rng.random() < 0.5:
        return Plane((), ())
    t = np.linspace(0, 1, 14, dtype=np.float32)
    start, turn = rng.uniform(-0.7, 0.1), rng.uniform(2, 5)
    strands = []
    for phase in (0.0, np.pi):
        wave = 0.22 * np.sin(turn * t * np.pi + phase)
        path = np.stack([start + 1.1 * t, wave + 0.3 * t], axis=1).astype(np.float32)
        strands.append(Flow(path, 0.13, float(rng.uniform(0.5, 1.0))))
    return Plane(tuple(strands), plane.chambers)


def _turned(x: Floats, y: Floats, angle_rad: float) -> tuple[Floats, Floats]:
    cos, sin = np.float32(np.cos(angle_rad)), np.float32(np.sin(angle_rad))
    return x * cos + y * sin, y * cos - x * sin


def _nearest(flow: Flow, u: Floats, v: Floats, rotation: np.ndarray) -> tuple[Floats, Floats]:
    """Return the distance to the path, and the part of the speed that runs along the beam (towards the probe: > 0)."""
    distance = np.full_like(u, np.inf)
    along = np.zeros_like(u)
    for (x1, y1), (x2, y2) in zip(flow.path[:-1], flow.path[1:], strict=True):
        dx, dy = x2 - x1, y2 - y1
        length_squared = max(float(dx * dx + dy * dy), 1e-6)
        x, y = u - x1, v - y1
        t = np.clip((x * dx + y * dy) / np.float32(length_squared), 0, 1)
        here = np.hypot(x - t * dx, y - t * dy)
        heading = rotation @ np.array([dx, dy]) / np.sqrt(length_squared)
        closer = here < distance
        distance = np.where(closer, here, distance)
        along = np.where(closer, np.float32(-heading[1]), along)  # the probe is above
    return distance, along
