# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from echo_plugin.phantom.chambers import distances
from echo_plugin.phantom.motion import (
    atrial_filling,
    atrioventricular_opening,
    contraction,
    end_systole_phase,
    material_points,
    sample_valves,
    semilunar_opening,
)

CURVES = (contraction, atrioventricular_opening, semilunar_opening, atrial_filling)


@pytest.mark.parametrize("curve", CURVES)
def test_phase_curves_are_smooth_periodic_and_between_closed_and_open(heart, curve):
    phases = np.linspace(0, 1, 401)

    values = np.array([curve(heart, phase) for phase in phases])

    assert values.min() >= 0
    assert values.max() <= 1
    assert abs(values[0] - values[-1]) < 1e-6
    assert np.abs(np.diff(values)).max() < 0.08


def test_inflow_and_outflow_valves_are_never_open_together(heart):
    for phase in np.linspace(0.04, 1, 200):
        assert min(atrioventricular_opening(heart, phase), semilunar_opening(heart, phase)) < 0.15


def test_left_ventricle_shrinks_and_its_wall_thickens(heart):
    z = heart.lv_centre_z
    edge = heart.lv_axis_x + heart.lv_radius
    points = np.array([[edge, 0, z], [edge + heart.lv_wall, 0, z]], np.float32)
    muscle = material_points(points, heart)

    systole = muscle.at(heart, end_systole_phase(heart))

    assert systole[0, 0] - heart.lv_axis_x < 0.75 * heart.lv_radius
    assert systole[1, 0] - systole[0, 0] > 1.15 * heart.lv_wall


def test_annular_plane_descends_towards_the_apex_and_the_apex_stays(heart):
    points = np.array([[0.0, 0.0, 0.0], [heart.lv_axis_x, 0.0, heart.lv_length]], np.float32)

    moved = material_points(points, heart).at(heart, end_systole_phase(heart)) - points

    assert moved[0, 2] == pytest.approx(heart.annular_descent, rel=0.1)
    assert abs(moved[1, 2]) < 0.02


def test_points_rest_at_end_diastole(heart):
    points = np.random.default_rng(0).uniform(-1, 1.5, (500, 3)).astype(np.float32)

    np.testing.assert_allclose(material_points(points, heart).at(heart, 0.0), points, atol=1e-5)


def test_tissue_far_from_the_heart_stands_still(heart):
    points = np.array([[3.5, 0, 0.5], [-3.0, 1.0, 0.0], [0.0, -3.5, 0.0]], np.float32)
    assert np.all(distances(points, heart).outside > 1.2)

    moved = material_points(points, heart).at(heart, end_systole_phase(heart))

    np.testing.assert_allclose(moved, points, atol=1e-3)


def test_motion_does_not_fold_tissue(heart):
    rng = np.random.default_rng(1)
    centre = rng.uniform([-1, -0.7, -1.1], [1.3, 0.9, 1.9], (4000, 3)).astype(np.float32)
    step = 1e-2
    phase = end_systole_phase(heart)

    base = material_points(centre, heart).at(heart, phase)
    columns = []
    for axis in range(3):
        moved = centre.copy()
        moved[:, axis] += step
        columns.append((material_points(moved, heart).at(heart, phase) - base) / step)
    volume_change = np.linalg.det(np.stack(columns, axis=2))

    assert np.mean(volume_change > 0) > 0.99


def test_mitral_leaflets_reach_into_the_ventricle_when_open_and_meet_when_closed(heart):
    mitral = sample_valves(heart, np.random.default_rng(0))[0]
    opened = max(np.linspace(0, 1, 100), key=lambda phase: atrioventricular_opening(heart, phase))
    tips = mitral.share > 0.95

    closed_tips = mitral.at(heart, 0.2)[0][tips]
    open_tips = mitral.at(heart, opened)[0][tips]

    assert np.ptp(closed_tips[:, :2], axis=0).max() < 0.6 * np.ptp(open_tips[:, :2], axis=0).max()


def test_leaflet_normals_are_unit_and_across_the_leaflet(heart):
    for valve in sample_valves(heart, np.random.default_rng(0), 300):
        points, normals = valve.at(heart, 0.6)

        np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-3)
        assert points.shape == normals.shape
