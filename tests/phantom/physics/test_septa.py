# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import numpy as np
import pytest

from echo_plugin.anatomy import Defect, Septum, View
from echo_plugin.phantom.bmode import Visibility, acquire_cine, box_of, in_sector, set_up, to_pixels
from echo_plugin.phantom.chambers import in_interatrial_septum
from echo_plugin.phantom.heart import Hole, sample_heart
from echo_plugin.phantom.scan_planes import look_at, moved_pose, standard_pose

pytestmark = pytest.mark.heavy


def hole_of(size_mm, heart):
    hole = Hole((0.0, -0.08, -0.46), (1.0, 0.0, 0.0), 0.5 * size_mm / heart.size_mm, Septum.INTERATRIAL, "secundum")
    return replace(heart, defect=Defect.ASD, defect_size_mm=size_mm, hole=hole)


@pytest.mark.parametrize("view", [View.A4C, View.SUBCOSTAL_4C])
@pytest.mark.parametrize("phase", [0.0, 0.4, 0.7])
def test_box_contains_the_mask_of_its_wall_and_touches_it_on_every_side(heart, clean_probe, view, phase):
    probe = clean_probe(depth_mm=125.0)
    acquisition = set_up(heart, standard_pose(heart, view), probe, np.random.default_rng(0))
    pose = acquisition.pose_at(phase, 0.0, 0.0)

    for wall in acquisition.walls:
        box = box_of(wall, heart, pose, probe, phase=phase, frame_index=3, least_extent=0.3)
        cut = wall.in_plane(heart, pose, probe, phase)
        x, y = to_pixels(cut[in_sector(cut, probe)], probe).T

        assert box is not None
        assert box.frame_index == 3
        assert box.score is None
        assert np.all((x > box.x1) & (x < box.x2) & (y > box.y1) & (y < box.y2))
        assert max(x.min() - box.x1, box.x2 - x.max(), y.min() - box.y1, box.y2 - y.max()) * probe.mm_per_px < 2.5


def test_boxes_follow_the_crux_and_meet_there(heart, clean_probe):
    probe = clean_probe(depth_mm=125.0)
    acquisition = set_up(heart, standard_pose(heart, View.A4C), probe, np.random.default_rng(0))
    bottoms = []
    for phase in (0.0, 0.42):
        pose = acquisition.pose_at(phase, 0.0, 0.0)
        boxes = {
            wall.septum: box_of(wall, heart, pose, probe, phase=phase, frame_index=0, least_extent=0.3)
            for wall in acquisition.walls
        }
        ventricular, atrial = boxes[Septum.INTERVENTRICULAR], boxes[Septum.INTERATRIAL]
        assert abs(ventricular.y2 - atrial.y1) * probe.mm_per_px < 4
        bottoms.append(ventricular.y2)

    # the apex is up: systole pulls the crux upwards by the annular descent
    assert bottoms[0] - bottoms[1] > 0.6 * heart.annular_descent * heart.size_mm / probe.mm_per_px


def test_wall_outside_the_sector_has_no_box(heart, clean_probe):
    probe = clean_probe(depth_mm=40.0)
    acquisition = set_up(heart, standard_pose(heart, View.A4C), probe, np.random.default_rng(0))
    atrial = next(w for w in acquisition.walls if w.septum is Septum.INTERATRIAL)

    box = box_of(atrial, heart, acquisition.pose, probe, phase=0.0, frame_index=0, least_extent=0.3)

    assert box is None


def test_boxes_of_a_cine_lie_in_its_region():
    rng = np.random.default_rng(8)

    cine = acquire_cine(sample_heart(rng), View.A4C, rng, frames=4)

    assert len(cine.boxes) == 8
    for box in cine.boxes:
        assert cine.region.x1 <= box.x1 < box.x2 <= cine.region.x2
        assert cine.region.y1 <= box.y1 < box.y2 <= cine.region.y2


def septal_dropout(heart, probe, angle_rad):
    """The drop-out of the interatrial septum when the beam meets it at an angle from its plane."""
    middle = np.array([0.0, -0.08, -0.45])
    away = np.array([-np.sin(angle_rad), 0.0, np.cos(angle_rad)])
    lateral = np.array([np.cos(angle_rad), 0.0, np.sin(angle_rad)])
    pose = look_at(middle + 70.0 / heart.size_mm * away, middle, lateral)
    acquisition = set_up(heart, pose, probe, np.random.default_rng(0))
    seen = Visibility(heart, probe, acquisition.grid, acquisition.disturbances)
    wall = next(w for w in acquisition.walls if w.septum is Septum.INTERATRIAL)
    seen.look(wall, acquisition.echoes(pose, 0.0), pose, 0.0)
    return seen.dropout()


def test_intact_septum_drops_out_along_the_beam_and_not_across_it(heart, clean_probe):
    probe = clean_probe(haze_db=-17.0, noise_db=-30.0)

    along = septal_dropout(heart, probe, 0.0)
    oblique = septal_dropout(heart, probe, np.deg2rad(45))
    across = septal_dropout(heart, probe, np.deg2rad(85))

    assert along > oblique >= across
    assert along > 0.4
    assert across < 0.2


@pytest.mark.parametrize("size_mm", [6.0, 11.0])
def test_hole_measures_its_size_in_the_image(heart, clean_probe, size_mm):
    """Across the beam's depth direction: the gap of a septum that hangs along the beam, in the polar image."""
    holed = hole_of(size_mm, heart)
    probe = clean_probe(elevation_mm=0.8, axial_fwhm_mm=0.6)
    middle = np.array([0.0, -0.08, -0.46])
    pose = look_at(middle + np.array([0.0, 0.0, 70.0 / heart.size_mm]), middle, np.array([1.0, 0.0, 0.0]))
    profile = 0.0
    for seed in range(2):
        acquisition = set_up(holed, pose, probe, np.random.default_rng(seed))
        echoes = np.abs(acquisition.echoes(moved_pose(pose, holed, 0.0, 0.0), 0.0))
        near_axis = np.abs(acquisition.grid.angles_rad) < 0.012
        profile = profile + np.square(echoes[:, near_axis]).mean(axis=1)
    depth = acquisition.grid.depths_mm - 70.0
    wall = np.median(profile[(np.abs(depth) > 0.5 * size_mm + 1) & (np.abs(depth) < 0.5 * size_mm + 3)])
    middle_row = int(np.argmin(np.abs(depth)))
    bright = np.flatnonzero(profile > 0.5 * wall)
    gap = depth[bright[bright > middle_row][0]] - depth[bright[bright < middle_row][-1]]

    assert gap == pytest.approx(size_mm, abs=1.2)


def test_hole_is_inside_the_wall_that_the_box_encloses(heart):
    holed = hole_of(10.0, heart)
    inside = np.array([[0.0, -0.08, -0.46]], np.float32)

    assert in_interatrial_septum(inside, holed)[0]
