# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from echo_plugin.anatomy import View
from echo_plugin.phantom.image_formation import PolarGrid
from echo_plugin.phantom.motion import end_systole_phase
from echo_plugin.phantom.scan_planes import standard_pose
from echo_plugin.phantom.scatterers import elevation_weight, heart_scatterers, random_signs, sample_slab


def envelope(image, amplitude, grid):
    weighted = amplitude * elevation_weight(image[:, 2], grid.probe.elevation_mm)
    depth, angle = np.hypot(image[:, 0], image[:, 1]), np.arctan2(image[:, 1], image[:, 0])
    return np.abs(grid.blur(grid.accumulate(depth, angle, weighted)))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_speckle_of_homogeneous_tissue_is_fully_developed(heart, clean_probe, seed):
    rng = np.random.default_rng(seed)
    grid = PolarGrid(clean_probe())
    pose = standard_pose(heart, View.A4C)
    slab = sample_slab(heart, [(0.0, pose)], grid, rng)
    amplitude = random_signs(len(slab.points), rng) / np.sqrt(slab.per_cell)

    inner = envelope(pose.to_image(slab.points.rest, heart.size_mm), amplitude, grid)[40:-40, 40:-40]

    # mean over standard deviation of a Rayleigh distribution is 1.91 (Goodman)
    assert inner.mean() / inner.std() == pytest.approx(1.91, abs=0.15)
    assert np.mean(inner**2) == pytest.approx(1.0, rel=0.15)


def test_noise_has_the_statistics_of_speckle_and_unit_power(clean_probe):
    noise = np.abs(PolarGrid(clean_probe()).noise(np.random.default_rng(0)))[30:-30]

    assert noise.mean() / noise.std() == pytest.approx(1.91, abs=0.08)
    assert np.mean(noise**2) == pytest.approx(1.0, rel=0.1)


def test_beam_is_narrowest_at_the_focus(clean_probe):
    grid = PolarGrid(clean_probe())

    widths = grid.lateral_sigmas

    assert abs(grid.depths_mm[np.argmin(widths)] - 70.0) < 2
    assert widths[5] > 1.4 * widths.min()


def test_point_target_appears_where_it_is_with_the_width_of_the_beam(clean_probe):
    grid = PolarGrid(clean_probe())

    echo = np.abs(grid.blur(grid.accumulate(*np.array([[70.0], [0.1], [1.0]], np.float32))))

    row, column = np.unravel_index(np.argmax(echo), echo.shape)
    assert grid.depths_mm[row] == pytest.approx(70.0, abs=grid.depth_step_mm)
    assert grid.angles_rad[column] == pytest.approx(0.1, abs=grid.beam_step_rad)
    assert np.sum(echo[row] > 0.5 * echo.max()) * grid.beam_step_rad == pytest.approx(0.028, rel=0.35)
    assert np.sum(echo[:, column] > 0.5 * echo.max()) * grid.depth_step_mm == pytest.approx(0.8, rel=0.35)


@pytest.mark.heavy
def test_speckle_follows_the_wall(heart, clean_probe):
    """The lateral wall's speckle at a later phase, looked up where its points went, is still the same speckle."""
    rng = np.random.default_rng(3)
    grid = PolarGrid(clean_probe())
    pose = standard_pose(heart, View.A4C)
    phase = 0.4 * end_systole_phase(heart)
    slab = sample_slab(heart, [(0.0, pose), (phase, pose)], grid, rng)
    tissue = heart_scatterers(heart, pose, slab, rng)
    x, y, z = tissue.points.rest.T
    septal = (np.abs(x) < 0.12) & (np.abs(y) < 0.05) & (z > 0.15) & (z < 0.9)

    pictures, places = [], []
    for moment in (0.0, phase):
        image = pose.to_image(tissue.points.at(heart, moment), heart.size_mm)
        pictures.append(envelope(image, tissue.amplitude, grid))
        rows, columns = grid.cells(np.hypot(image[:, 0], image[:, 1]), np.arctan2(image[:, 1], image[:, 0]))
        places.append((np.rint(rows[septal]).astype(int), np.rint(columns[septal]).astype(int)))
    moved_mm = np.median(np.abs(places[1][0] - places[0][0])) * grid.depth_step_mm
    tracked = np.corrcoef(pictures[0][places[0]], pictures[1][places[1]])[0, 1]
    untracked = np.corrcoef(pictures[0][places[0]], pictures[1][places[0]])[0, 1]

    assert moved_mm > grid.probe.axial_fwhm_mm
    assert tracked > 0.5
    assert untracked < 0.25
