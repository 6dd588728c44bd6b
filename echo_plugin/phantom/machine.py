# SPDX-License-Identifier: Apache-2.0
"""The look and settings of invented ultrasound machines; no real maker's screen is copied."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import matplotlib as mpl
import numpy as np

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
