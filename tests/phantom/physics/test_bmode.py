# SPDX-License-Identifier: Apache-2.0
import hashlib
import time
from dataclasses import replace

import numpy as np
import pytest

from echo_plugin.anatomy import PAEDIATRIC, SEPTAL_VIEWS, Defect, Septum, View
from echo_plugin.phantom.bmode import acquire_cine, set_up
from echo_plugin.phantom.bmode import record as record_acquisition
from echo_plugin.phantom.chambers import Tissue, distances, tissue_at
from echo_plugin.phantom.heart import Hole, sample_heart
from echo_plugin.phantom.image_formation import PolarGrid, scan_converter, to_grey
from echo_plugin.phantom.scan_planes import look_at, standard_pose

pytestmark = pytest.mark.heavy


def record(view, seed, frames=2, defect=None):
    rng = np.random.default_rng(seed)
    return acquire_cine(sample_heart(rng, defect=defect), view, rng, frames=frames)


@pytest.mark.parametrize("view", PAEDIATRIC)
def test_every_view_gives_a_cine_with_its_facts(view):
    cine = record(view, 21)

    assert cine.pixels.dtype == np.uint8
    assert cine.pixels.shape[0] == 2
    assert cine.view is view
    assert cine.region.is_calibrated
    assert cine.pixels.max() > 20
    region = cine.region
    outside = np.ones(cine.pixels.shape[1:], bool)
    outside[int(region.y1) : int(region.y2), int(region.x1) : int(region.x2)] = False
    assert cine.pixels[:, outside].max(initial=0) == 0
    for fact in ("age_days", "gain_db", "dynamic_range_db", "depth_mm", "frequency_mhz", "sector_angle_deg"):
        assert np.isfinite(cine.facts[fact])
    assert 0 <= cine.facts["septal_dropout"] <= 1
    assert 0 <= cine.facts["image_quality"] <= 1


def test_same_seed_gives_the_same_bytes_and_another_seed_others():
    first, again, other = (record(View.A4C, seed, frames=3) for seed in (4, 4, 5))

    digests = [hashlib.sha256(c.pixels.tobytes()).hexdigest() for c in (first, again, other)]
    assert digests[0] == digests[1] != digests[2]
    assert first.boxes == again.boxes
    assert first.facts == again.facts


def test_view_without_a_plane_is_refused():
    with pytest.raises(ValueError, match="SC-IVC has no phantom"):
        record(View.SUBCOSTAL_IVC, 0)


def test_cine_without_frames_is_refused():
    with pytest.raises(ValueError, match="0 frames"):
        record(View.A4C, 0, frames=0)


def test_phases_advance_with_the_heart_rate():
    cine = record(View.A4C, 6, frames=6)

    steps = np.diff(cine.phases) % 1.0

    np.testing.assert_allclose(steps, cine.frame_time_ms * cine.heart_rate_bpm / 60_000, atol=1e-9)


def test_pictures_move_with_the_beat():
    cine = record(View.A4C, 7, frames=6)

    changes = np.abs(np.diff(cine.pixels.astype(int), axis=0)).mean(axis=(1, 2))

    assert np.all(changes > 0.2)


def test_four_chamber_views_show_both_septa_in_practically_every_frame():
    counts = dict.fromkeys((Septum.INTERATRIAL, Septum.INTERVENTRICULAR), 0)
    for seed in range(10):
        for box in record(View.A4C, 100 + seed, frames=1).boxes:
            counts[box.septum] += 1

    assert min(counts.values()) >= 9


def test_views_without_a_septum_hardly_ever_have_a_box():
    views = [v for v in PAEDIATRIC if not any(v in shown for shown in SEPTAL_VIEWS.values()) and v is not View.OTHER]

    boxed = sum(len(record(view, 0, frames=1).boxes) > 0 for view in views)

    assert boxed <= 0.2 * len(views)


def test_gain_brightens_and_the_grey_of_muscle_is_below_white(clean_probe):
    muscle = np.ones(4, np.float32)

    dim, bright = (to_grey(muscle, clean_probe(gain_db=gain))[0] for gain in (-10.0, 5.0))

    assert 0 < dim < bright < 1


def test_scan_conversion_puts_a_depth_at_its_row(clean_probe):
    probe = clean_probe()
    grid = PolarGrid(probe)
    ring = (np.abs(grid.depths_mm - 60.0) < 1.0).astype(np.float32)[:, None] * np.ones((1, grid.beam_count), np.float32)

    picture = scan_converter(grid).picture(ring)

    rows = np.flatnonzero(picture[:, int(probe.apex_x)] > 120) + 0.5
    assert rows.mean() == pytest.approx(probe.apex_y + 60.0 / probe.mm_per_px, abs=1.0)


def test_blood_is_darker_than_muscle_in_the_picture(heart, clean_probe):
    probe = clean_probe(depth_mm=120.0)
    pose = standard_pose(heart, View.A4C)
    acquisition = set_up(heart, pose, probe, np.random.default_rng(0))

    echo = np.abs(acquisition.echoes(pose, 0.0))
    rows, columns = np.meshgrid(acquisition.grid.depths_mm, acquisition.grid.angles_rad, indexing="ij")
    image = np.stack([rows * np.cos(columns), rows * np.sin(columns), 0 * rows], axis=2).reshape(-1, 3)
    points = pose.to_heart(image.astype(np.float32), heart.size_mm)
    parts = distances(points, heart)
    tissue = tissue_at(points, heart, parts).reshape(echo.shape)
    deep = (parts.blood.reshape(echo.shape) < -0.12) & (tissue == Tissue.BLOOD)

    assert np.median(echo[tissue == Tissue.MYOCARDIUM]) > 8 * np.median(echo[deep])


def test_defect_of_a_cine_is_that_of_its_heart():
    cine = record(View.SUBCOSTAL_4C, 9, defect=Defect.ASD)

    assert cine.defect is Defect.ASD
    assert 3 <= cine.defect_size_mm <= 15
    assert cine.facts["defect_kind"] == "secundum"


@pytest.mark.parametrize(("sweep_rad", "in_plane"), [(0.0, 1.0), (0.35, 0.0)])
def test_defect_is_in_plane_only_where_the_recording_shows_it(heart, clean_probe, sweep_rad, in_plane):
    hole = Hole((0.0, -0.08, -0.46), (1.0, 0.0, 0.0), 0.15, Septum.INTERATRIAL, "secundum")
    holed = replace(heart, defect=Defect.ASD, defect_size_mm=9.9, hole=hole)
    pose = look_at(np.array([0.0, -0.08, 1.6]), np.array(hole.centre), np.array([1.0, 0.0, 0.0]))
    acquisition = set_up(holed, pose, clean_probe(), np.random.default_rng(0), sweep_rad=sweep_rad)

    cine = record_acquisition(acquisition, View.OTHER, "sweep", np.random.default_rng(0), 1)

    assert cine.facts["defect_in_plane"] == in_plane


def test_fifteen_frames_of_300_px_are_made_in_a_second_by_one_core(heart, clean_probe):
    acquisition = set_up(heart, standard_pose(heart, View.A4C), clean_probe(), np.random.default_rng(0))

    begin = time.process_time()
    record_acquisition(acquisition, View.A4C, "standard", np.random.default_rng(0), 8)

    assert 8 / (time.process_time() - begin) > 15
