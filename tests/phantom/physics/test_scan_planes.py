# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from echo_plugin.anatomy import Defect, View
from echo_plugin.phantom.bmode import acquire_cine, hole_in_plane_share
from echo_plugin.phantom.heart import sample_heart
from echo_plugin.phantom.image_formation import Probe
from echo_plugin.phantom.scan_planes import place_probe

pytestmark = pytest.mark.heavy


def hearts_with(kind, count):
    """Return hearts whose defect is of one kind, each with the generator that goes on from it."""
    defect = Defect.ASD if kind == "secundum" else Defect.VSD
    found, seed = [], 0
    while len(found) < count:
        rng = np.random.default_rng([seed, 3])
        heart = sample_heart(rng, defect=defect)
        if heart.hole.kind == kind:
            found.append((heart, rng))
        seed += 1
    return found


def share_in_plane(kind, view, count=30):
    shown = []
    for heart, rng in hearts_with(kind, count):
        placed = place_probe(heart, view, "standard", rng)
        probe = Probe.sample(rng, depth_mm=placed.depth * heart.size_mm, age_days=heart.age_days)
        shown.append(hole_in_plane_share(heart, placed.pose, probe) >= 0.5)
    return np.mean(shown)


@pytest.mark.parametrize(
    ("kind", "view"),
    [
        ("secundum", View.A4C),
        ("secundum", View.SUBCOSTAL_4C),
        ("secundum", View.SUBCOSTAL_BICAVAL),
        ("perimembranous", View.PLAX_LV),
        ("perimembranous", View.A5C),
        ("muscular", View.A4C),
    ],
)
def test_most_recordings_of_the_views_for_a_defect_cut_through_it(kind, view):
    assert share_in_plane(kind, view) >= 0.6


def test_a_perimembranous_defect_is_not_in_the_plane_of_the_papillary_muscles():
    assert share_in_plane("perimembranous", View.PSAX_PM) == 0


def test_a_normal_heart_is_searched_as_far_out_of_the_standard_plane_as_one_with_a_defect():
    def tilts(defect):
        found = []
        for seed in range(150):
            rng = np.random.default_rng([seed, 4])
            heart = sample_heart(rng, defect=defect)
            found.append(place_probe(heart, View.PLAX_LV, "standard", rng).pose.beam @ np.array([1.0, 0.0, 0.0]))
        return np.array(found)

    normal, ventricular = tilts(Defect.NORMAL), tilts(Defect.VSD)

    assert abs(normal.mean() - ventricular.mean()) < 0.25 * normal.std()
    assert ventricular.std() == pytest.approx(normal.std(), rel=0.25)


@pytest.mark.parametrize(
    ("kind", "view"), [("secundum", View.SUBCOSTAL_4C), ("perimembranous", View.A5C), ("muscular", View.A4C)]
)
def test_a_defect_that_is_said_to_be_in_the_picture_has_the_box_of_its_wall(kind, view):
    cines = [(heart, acquire_cine(heart, view, rng, frames=1)) for heart, rng in hearts_with(kind, 5)]
    shown = [(heart, cine) for heart, cine in cines if cine.facts["defect_in_plane"]]

    assert shown
    for heart, cine in shown:
        box = next(box for box in cine.boxes if box.septum is heart.hole.septum)
        length = max(box.x2 - box.x1, box.y2 - box.y1) * cine.region.mm_per_px_x
        assert length > cine.defect_size_mm
