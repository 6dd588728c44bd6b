# SPDX-License-Identifier: Apache-2.0
"""Septa, defects and views, with their coded concepts, the view vocabularies, and which septum a text names.

The order of the members is the order of class ids in every model; a model card repeats it.
Codes are looked up in pydicom's own SNOMED CT dictionary, never typed from memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom.sr.coding import Code


def _snomed(keyword: str) -> Code:
    """Return the concept that pydicom's SNOMED CT dictionary files under ``keyword``."""
    from pydicom.sr.codedict import codes  # half a second that only coded reports need

    code: Code = getattr(codes.SCT, keyword)
    return code


class Septum(Enum):
    """The wall that a septal box encloses."""

    INTERATRIAL = "interatrial"
    """From the crux of the heart to the roof of the atria."""
    INTERVENTRICULAR = "interventricular"
    """From the apex to the crux: muscular and membranous part."""
    UNSPECIFIED = "unspecified"
    """A septum whose kind the annotator did not say."""

    @property
    def code(self) -> Code | None:
        """The SNOMED CT concept of the wall; None for UNSPECIFIED."""
        concepts = {
            Septum.INTERATRIAL: _snomed("InteratrialSeptum"),
            Septum.INTERVENTRICULAR: _snomed("InterventricularSeptum"),
        }
        return concepts.get(self)


class Defect(Enum):
    """The septal defect of a heart."""

    NORMAL = "Normal"
    ASD = "ASD"
    VSD = "VSD"
    AVSD = "AVSD"
    """Atrioventricular septal defect: of both walls, at the crux."""
    PFO = "PFO"
    """Patent foramen ovale."""
    TOF = "TOF"
    """Tetralogy of Fallot."""

    @property
    def code(self) -> Code | None:
        """The SNOMED CT concept of the defect; None for NORMAL."""
        concepts = {
            Defect.ASD: _snomed("AtrialSeptalDefect"),
            Defect.VSD: _snomed("VentricularSeptalDefect"),
            Defect.AVSD: _snomed("CommonAtrioventricularCanal"),
            Defect.PFO: _snomed("PatentForamenOvale"),
            Defect.TOF: _snomed("TetralogyOfFallot"),
        }
        return concepts.get(self)


class View(Enum):
    """An echocardiographic view of a cine."""

    A4C = "A4C"
    A5C = "A5C"
    A2C = "A2C"
    A3C_LV = "A3C-LV"
    A3C_RV = "A3C-RV"
    PLAX_LV = "PLAX-LV"
    PLAX_RV_IN = "PLAX-RV-IN"
    PLAX_RV_OUT = "PLAX-RV-OUT"
    PSAX_AV = "PSAX-AV"
    PSAX_MV = "PSAX-MV"
    PSAX_PM = "PSAX-PM"
    PSAX_APEX = "PSAX-APEX"
    SUBCOSTAL_4C = "SC-4C"
    SUBCOSTAL_BICAVAL = "SC-BICAVAL"
    SUBCOSTAL_IVC = "SC-IVC"
    SUPRASTERNAL_ARCH = "SSN-ARCH"
    PA_BRANCH = "PA-BRANCH"
    DUCTAL_CUT = "DUCTAL-CUT"
    FETAL_AORTA = "FETAL-AORTA"
    FETAL_AV_FLOWS = "FETAL-AV-FLOWS"
    FETAL_V_SIGN = "FETAL-V-SIGN"
    FETAL_X_SIGN = "FETAL-X-SIGN"
    OTHER = "OTHER"
    """Off-axis, non-cardiac, Doppler or spectral: no standard view."""

    @property
    def code(self) -> Code | None:
        """The SNOMED CT concept (CID 12226) of the view; None where the dictionary has none."""
        concepts = {
            View.A4C: _snomed("ApicalFourChamber"),
            View.A2C: _snomed("ApicalTwoChamber"),
            View.A5C: _snomed("FiveChamber"),
            View.A3C_LV: _snomed("ApicalLongAxis"),
            View.PLAX_LV: _snomed("ParasternalLongAxis"),
            View.PLAX_RV_IN: _snomed("ParasternalLongAxisViewOfTheRVInflowTract"),
            View.PLAX_RV_OUT: _snomed("ParasternalLongAxisViewOfTheRVOutflowTract"),
            View.PSAX_AV: _snomed("ParasternalShortAxisAtTheAorticValveLevel"),
            View.PSAX_MV: _snomed("ParasternalShortAxisAtTheMitralValveLevel"),
            View.PSAX_PM: _snomed("ParasternalShortAxisAtThePapillaryMuscleLevel"),
            View.SUBCOSTAL_4C: _snomed("SubcostalLongAxis"),
            View.SUBCOSTAL_BICAVAL: _snomed("SubcostalShortAxisViewAtVenousInflowLevel"),
            View.SUPRASTERNAL_ARCH: _snomed("SuprasternalLongAxisViewOfAorticArch"),
        }
        return concepts.get(self)


def parse_views(text: str) -> tuple[View, ...]:
    """Return the views of a comma-separated list.

    >>> [view.name for view in parse_views("A4C, PSAX-AV")]
    ['A4C', 'PSAX_AV']
    """
    names = [name.strip() for name in text.split(",")]
    known = [view.value for view in View]
    for name in names:
        if name not in known:
            msg = f"View {name!r} is unknown; {', '.join(known)} are accepted."
            raise ValueError(msg)
    return tuple(View(name) for name in names)


