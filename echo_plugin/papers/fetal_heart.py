# SPDX-License-Identifier: Apache-2.0
"""A first-trimester fetal heart on a screen: tissue with speckle, colour flow, and what stands in the way.

This is a drawing in two dimensions, not the physics of ``bmode``: it exists to train and test the path from a fetal
still to its view. It varies what differs between patients and machines (pose, size, gain, speckle, colour scale, power
Doppler) and between stills (plane, colour box, drop-out, shadows, distractors).

Heart coordinates: the unit is the radius of the heart, x to the fetus' left, y towards its back, origin in the middle.
What tells the views apart is the course of the flows: which of them show, whether they run side by side, meet or cross.
Flow across the beam has no colour, fast flow turns over to the other colour, slow flow is cut by the wall filter; so
one anatomy looks different in every pose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from echo_plugin.anatomy import View
from echo_plugin.cine import ByteArray

Floats = NDArray[np.float32]

_STEPS = 9
"""Straight pieces that stand for one curved vessel."""
_UNSEEN = 0.06
"""How often a vessel shows no flow at all; its lumen is there."""
_JITTER = 0.09
"""Deviation of every control point: no two hearts are alike."""


@dataclass(frozen=True)
class Flow:
    """Blood that runs along ``path`` (P, 2), from its first point to its last; ``width`` of its lumen.

    ``strength`` : speed along the path, 0..1; 0: a lumen without colour.
    """

    path: Floats
    width: float
    strength: float


@dataclass(frozen=True)
class Chamber:
    """A dark ellipse with a bright wall: ``centre``, ``radii``, ``angle_rad`` of the first axis."""

    centre: tuple[float, float]
    radii: tuple[float, float]
    angle_rad: float


@dataclass(frozen=True)
class Plane:
    """What one plane cuts."""

    flows: tuple[Flow, ...]
    chambers: tuple[Chamber, ...]


def cut_plane(view: View, rng: np.random.Generator) -> Plane:
    """Return the flows and chambers of a standard fetal view; of OTHER, a plane of the heart that is no standard one.

    Raises
    ------
    ValueError
        If the view is none of ``anatomy.FETAL_5``.
    """
    cuts = {
        View.FETAL_AORTA: _aorta,
        View.FETAL_AV_FLOWS: _av_flows,
        View.FETAL_V_SIGN: _v_sign,
        View.FETAL_X_SIGN: _x_sign,
        View.OTHER: _between_planes,
    }
    if view not in cuts:
        msg = f"View {view.value} is not of the fetal heart; {', '.join(v.value for v in cuts)} are accepted."
        raise ValueError(msg)
    return cuts[view](rng)


def bend(points: Sequence[tuple[float, float]], rng: np.random.Generator) -> Floats:
    """Return (P, 2) points of the curve that three jittered control points make."""
    control = np.array(points) + rng.normal(0, _JITTER, (3, 2))
    t = np.linspace(0, 1, _STEPS)[:, None]
    curve: Floats = (control[0] * (1 - t) ** 2 + 2 * control[1] * t * (1 - t) + control[2] * t**2).astype(np.float32)
    return curve


def _flow(points: Sequence[tuple[float, float]], rng: np.random.Generator, width: float = 0.2) -> Flow:
    """Return a vessel whose flow is seen over most of its course, sometimes not at all."""
    speed = rng.uniform(0.3, 1.0) if rng.random() > _UNSEEN else 0.0
    return Flow(bend(points, rng), width * rng.uniform(0.6, 1.3), float(speed))


def _aorta(rng: np.random.Generator) -> Plane:
    """Cut one long vessel that leaves the left ventricle and bends over."""
    reach = rng.uniform(0.45, 0.75)
    vessel = _flow([(-0.25, 0.75), (-0.15, -0.35 - 0.3 * rng.random()), (reach, -0.55)], rng, 0.24)
    ventricle = Chamber((-0.25, 0.5), (0.42, 0.22), float(rng.normal(1.3, 0.15)))
    other_ventricle = Chamber((0.35, 0.45), (0.36, 0.2), float(rng.normal(1.2, 0.2)))
    return Plane((vessel,), (ventricle, other_ventricle))


def _av_flows(rng: np.random.Generator) -> Plane:
    """Cut four chambers, with the two inflows side by side."""
    gap = rng.uniform(0.27, 0.4)
    lean = rng.normal(0, 0.08)
    left, right = (
        _flow([(side * gap, -0.55), (side * gap + lean, 0.0), (side * gap * rng.uniform(0.75, 1.1), 0.6)], rng)
        for side in (-1, 1)
    )
    rooms = [
        Chamber((side * (gap + 0.02), y), (0.34, 0.24), float(rng.normal(1.5, 0.15)))
        for side in (-1, 1)
        for y in (-0.42, 0.42)
    ]
    return Plane((left, right), tuple(rooms))


def _v_sign(rng: np.random.Generator) -> Plane:
    """Cut the arches of duct and aorta, which meet beside the spine."""
    spread = rng.uniform(0.45, 0.7)
    meeting = (float(rng.normal(0, 0.08)), 0.68)
    flows = [_flow([(side * spread, -0.6), (side * spread * 0.6, 0.1), meeting], rng) for side in (-1, 1)]
    cava = Chamber((0.95, -0.35), (0.13, 0.12), 0.0)
    return Plane(tuple(flows), (cava,))


def _x_sign(rng: np.random.Generator) -> Plane:
    """Cut the two outflow tracts, which cross."""
    spread = rng.uniform(0.42, 0.62)
    crossing = float(rng.normal(0, 0.15))
    flows = [_flow([(-side * spread, -0.62), (0.0, crossing), (side * spread, 0.62)], rng, 0.19) for side in (-1, 1)]
    return Plane(tuple(flows), (Chamber((0.0, 0.75), (0.4, 0.18), float(rng.normal(0, 0.2))),))


def _between_planes(rng: np.random.Generator) -> Plane:
    """Cut the heart where no standard view is: no flow, a short one, or one where two belong."""
    kind = rng.integers(3)
    rooms = [
        Chamber((float(x), float(y)), (float(a), float(a * rng.uniform(0.5, 0.9))), float(rng.uniform(0, np.pi)))
        for x, y, a in zip(rng.uniform(-0.5, 0.5, 3), rng.uniform(-0.5, 0.5, 3), rng.uniform(0.15, 0.4, 3), strict=True)
    ]
    x, y = rng.uniform(-0.4, 0.4, 2)
    if kind == 0:
        return Plane((), tuple(rooms))
    if kind == 1:  # a vessel cut across: a round spot
        spot = _flow([(x, y), (x + 0.06, y + 0.05), (x + 0.12, y + 0.02)], rng, 0.38)
        return Plane((spot,), tuple(rooms))
    angle = rng.uniform(0, 2 * np.pi)
    dx, dy = 0.42 * np.cos(angle), 0.42 * np.sin(angle)
    short = _flow([(x - dx / 2, y - dy / 2), (x, y), (x + dx / 2, y + dy / 2)], rng, 0.26)
    return Plane((short,), tuple(rooms[:2]))


HEIGHT_PX, WIDTH_PX = 216, 288
"""Of the whole screen."""
_TEXTS = ("MHz", "dB", "cm", "PRF", "WF", "FR")
_WALL_FILTER = 0.12
_NYQUIST = 0.8
_DARK = np.array([[150, 20, 10], [10, 40, 150]], np.float32)
_BRIGHT = np.array([[255, 220, 60], [60, 220, 255]], np.float32)
"""Colours of slow and fast flow: towards the probe, away."""
_HEADROOM_DB = 14.0
"""By which the brightest tissue stays below white at a gain of 0 dB, speckle apart."""


def speckled(
    echo: Floats, speckle: tuple[float, int], gain_db: float, dynamic_range_db: float, rng: np.random.Generator
) -> Floats:
    """Return (S, S) grey levels 0..1 of echo strengths: speckle, gain, shadows, drop-out, compression.

    ``speckle`` : size in px, and the number of looks that are joined.
    """
    S = len(echo)
    speckle_px, looks = speckle
    sigma = (speckle_px * 0.7, speckle_px * 1.5)
    field = ndimage.gaussian_filter(rng.standard_normal((2, S, S), dtype=np.float32), (0, *sigma))
    power = np.square(field).sum(axis=0) / field.var()
    shifts = rng.integers(16, S - 16, (looks - 1, 2))  # so far apart, speckle knows nothing of itself
    envelope = np.sqrt((power + sum(np.roll(power, shift, (0, 1)) for shift in shifts)) / looks)
    depth = (np.arange(S, dtype=np.float32)[:, None] + 0.5) / S
    ys, xs = np.mgrid[:S, :S].astype(np.float32)
    beam = np.arctan2(xs - S / 2, ys + 0.25 * S)
    decibels = 20 * np.log10(np.maximum(echo * envelope, 1e-4))
    decibels += rng.normal(0, 8) * (depth - 0.5)  # time-gain compensation set wrongly
    for _ in range(rng.integers(0, 3)):  # ribs and bone
        start, width = rng.uniform(0.0, 0.6), rng.uniform(0.02, 0.08)
        shadow = np.exp(-0.5 * ((beam - rng.uniform(-0.5, 0.5)) / width) ** 2) * (depth > start)
        decibels -= rng.uniform(6, 25) * shadow
    patches = ndimage.zoom(rng.standard_normal((6, 6), dtype=np.float32), S / 6, order=1)
    decibels += rng.uniform(0, 7) * np.minimum(patches, 0.5)  # drop-out
    strength = 10 ** (decibels / 20) + rng.uniform(0.002, 0.03) * envelope[::-1]  # clutter
    grey: Floats = 1 + (20 * np.log10(strength) + gain_db - _HEADROOM_DB) / dynamic_range_db
    return np.clip(grey, 0, 1).astype(np.float32)


def add_colour(
    grey: Floats, speed: Floats, middle: np.ndarray, reach_px: float, rng: np.random.Generator, *, is_power: bool
) -> ByteArray:
    """Return (S, S, 3) uint8: the flow inside a colour box round about ``middle``, over the grey picture.

    ``speed`` : along the beam, -1..1, towards the probe > 0.
    """
    S = len(grey)
    ys, xs = np.mgrid[:S, :S].astype(np.float32) + 0.5
    centre = middle + rng.normal(0, 0.12, 2) * reach_px
    half = reach_px * rng.uniform(0.7, 1.4, 2)
    in_box = (np.abs(xs - centre[0]) < half[0]) & (np.abs(ys - centre[1]) < half[1])
    noise = ndimage.gaussian_filter(rng.standard_normal((S, S), dtype=np.float32), 2.0)
    noise /= noise.std()
    measured = ndimage.gaussian_filter(speed, rng.uniform(0.6, 1.6)) * rng.uniform(0.7, 1.4)
    measured = measured * (noise > rng.uniform(-3.0, 0.1))  # patches that the machine takes for tissue
    clutter = (ndimage.gaussian_filter(rng.standard_normal((S, S), dtype=np.float32), 3.0)) * 9
    flashes = np.where(clutter > rng.uniform(1.0, 3.0), rng.uniform(-0.6, 0.6), 0.0)  # the fetus or the hand moved
    measured = np.where(np.abs(measured) > _WALL_FILTER, measured, flashes)
    shown = in_box & (np.abs(measured) > _WALL_FILTER) & (rng.random() < 0.97)
    turned = np.where(np.abs(measured) > _NYQUIST, measured - 2 * _NYQUIST * np.sign(measured), measured)
    level = np.clip(np.abs(measured if is_power else turned), 0, 1)
    towards = ((turned > 0) | is_power)[shown]
    low = np.where(towards[:, None], _DARK[0], _DARK[1])
    high = np.where(towards[:, None], _BRIGHT[0], _BRIGHT[1])
    picture = np.repeat(grey[..., None] * 255, 3, axis=2)
    picture[shown] = low + (high - low) * level[shown][:, None]
    if rng.random() < 0.5:  # its outline is drawn
        outline = in_box & ~ndimage.binary_erosion(in_box)
        picture[outline] = 190
    return np.clip(picture, 0, 255).astype(np.uint8)


def on_screen(
    picture: ByteArray, middle: np.ndarray, half_px: float, half_opening_rad: float, rng: np.random.Generator
) -> tuple[ByteArray, tuple[int, int, int, int]]:
    """Return the (H, W, 3) screen with the sector and the machine's text, and the square round ``middle`` on it."""
    S = len(picture)
    ys, xs = np.mgrid[:S, :S].astype(np.float32) + 0.5
    apex = S * rng.uniform(0.25, 0.6)
    distance = np.hypot(xs - S / 2, ys + apex)
    in_sector = (
        (np.abs(np.arctan2(xs - S / 2, ys + apex)) < half_opening_rad) & (distance > apex) & (distance < S + apex)
    )
    screen = np.zeros((HEIGHT_PX, WIDTH_PX, 3), np.uint8)
    top, left = int(rng.integers(8, HEIGHT_PX - S)), int(rng.integers(8, WIDTH_PX - S - 24))
    screen[top : top + S, left : left + S] = picture * in_sector[..., None]
    drawing = Image.fromarray(screen)
    pen = ImageDraw.Draw(drawing)
    x = left + S + 8
    for row in range(int(rng.integers(0, 6))):
        pen.text((x, 8 + 11 * row), f"{rng.integers(1, 99)} {_TEXTS[row]}", fill=(200, 200, 200))
    for row in range(60):  # colour scale
        shade = (255 - 3 * row, 110 - 3 * row, 0) if row < 30 else (0, 3 * row - 80, 3 * row + 60)
        pen.line([(x, 110 + row), (x + 7, 110 + row)], fill=tuple(int(np.clip(c, 0, 255)) for c in shade))
    cx, cy = middle[0] + left, middle[1] + top
    corners = np.array([cx - half_px, cy - half_px, cx + half_px, cy + half_px])
    x1, y1, x2, y2 = (int(c) for c in np.clip(corners, 0, [WIDTH_PX, HEIGHT_PX] * 2).round())
    return np.asarray(drawing), (x1, y1, x2, y2)


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
