# SPDX-License-Identifier: Apache-2.0
"""An invented child, identity and body, and its heart: chambers, walls, rhythm and defect, with normal variation.

Only numbers; shape is in ``chambers``, beating in ``motion``.
Heart coordinates: origin at the crux, +x to the left ventricle, +y anterior, +z to the apex. Lengths of the
shape are in units of ``size_mm``, the normal end-diastolic inner diameter of the left ventricle for the body.

Nobody of the invented names is meant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import date, timedelta

import numpy as np

from echo_plugin.anatomy import Defect, Septum

DAYS_PER_YEAR = 365.25
ASD_SIZES_MM = (3.0, 15.0)
VSD_SIZES_MM = (2.0, 10.0)


@dataclass(frozen=True)
class Hole:
    """A defect of a septum: a cylinder along ``axis`` through ``centre`` (both unit-heart coordinates)."""

    centre: tuple[float, float, float]
    axis: tuple[float, float, float]
    radius: float
    septum: Septum
    kind: str
    """One of secundum, perimembranous, muscular."""


@dataclass(frozen=True)
class Heart:
    """One child's heart at end diastole and how it beats.

    ``size_mm`` scales the unit heart; scales of chambers are about 1.
    ``connective_*``: echo (relative to muscle) and depth of the tissue around the heart;
    ``lung_gap``: how far the left lung is. ``defect_size_mm`` is None without a defect.
    """

    age_days: int
    body_surface_m2: float
    heart_rate_bpm: float
    size_mm: float
    lv_scale: float = 1.0
    lv_length: float = 1.7
    rv_scale: float = 1.0
    la_scale: float = 1.0
    ra_scale: float = 1.0
    lv_wall: float = 0.17
    rv_wall: float = 0.08
    great_artery_scale: float = 1.0
    atrial_septum: float = 0.085
    fossa_thickness: float = 0.032
    atrial_septum_bow: float = 0.0
    lv_contraction: float = 0.33
    rv_contraction: float = 0.28
    annular_descent: float = 0.26
    swing_rad: float = 0.04
    respiration: float = 0.05
    respiration_period_ms: float = 2500.0
    texture_seed: int = 0
    connective_echo: float = 0.5
    connective_reach: float = 0.5
    posterior_echo: float = 1.1
    lung_gap: float = 0.3
    defect: Defect = Defect.NORMAL
    defect_size_mm: float | None = None
    hole: Hole | None = None

    def __post_init__(self) -> None:
        if self.size_mm <= 0 or self.age_days <= 0 or self.heart_rate_bpm <= 0:
            msg = (
                f"Heart has size {self.size_mm} mm, age {self.age_days} days, {self.heart_rate_bpm} beats/min;"
                " positive numbers are accepted."
            )
            raise ValueError(msg)
        if (self.defect is Defect.NORMAL) != (self.hole is None):
            msg = (
                f"Heart has defect {self.defect.value} and hole {self.hole}; a hole exactly with a defect is accepted."
            )
            raise ValueError(msg)

    @property
    def lv_radius(self) -> float:
        """The inner radius of the left ventricle at its widest, unit-heart."""
        return 0.5 * self.lv_scale

    @property
    def lv_centre_z(self) -> float:
        """The height above the crux at which the left ventricle is widest, unit-heart."""
        return 0.38 * self.lv_length

    @property
    def lv_axis_x(self) -> float:
        """The distance of the left ventricle's long axis from the crux, so that the septum ends at the crux."""
        half_length = self.lv_length - self.lv_centre_z
        base_radius = self.lv_radius * math.sqrt(1.0 - (self.lv_centre_z / half_length) ** 2)
        return base_radius + 0.5 * self.lv_wall

    @property
    def beat_ms(self) -> float:
        """The time between two R peaks."""
        return 60_000.0 / self.heart_rate_bpm


