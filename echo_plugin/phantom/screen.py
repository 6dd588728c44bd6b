# SPDX-License-Identifier: Apache-2.0
"""What an ultrasound machine draws round the sector: text, logo, depth ruler, grey bar, ECG, status bar.

Every machine is invented, no real maker's screen is copied, and each has its own look. Nothing is drawn on the sector
itself; who the patient is stands outside the ultrasound region, while rulers, marks and, with some machines, settings
stand in the region's black corners.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from echo_plugin.cine import ByteArray
from echo_plugin.phantom.bmode import PhantomCine
from echo_plugin.phantom.heart import STUDY_DATE, PhantomPatient

FloatArray = NDArray[np.float64]

# (phase of the peak, width in phase, height in R waves): P, Q, R, S and T as Gaussians, after McSharry 2003
_WAVES = ((0.84, 0.030, 0.14), (-0.03, 0.010, -0.12), (0.0, 0.011, 1.0), (0.03, 0.011, -0.22), (0.32, 0.055, 0.28))


def ecg_mv(phases: FloatArray) -> FloatArray:
    """Return the voltage in mV, same shape as ``phases`` (0..1, 0 = R peak).

    References
    ----------
    McSharry et al., IEEE Trans Biomed Eng 50(3), 2003, doi:10.1109/TBME.2003.808805: a beat as a sum of Gaussians.
    """
    voltage = np.zeros_like(phases)
    for peak, width, height in _WAVES:
        distance = (phases - peak + 0.5) % 1.0 - 0.5
        voltage += height * np.exp(-0.5 * (distance / width) ** 2)
    return voltage


def phases_at(cine: PhantomCine, times_ms: FloatArray) -> FloatArray:
    """Return the cardiac phase 0..1 at times since the first frame; outside the cine at its mean heart rate."""
    frame_times_ms = np.arange(len(cine.phases)) * cine.frame_time_ms
    beats = np.unwrap(cine.phases, period=1.0)
    beats_per_ms = cine.heart_rate_bpm / 60_000
    inside = np.interp(times_ms, frame_times_ms, beats)
    before = np.minimum(times_ms - frame_times_ms[0], 0.0) * beats_per_ms
    after = np.maximum(times_ms - frame_times_ms[-1], 0.0) * beats_per_ms
    phases: FloatArray = (inside + before + after) % 1.0
    return phases


def r_wave_times_ms(cine: PhantomCine) -> list[float]:
    """Return the times of the R peaks during the cine, ms since its first frame, ascending; maybe none."""
    frame_times_ms = np.arange(len(cine.phases)) * cine.frame_time_ms
    beats = np.unwrap(cine.phases, period=1.0)
    if len(beats) < 2 or np.any(np.diff(beats) <= 0):
        return []
    peaks = np.arange(np.ceil(beats[0]), np.floor(beats[-1]) + 1)
    return [float(t) for t in np.interp(peaks, beats, frame_times_ms)]


def draw_ecg(
    strip: ByteArray, cine: PhantomCine, *, window_s: float, rgb: tuple[int, int, int], rng: np.random.Generator
) -> float:
    """Draw a sweeping trace with its cursor into the (T, h, w, 3) view ``strip``; return seconds per px."""
    T, h, w, _ = strip.shape
    s_per_px = window_s / w
    x_first = int(rng.integers(0, w))  # where the cursor is at the first frame
    times_ms = (np.arange(w) - x_first) * s_per_px * 1000
    noise_mv = 0.015 * rng.standard_normal(w)
    voltage = ecg_mv(phases_at(cine, times_ms)) + noise_mv
    rows = (h - 3) * (1 - (voltage + 0.35) / 1.45)
    picture = Image.fromarray(strip[0])
    points = [(float(x), float(y)) for x, y in zip(range(w), rows, strict=True)]
    ImageDraw.Draw(picture).line(points, fill=rgb, width=1)
    trace = np.array(picture)
    background = strip[0, 0, 0].copy()
    for frame_index in range(T):
        cursor = int(x_first + frame_index * cine.frame_time_ms / 1000 / s_per_px) % w
        strip[frame_index] = trace
        strip[frame_index, :, cursor + 1 : cursor + 9] = background
        strip[frame_index, :, cursor] = rgb
    return s_per_px


Rgb = tuple[int, int, int]

_FONTS = ("DejaVuSans.ttf", "DejaVuSansMono.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif.ttf", "STIXGeneral.ttf")
_TEXT_RGB: tuple[Rgb, ...] = ((235, 235, 235), (200, 210, 220), (250, 230, 150), (150, 230, 235), (170, 220, 160))
_ACCENT_RGB: tuple[Rgb, ...] = ((0, 90, 170), (0, 130, 110), (150, 60, 20), (90, 60, 140), (170, 30, 50), (70, 70, 70))
_ECG_RGB: tuple[Rgb, ...] = ((60, 230, 90), (240, 220, 60), (230, 90, 70), (220, 220, 220), (80, 190, 250))
_BACKGROUND: tuple[Rgb, ...] = ((0, 0, 0), (0, 0, 0), (0, 0, 0), (0, 0, 0), (12, 14, 18), (26, 28, 32))


class Corner(Enum):
    """A corner of the screen."""

    TOP_LEFT = "top left"
    TOP_RIGHT = "top right"
    BOTTOM_LEFT = "bottom left"
    BOTTOM_RIGHT = "bottom right"

    @property
    def is_left(self) -> bool:
        """Whether the corner is on the left."""
        return self in (Corner.TOP_LEFT, Corner.BOTTOM_LEFT)

    @property
    def is_top(self) -> bool:
        """Whether the corner is at the top."""
        return self in (Corner.TOP_LEFT, Corner.TOP_RIGHT)


@dataclass(frozen=True)
class Machine:
    """One ultrasound machine: its names, how it draws its screen and how strongly it compresses.

    ``ruler_side`` : "left" or "right" of the ultrasound region, or "edge": just inside it.
    ``grey_bar_corner`` : None: no grey bar. ``focus_depth`` : 0..1 of the sector's height.
    ``writes_in_corners`` : whether settings stand in the black corners of the region instead of outside it.
    """

    manufacturer: str
    model: str
    serial: str
    institution: str
    probe: str
    mechanical_index: float
    font: Path
    font_px: int
    text_rgb: Rgb
    accent_rgb: Rgb
    bar_rgb: Rgb
    ruler_rgb: Rgb
    ecg_rgb: Rgb
    background: Rgb
    identity_corner: Corner
    settings_corner: Corner
    logo_corner: Corner
    grey_bar_corner: Corner | None
    grey_bar_px: int
    ruler_side: str
    mark_on_right: bool
    focus_depth: float
    writes_in_corners: bool
    has_status_bar: bool
    has_ecg: bool
    ecg_window_s: float
    jpeg_quality: int


def _pick(rng: np.random.Generator, choices: tuple[Rgb, ...]) -> Rgb:
    return choices[int(rng.integers(len(choices)))]


def _corner(rng: np.random.Generator) -> Corner:
    return tuple(Corner)[int(rng.integers(4))]


def sample_machine(rng: np.random.Generator) -> Machine:
    """Return an invented machine; colours, places and sizes are drawn independently."""
    maker = str(rng.choice(("Mocksono", "Fabulon", "Figmenta", "Simvista", "Phantomed", "Notareal")))
    grey = int(rng.integers(30, 80))
    return Machine(
        manufacturer=maker,
        model=f"{maker} {rng.choice(('S', 'E', 'Q', 'iX'))}{int(rng.integers(2, 99))} (synthetic)",
        serial=f"SYN{int(rng.integers(10_000, 99_999))}",
        institution=str(rng.choice(("Phantom Hospital", "Synthetic Children's", "Test Clinic", "Demo Heart Ctr"))),
        probe=str(rng.choice(("FX8-3", "ZQ12-4", "Q6", "VV7-2", "Y12", "FX5-1"))),
        mechanical_index=float(rng.uniform(0.4, 1.4)),
        font=Path(mpl.get_data_path()) / "fonts" / "ttf" / str(rng.choice(_FONTS)),
        font_px=int(rng.integers(9, 17)),
        text_rgb=_pick(rng, _TEXT_RGB),
        accent_rgb=_pick(rng, _ACCENT_RGB),
        bar_rgb=(grey, grey, grey + int(rng.integers(0, 30))),
        ruler_rgb=_pick(rng, _TEXT_RGB),
        ecg_rgb=_pick(rng, _ECG_RGB),
        background=_pick(rng, _BACKGROUND),
        identity_corner=Corner.TOP_LEFT if rng.random() < 0.8 else _corner(rng),
        settings_corner=_corner(rng),
        logo_corner=_corner(rng),
        grey_bar_corner=_corner(rng) if rng.random() < 0.7 else None,
        grey_bar_px=int(rng.integers(48, 160)),
        ruler_side=str(rng.choice(("left", "right", "edge"))),
        mark_on_right=bool(rng.random() < 0.7),
        focus_depth=float(rng.uniform(0.35, 0.8)),
        writes_in_corners=bool(rng.random() < 0.25),
        has_status_bar=bool(rng.random() < 0.4),
        has_ecg=bool(rng.random() < 0.75),
        ecg_window_s=float(rng.uniform(1.5, 4.0)),
        jpeg_quality=int(rng.integers(78, 96)),
    )


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
