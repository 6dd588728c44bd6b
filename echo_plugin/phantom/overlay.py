# SPDX-License-Identifier: Apache-2.0
"""What an ultrasound machine draws round the sector: text, logo, depth ruler, grey bar, ECG, status bar.

Every machine has its own look. Nothing is drawn on the sector itself; who the patient is stands outside the
ultrasound region, while rulers, marks and, with some machines, settings stand in the region's black corners.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from echo_plugin.cine import ByteArray
from echo_plugin.phantom.ecg import draw_ecg
from echo_plugin.phantom.machine import Corner, Machine
from echo_plugin.phantom.patient import STUDY_DATE, PhantomPatient
from echo_plugin.phantom.phantom_cine import PhantomCine

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Rectangle:
    """A part of the screen: columns ``x1 <= x < x2``, rows ``y1 <= y < y2``, whole px."""

    x1: int
    y1: int
    x2: int
    y2: int


@dataclass(frozen=True)
class Screen:
    """What the machine stores: ``pixels`` (T, H, W, 3) uint8 RGB, and where its parts are (None: not shown)."""

    pixels: ByteArray = field(repr=False)
    ecg: Rectangle | None = None
    ecg_seconds_per_px: float | None = None
    grey_bar: Rectangle | None = None


def sector_mask(cine: PhantomCine, *, clearance_px: int = 3) -> Mask:
    """Return the (H, W) mask of the fan, ``clearance_px`` wider than what the frames light up.

    Where one flank stays dark the other, mirrored, tells where it runs: the fan fills its region from side to side.
    """
    lit = cine.pixels.max(axis=0) > 0
    x1, x2 = int(cine.region.x1), int(np.ceil(cine.region.x2))
    lit[:, x1:x2] |= lit[:, x1:x2][:, ::-1]
    across = np.maximum.accumulate(lit, axis=1) & np.maximum.accumulate(lit[:, ::-1], axis=1)[:, ::-1]
    down = np.maximum.accumulate(across, axis=0) & np.maximum.accumulate(across[::-1], axis=0)[::-1]
    fan: Mask = ndimage.binary_dilation(down, iterations=clearance_px) if lit.any() else lit
    return fan


class _Canvas:
    """A picture that is filled block by block, each where nothing stands yet."""

    def __init__(self, cine: PhantomCine, machine: Machine) -> None:
        _, H, W = cine.pixels.shape
        r = cine.region
        self.machine = machine
        self.region = Rectangle(int(r.x1), int(r.y1), int(np.ceil(r.x2)), int(np.ceil(r.y2)))
        self.sector = sector_mask(cine)
        self.taken = self.sector.copy()
        self.region_mask = np.zeros((H, W), dtype=bool)
        self.region_mask[self.region.y1 : self.region.y2, self.region.x1 : self.region.x2] = True
        self.image = Image.new("RGB", (W, H), machine.background)
        self.draw = ImageDraw.Draw(self.image)
        self.draw.rectangle((self.region.x1, self.region.y1, self.region.x2 - 1, self.region.y2 - 1), fill=(0, 0, 0))
        self.font = ImageFont.truetype(str(machine.font), machine.font_px, layout_engine=ImageFont.Layout.BASIC)

    def place(self, width: int, height: int, corner: Corner, *, in_region: bool) -> Rectangle | None:
        """Take and return the first free rectangle on the way down (or up) from ``corner``; None: no room."""
        H, W = self.taken.shape
        blocked = self.taken if in_region else self.taken | self.region_mask
        gap = 4
        x = gap if corner.is_left else W - width - gap
        steps = range(gap, H - height - gap + 1, 2)
        for y in steps if corner.is_top else reversed(steps):
            if 0 <= x <= W - width and not blocked[y : y + height, x : x + width].any():
                found = Rectangle(x, y, x + width, y + height)
                self.take(found)
                return found
        return None

    def take(self, part: Rectangle) -> None:
        """Keep later blocks off ``part``."""
        self.taken[part.y1 : part.y2, part.x1 : part.x2] = True

    def text_block(self, lines: list[str], corner: Corner, *, in_region: bool = False) -> bool:
        """Write lines below one another near ``corner``; return whether there was room."""
        pitch = self.machine.font_px + 3
        width = int(max(self.font.getlength(line) for line in lines)) + 2
        spot = self.place(width, pitch * len(lines), corner, in_region=in_region)
        if spot is not None:
            for row, line in enumerate(lines):
                self.draw.text((spot.x1, spot.y1 + row * pitch), line, fill=self.machine.text_rgb, font=self.font)
        return spot is not None


def _draw_status_bar(canvas: _Canvas, rng: np.random.Generator) -> None:
    machine = canvas.machine
    H, W = canvas.taken.shape
    top = H - machine.font_px - 6
    if not machine.has_status_bar or top <= canvas.region.y2:
        return
    canvas.draw.rectangle((0, top, W - 1, H - 1), fill=machine.bar_rgb)
    words = rng.permutation(["Store", "Annotate", "Body Mark", "Measure", "Cine 1/1", "HD", "Report", "Freeze"])[:5]
    for place, word in enumerate(words):
        canvas.draw.text((8 + place * W / 5, top + 2), str(word), fill=machine.text_rgb, font=canvas.font)
    canvas.take(Rectangle(0, top, W, H))


def _draw_logo(canvas: _Canvas) -> None:
    machine = canvas.machine
    width, height = int(canvas.font.getlength(machine.manufacturer)) + 12, machine.font_px + 8
    spot = canvas.place(width, height, machine.logo_corner, in_region=False)
    if spot is not None:
        canvas.draw.rectangle((spot.x1, spot.y1, spot.x2 - 1, spot.y2 - 1), fill=machine.accent_rgb)
        canvas.draw.text((spot.x1 + 6, spot.y1 + 3), machine.manufacturer, fill=(255, 255, 255), font=canvas.font)


def _draw_identity(canvas: _Canvas, patient: PhantomPatient, clock: str) -> None:
    machine = canvas.machine
    family, given = patient.name.split("^")
    parts = [f"{family.upper()}, {given}", patient.patient_id, machine.institution, f"{STUDY_DATE:%d/%m/%Y} {clock}"]
    for lines in ([" ".join(parts)], ["  ".join(parts[:2]), "  ".join(parts[2:])], parts):
        if canvas.text_block(lines, machine.identity_corner):
            return


def _draw_settings(canvas: _Canvas, cine: PhantomCine) -> None:
    machine = canvas.machine
    depth_cm = (cine.region.y2 - cine.region.y1) * (cine.region.mm_per_px_y or 0.0) / 10
    lines = [machine.probe, f"FR {1000 / cine.frame_time_ms:.0f}Hz", f"{depth_cm:.1f}cm", "2D"]
    if "gain_db" in cine.facts:
        lines.append(f"Gn {50 + float(cine.facts['gain_db']):.0f}")
    if "dynamic_range_db" in cine.facts:
        lines.append(f"C {float(cine.facts['dynamic_range_db']):.0f}")
    lines += [f"MI {machine.mechanical_index:.1f}", f"HR {cine.heart_rate_bpm:.0f} bpm"]
    while lines and not canvas.text_block(lines, machine.settings_corner, in_region=machine.writes_in_corners):
        lines.pop()


def _draw_grey_bar(canvas: _Canvas) -> Rectangle | None:
    machine = canvas.machine
    if machine.grey_bar_corner is None:
        return None
    height = min(machine.grey_bar_px, max(24, canvas.taken.shape[0] // 3))
    spot = canvas.place(12, height, machine.grey_bar_corner, in_region=False)
    if spot is not None:
        for row in range(height):
            level = round(255 * (1 - row / (height - 1)))
            canvas.draw.line((spot.x1, spot.y1 + row, spot.x2 - 1, spot.y1 + row), fill=(level, level, level))
    return spot


def _draw_ruler(canvas: _Canvas, cine: PhantomCine) -> None:
    """Draw a tick each 5 mm of depth, a longer one each 10 mm; on the region's edge it may be cut by the sector."""
    machine, region = canvas.machine, canvas.region
    x = {"left": region.x1 - 7, "right": region.x2 + 2, "edge": region.x2 - 6}[machine.ruler_side]
    step_px = 5.0 / (cine.region.mm_per_px_y or 1.0)
    for tick, y in enumerate(np.arange(region.y1, region.y2, step_px)):
        length = 5 if tick % 2 == 0 else 2
        canvas.draw.line((x, int(y), x + length, int(y)), fill=machine.ruler_rgb)
    x1 = max(x, 0)
    canvas.take(Rectangle(x1, region.y1, max(x + 6, x1), region.y2))