def sample_heart(rng: np.random.Generator, *, defect: Defect | None = None) -> Heart:
    """Return a child's heart of 1 month to 10 years; ``defect`` None draws half normal, a quarter ASD and VSD each."""
    if defect is None:
        defect = (Defect.NORMAL, Defect.NORMAL, Defect.ASD, Defect.VSD)[int(rng.integers(4))]
    years = float(np.exp(rng.uniform(math.log(1 / 12), math.log(10.0))))
    surface = 0.24 * (1.0 + years * 1.05) ** 0.62 * float(rng.lognormal(0.0, 0.08))
    rate = float(np.clip(148.0 * (1.0 + years) ** -0.24 * rng.lognormal(0.0, 0.1), 80.0, 160.0))
    # LVEDD of 39 mm at 1 m2 growing with BSA^0.45 (Pettersen 2008, regression of paediatric M-mode)
    size = 39.0 * surface**0.45 * float(rng.lognormal(0.0, 0.05))

    def around(mean: float, spread: float) -> float:
        return mean * float(rng.lognormal(0.0, spread))

    heart = Heart(
        age_days=max(30, round(years * DAYS_PER_YEAR)),
        body_surface_m2=surface,
        heart_rate_bpm=rate,
        size_mm=size,
        lv_scale=around(1.0, 0.07),
        lv_length=around(1.72, 0.07),
        rv_scale=around(1.0, 0.09),
        la_scale=around(1.0, 0.09),
        ra_scale=around(1.0, 0.09),
        lv_wall=around(0.17, 0.14),
        rv_wall=around(0.08, 0.15),
        great_artery_scale=around(1.0, 0.08),
        atrial_septum=around(0.085, 0.18),
        fossa_thickness=around(0.034, 0.2),
        atrial_septum_bow=float(rng.normal(0.0, 0.05)),
        lv_contraction=float(np.clip(rng.normal(0.33, 0.05), 0.18, 0.45)),
        rv_contraction=float(np.clip(rng.normal(0.28, 0.06), 0.12, 0.42)),
        annular_descent=float(np.clip(rng.normal(0.26, 0.05), 0.12, 0.4)),
        swing_rad=float(rng.normal(0.0, 0.035)),
        respiration=float(rng.uniform(0.0, 0.1)),
        respiration_period_ms=float(rng.uniform(1600.0, 3200.0)),
        texture_seed=int(rng.integers(2**31)),
        connective_echo=float(rng.uniform(0.08, 0.8)),
        connective_reach=float(rng.uniform(0.12, 0.9)),
        posterior_echo=float(rng.uniform(0.7, 1.6)),
        lung_gap=float(rng.uniform(0.0, 0.6)),
    )
    if defect is Defect.NORMAL:
        return heart
    septum = Septum.INTERATRIAL if defect is Defect.ASD else Septum.INTERVENTRICULAR
    return _with_hole(heart, defect, sample_hole(heart, septum, rng), rng)


def septum_radius(heart: Heart, height: float) -> float:
    """Return the distance of the middle of the ventricular wall from the long axis, ``height`` above the crux."""
    half_length = heart.lv_length - heart.lv_centre_z
    level = 1.0 - ((height - heart.lv_centre_z) / half_length) ** 2
    return heart.lv_radius * math.sqrt(level) + 0.5 * heart.lv_wall


def sample_hole(heart: Heart, septum: Septum, rng: np.random.Generator) -> Hole:
    """Return a defect as it may lie in a septum of this heart: secundum, or perimembranous (60 %) or muscular."""
    if septum is Septum.INTERATRIAL:
        size = min(float(rng.uniform(*ASD_SIZES_MM)), 0.62 * heart.size_mm)
        centre = (0.0, float(rng.normal(-0.08, 0.05)), float(rng.normal(-0.46, 0.05)))
        return Hole(centre, (1.0, 0.0, 0.0), 0.5 * size / heart.size_mm, septum, "secundum")
    size = min(float(rng.uniform(*VSD_SIZES_MM)), 0.33 * heart.size_mm)
    relative = size / heart.size_mm
    kind = "perimembranous" if rng.random() < 0.6 else "muscular"
    if kind == "perimembranous":  # under the aortic valve, where the outflow tract borders on the right ventricle
        turn, height = float(rng.normal(0.42, 0.12)), 0.07 + 0.5 * relative + float(rng.uniform(0.0, 0.08))
    else:
        turn, height = float(rng.normal(-0.05, 0.25)), heart.lv_length * float(rng.uniform(0.25, 0.72))
    axis = (-math.cos(turn), math.sin(turn), 0.0)
    radius = septum_radius(heart, height)
    centre = (heart.lv_axis_x + radius * axis[0], radius * axis[1], height)
    return Hole(centre, axis, 0.5 * relative, septum, kind)


