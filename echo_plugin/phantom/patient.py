# SPDX-License-Identifier: Apache-2.0
"""An invented child: identity and body, as a study header has them. Nobody of this name is meant."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np

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
