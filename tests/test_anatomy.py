# SPDX-License-Identifier: Apache-2.0
"""The vocabularies and their codes."""

import pytest

from echo_plugin.anatomy import (
    DETECTED_SEPTA,
    FETAL_5,
    NED_12,
    NED_16,
    PAEDIATRIC,
    SEPTAL_VIEWS,
    VIEW_VOCABULARIES,
    Defect,
    Septum,
    View,
)


def test_vocabularies_have_the_sizes_their_names_say() -> None:
    assert (len(NED_12), len(NED_16), len(FETAL_5)) == (12, 16, 5)


@pytest.mark.parametrize("name", VIEW_VOCABULARIES)
def test_a_vocabulary_names_no_view_twice(name: str) -> None:
    assert len(set(VIEW_VOCABULARIES[name])) == len(VIEW_VOCABULARIES[name])


def test_paediatric_views_contain_the_ned_views_and_other() -> None:
    assert set(NED_12) <= set(PAEDIATRIC)
    assert View.OTHER in PAEDIATRIC


def test_class_ids_follow_the_published_order() -> None:
    assert NED_12[0] is View.A5C
    assert NED_12[-1] is View.A3C_RV
    assert [d.value for d in Defect] == ["Normal", "ASD", "VSD", "AVSD", "PFO", "TOF"]
    assert DETECTED_SEPTA == (Septum.INTERATRIAL, Septum.INTERVENTRICULAR)


def test_codes_come_from_snomed_and_mean_what_they_name() -> None:
    assert Septum.INTERATRIAL.code.scheme_designator == "SCT"
    assert "nteratrial" in Septum.INTERATRIAL.code.meaning
    assert "nterventricular" in Septum.INTERVENTRICULAR.code.meaning
    assert "Atrial" in Defect.ASD.code.meaning
    assert "entricular" in Defect.VSD.code.meaning
    assert View.A4C.code.meaning.lower().startswith("apical four chamber")


def test_what_has_no_concept_has_no_code() -> None:
    assert Septum.UNSPECIFIED.code is None
    assert Defect.NORMAL.code is None
    assert View.OTHER.code is None


def test_every_septal_view_is_a_paediatric_view() -> None:
    for views in SEPTAL_VIEWS.values():
        assert set(views) <= set(PAEDIATRIC)