def _with_hole(heart: Heart, defect: Defect, hole: Hole, rng: np.random.Generator) -> Heart:
    """Return the heart with the defect and, the more the larger it is, a larger heart on the side that it loads."""
    relative = 2 * hole.radius
    burden = float(rng.uniform(0.3, 1.5))
    if defect is Defect.ASD:
        load = 1.0 + 0.3 * relative * burden
        heart = replace(heart, rv_scale=heart.rv_scale * load, ra_scale=heart.ra_scale * load)
    else:
        load = 1.0 + 0.42 * relative * burden
        grown = replace(heart, lv_scale=heart.lv_scale * load, la_scale=heart.la_scale * load)
        hole = _carried_along(hole, heart, grown)
        heart = grown
    return replace(heart, defect=defect, defect_size_mm=relative * heart.size_mm, hole=hole)


def _carried_along(hole: Hole, heart: Heart, grown: Heart) -> Hole:
    """Return the hole of the ventricular septum where that wall lies once the left ventricle is larger."""
    wider = septum_radius(grown, hole.centre[2])
    centre = (grown.lv_axis_x + wider * hole.axis[0], wider * hole.axis[1], hole.centre[2])
    return replace(hole, centre=centre)


STUDY_DATE = date(2020, 1, 1)
"""The day of every phantom study: fixed, so that the same seed gives the same bytes."""

# fmt: off
_ONSETS = (
    "Bra", "Dol", "Fen", "Gri", "Hul", "Jor", "Kel", "Lum", "Mor", "Nim", "Ost", "Pel", "Quo", "Rud", "Sil", "Tav",
)
# fmt: on
_MIDDLES = ("a", "e", "i", "o", "ani", "emo", "iru", "ola", "uvi", "aro")
_ENDS = ("bek", "dran", "fis", "gul", "lith", "mak", "nor", "pto", "rax", "svin", "tho", "wen")

# Median length (m) of a child by age in days, rounded from the WHO growth standards (0 to 5 years) and growth
# reference (5 to 19 years), girls and boys averaged.
_AGE_DAYS = (0.0, 91.0, 183.0, 365.0, 730.0, 1461.0, 2192.0, 3652.0, 5113.0, 6940.0)
_LENGTH_M = (0.495, 0.605, 0.667, 0.75, 0.868, 1.03, 1.156, 1.38, 1.615, 1.70)


@dataclass(frozen=True)
class PhantomPatient:
    """``name`` is a DICOM person name (family^given), ``sex`` is M or F, ``age_days`` is at the study."""

    patient_id: str
    name: str
    sex: str
    age_days: int
    length_m: float
    weight_kg: float

    @property
    def birth_date(self) -> date:
        """The day ``age_days`` before the study."""
        return STUDY_DATE - timedelta(days=self.age_days)

    @property
    def age(self) -> str:
        """(0010,1010) *Patient's Age*: days under 4 weeks, weeks under 13, months under 2 years, else years."""
        if self.age_days < 28:
            return f"{self.age_days:03d}D"
        if self.age_days < 91:
            return f"{self.age_days // 7:03d}W"
        if self.age_days < 730:
            return f"{int(self.age_days / 30.4375):03d}M"
        return f"{int(self.age_days / 365.25):03d}Y"


def _invented_word(rng: np.random.Generator) -> str:
    return str(rng.choice(_ONSETS)) + str(rng.choice(_MIDDLES)) + str(rng.choice(_ENDS))


def sample_patient(
    rng: np.random.Generator, *, patient_id: str, age_days: int, body_surface_m2: float
) -> PhantomPatient:
    """Return an invented child of the given age and body surface.

    References
    ----------
    Mosteller, N Engl J Med 317:1098, 1987, doi:10.1056/NEJM198710223171717: surface = sqrt(length * weight / 36 kg/m).
    """
    length_m = float(np.interp(age_days, _AGE_DAYS, _LENGTH_M)) * (1 + 0.02 * float(np.clip(rng.normal(), -2.0, 2.0)))
    return PhantomPatient(
        patient_id=patient_id,
        name=f"{_invented_word(rng)}^{_invented_word(rng)}",
        sex=str(rng.choice(("F", "M"))),
        age_days=age_days,
        length_m=round(length_m, 2),
        weight_kg=round(36.0 * body_surface_m2**2 / length_m, 1),
    )
