# SPDX-License-Identifier: Apache-2.0
"""What the machine makes of a fetal drawing: speckle and grey levels, the colour box, the sector on a screen with text.

Flow across the beam has no colour, fast flow turns over to the other colour, slow flow is cut by the wall filter; so
one anatomy looks different in every pose.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from echo_plugin.cine import ByteArray
from echo_plugin.phantom.fetal_flows import Floats

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