def _draw_marks(canvas: _Canvas) -> None:
    """Draw the probe's orientation mark beside the fan's top and the focus beside its flank."""
    machine = canvas.machine
    rows = np.flatnonzero(canvas.sector.any(axis=1))
    if not len(rows):
        return
    top = np.flatnonzero(canvas.sector[rows[0]])
    radius = max(2, machine.font_px // 3)
    x = top[-1] + 2 * radius if machine.mark_on_right else top[0] - 2 * radius
    canvas.draw.ellipse((x - radius, rows[0], x + radius, rows[0] + 2 * radius), fill=machine.accent_rgb)
    focus_row = int(rows[0] + machine.focus_depth * (rows[-1] - rows[0]))
    edge = np.flatnonzero(canvas.sector[focus_row])[-1] + 2
    canvas.draw.polygon(
        [(edge, focus_row), (edge + 5, focus_row - 4), (edge + 5, focus_row + 4)], fill=machine.text_rgb
    )


def _take_ecg_strip(canvas: _Canvas) -> Rectangle | None:
    """Return the wide low strip between the region and what stands at the bottom; None: no ECG here, or no room."""
    H, W = canvas.taken.shape
    highest = canvas.region.y2 + 4
    taken_rows = np.flatnonzero(canvas.taken[highest:].any(axis=1))
    bottom = highest + int(taken_rows[0]) if len(taken_rows) else H
    if not canvas.machine.has_ecg or bottom - highest < 14:
        return None
    strip = Rectangle(int(0.12 * W), max(highest, bottom - 48), int(0.88 * W), bottom - 1)
    canvas.take(strip)
    return strip


def draw_overlay(
    cine: PhantomCine, machine: Machine, patient: PhantomPatient, *, clock: str, rng: np.random.Generator
) -> Screen:
    """Return the screen of ``machine`` showing ``cine``: the sector's pixels in grey, unchanged, the rest drawn.

    ``clock`` is the time of day as text; ``rng`` chooses what the status bar says and where the ECG begins.
    """
    canvas = _Canvas(cine, machine)
    _draw_status_bar(canvas, rng)
    _draw_ruler(canvas, cine)
    ecg = _take_ecg_strip(canvas)
    _draw_logo(canvas)
    _draw_identity(canvas, patient, clock)
    _draw_settings(canvas, cine)
    grey_bar = _draw_grey_bar(canvas)
    _draw_marks(canvas)
    still = np.array(canvas.image)
    still[canvas.sector] = 0
    pixels = still[None] | cine.pixels[..., None]  # everywhere one of the two is black
    seconds_per_px = None
    if ecg is not None:
        strip = pixels[:, ecg.y1 : ecg.y2, ecg.x1 : ecg.x2]
        seconds_per_px = draw_ecg(strip, cine, window_s=machine.ecg_window_s, rgb=machine.ecg_rgb, rng=rng)
    return Screen(pixels=pixels, ecg=ecg, ecg_seconds_per_px=seconds_per_px, grey_bar=grey_bar)