NED_12 = (
    View.A5C,
    View.A4C,
    View.A2C,
    View.A3C_LV,
    View.PLAX_LV,
    View.PLAX_RV_IN,
    View.PLAX_RV_OUT,
    View.PSAX_AV,
    View.PSAX_MV,
    View.PSAX_PM,
    View.PSAX_APEX,
    View.A3C_RV,
)
"""The twelve views of NED-12 in the order its authors print them."""

NED_16 = (*NED_12, View.PA_BRANCH, View.DUCTAL_CUT, View.SUPRASTERNAL_ARCH, View.SUBCOSTAL_IVC)
"""NED-12 and the four rarer views of NED-16."""

PAEDIATRIC = (
    View.A4C,
    View.A5C,
    View.A2C,
    View.A3C_LV,
    View.A3C_RV,
    View.PLAX_LV,
    View.PLAX_RV_IN,
    View.PLAX_RV_OUT,
    View.PSAX_AV,
    View.PSAX_MV,
    View.PSAX_PM,
    View.PSAX_APEX,
    View.SUBCOSTAL_4C,
    View.SUBCOSTAL_BICAVAL,
    View.SUPRASTERNAL_ARCH,
    View.OTHER,
)
"""The standard views of a child's study, with subcostal and suprasternal windows and OTHER."""

FETAL_5 = (View.FETAL_AORTA, View.FETAL_AV_FLOWS, View.FETAL_V_SIGN, View.FETAL_X_SIGN, View.OTHER)
"""The five classes of the first-trimester fetal heart set."""

VIEW_VOCABULARIES: dict[str, tuple[View, ...]] = {
    "ned-12": NED_12,
    "ned-16": NED_16,
    "paediatric": PAEDIATRIC,
    "fetal-5": FETAL_5,
}


def vocabulary_name(views: Iterable[str]) -> str | None:
    """Return what a vocabulary is called that has exactly the views of these names, in this order; None: nothing."""
    wanted = tuple(views)
    return next((word for word, known in VIEW_VOCABULARIES.items() if tuple(v.value for v in known) == wanted), None)


DETECTED_SEPTA = (Septum.INTERATRIAL, Septum.INTERVENTRICULAR)
"""The septa a detector tells apart, in class-id order."""

DEFECTS = (Defect.NORMAL, Defect.ASD, Defect.VSD)
"""The defect classes of the starter, in class-id order; a model may tell apart more, its card names them."""

DEFECT_SEPTA = {
    Defect.ASD: (Septum.INTERATRIAL,),
    Defect.VSD: (Septum.INTERVENTRICULAR,),
    Defect.AVSD: (Septum.INTERATRIAL, Septum.INTERVENTRICULAR),
    Defect.PFO: (Septum.INTERATRIAL,),
    Defect.TOF: (Septum.INTERVENTRICULAR,),
}
"""The walls that a defect is a hole of."""

SEPTAL_VIEWS: dict[Septum, tuple[View, ...]] = {
    Septum.INTERATRIAL: (View.A4C, View.PSAX_AV, View.SUBCOSTAL_4C, View.SUBCOSTAL_BICAVAL),
    Septum.INTERVENTRICULAR: (
        View.A4C,
        View.A5C,
        View.A3C_LV,
        View.PLAX_LV,
        View.PSAX_MV,
        View.PSAX_PM,
        View.PSAX_APEX,
        View.SUBCOSTAL_4C,
    ),
}
"""The standard views in which each septum is ordinarily imaged."""


SHORT_NAMES: dict[Septum, str] = {
    Septum.INTERATRIAL: "IAS",
    Septum.INTERVENTRICULAR: "IVS",
    Septum.UNSPECIFIED: "septum",
}
"""The name of each wall as it is shown beside a box."""

_WORDS = re.compile(r"[a-z]+")
_INTERATRIAL = re.compile(r"ias|asd|(?:inter)?atri(?:al|um|a)(?:sept\w*)?")
_INTERVENTRICULAR = re.compile(r"ivs|vsd|(?:inter)?ventric(?:ular|le|les)(?:sept\w*)?")


def septum_named_in(text: str) -> Septum:
    """Return the septum that ``text`` names; UNSPECIFIED if it names none, or both.

    A defect names its wall (ASD: interatrial). Only English words and the abbreviations of a heart report are known;
    case, digits, hyphens and underscores do not matter.

    Examples
    --------
    >>> septum_named_in("IVS 0.88")
    <Septum.INTERVENTRICULAR: 'interventricular'>
    >>> septum_named_in("inter-atrial_2")
    <Septum.INTERATRIAL: 'interatrial'>
    >>> septum_named_in("atrioventricular junction")
    <Septum.UNSPECIFIED: 'unspecified'>
    """
    words = _WORDS.findall(text.lower())
    is_interatrial = any(_INTERATRIAL.fullmatch(word) for word in words)
    is_interventricular = any(_INTERVENTRICULAR.fullmatch(word) for word in words)
    if is_interatrial == is_interventricular:
        return Septum.UNSPECIFIED
    return Septum.INTERATRIAL if is_interatrial else Septum.INTERVENTRICULAR
