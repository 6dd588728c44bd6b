# SPDX-License-Identifier: Apache-2.0
"""The vessels and chambers of a first-trimester heart in its standard planes, drawn in two dimensions.

Heart coordinates: the unit is the radius of the heart, x to the fetus' left, y towards its back, origin in the middle.
What tells the views apart is the course of the flows (which of them show, whether they run side by side, meet or
cross); nothing here knows of pixels, machines or speckle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from echo_plugin.anatomy import View

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
