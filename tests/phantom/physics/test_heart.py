# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from echo_plugin.anatomy import Defect
from echo_plugin.phantom.heart import ASD_SIZES_MM, VSD_SIZES_MM, Heart, sample_heart


def test_hearts_are_of_children_from_one_month_to_ten_years(hearts):
    sampled = hearts(None, 200)

    ages = np.array([h.age_days for h in sampled]) / 365.25
    rates = np.array([h.heart_rate_bpm for h in sampled])
    sizes = np.array([h.size_mm for h in sampled])
    assert 0.08 <= ages.min() < 0.3
    assert 8 < ages.max() <= 10
    assert rates.min() >= 80
    assert rates.max() <= 160
    assert 16 < sizes.min() < 22
    assert 36 < sizes.max() < 52


def test_older_children_have_larger_and_slower_hearts(hearts):
    sampled = hearts(None, 200)

    ages = np.log([h.age_days for h in sampled])

    assert np.corrcoef(ages, [h.size_mm for h in sampled])[0, 1] > 0.8
    assert np.corrcoef(ages, [h.heart_rate_bpm for h in sampled])[0, 1] < -0.6


@pytest.mark.parametrize(("defect", "sizes"), [(Defect.ASD, ASD_SIZES_MM), (Defect.VSD, VSD_SIZES_MM)])
def test_defects_span_their_sizes_and_fit_the_wall(hearts, defect, sizes):
    found = np.array([h.defect_size_mm for h in hearts(defect, 150)])

    assert sizes[0] <= found.min() < sizes[0] + 1
    assert sizes[1] - 2 < found.max() <= sizes[1]


@pytest.mark.parametrize(("defect", "scale"), [(Defect.ASD, "rv_scale"), (Defect.VSD, "lv_scale")])
def test_loaded_ventricle_is_larger_on_average_but_overlaps_the_normal(hearts, defect, scale):
    loaded = np.array([getattr(h, scale) for h in hearts(defect, 200)])
    normal = np.array([getattr(h, scale) for h in hearts(Defect.NORMAL, 200)])

    assert loaded.mean() > normal.mean() + 0.03
    assert np.mean(normal > np.median(loaded)) > 0.1


def test_both_kinds_of_ventricular_defect_occur(hearts):
    kinds = [h.hole.kind for h in hearts(Defect.VSD, 60)]

    assert {"perimembranous", "muscular"} == set(kinds)
    assert 0.4 < kinds.count("perimembranous") / 60 < 0.8


def test_same_seed_gives_the_same_heart():
    assert sample_heart(np.random.default_rng(5)) == sample_heart(np.random.default_rng(5))


def test_heart_with_a_defect_but_no_hole_is_refused():
    with pytest.raises(ValueError, match="a hole exactly with a defect"):
        Heart(age_days=900, body_surface_m2=0.5, heart_rate_bpm=110, size_mm=30, defect=Defect.ASD)


def test_heart_of_no_size_is_refused():
    with pytest.raises(ValueError, match="positive numbers"):
        Heart(age_days=900, body_surface_m2=0.5, heart_rate_bpm=110, size_mm=0)
