# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import numpy as np
import pytest

from echo_plugin.phantom.screen import Corner, draw_overlay, ecg_mv, r_wave_times_ms, sample_machine, sector_mask


def machines(count, **changes):
    return [replace(sample_machine(np.random.default_rng(seed)), **changes) for seed in range(count)]


def draw(cine, machine, child):
    return draw_overlay(cine, machine, child, clock="08:05:00", rng=np.random.default_rng(1))


def test_the_sector_keeps_its_pixels_on_every_machine(fan_cine, child):
    lit = fan_cine.pixels.max(axis=0) > 0

    for machine in machines(12):
        pixels = draw(fan_cine, machine, child).pixels

        assert np.array_equal(pixels[:, lit], np.repeat(fan_cine.pixels[:, lit][..., None], 3, axis=2))


def test_something_is_drawn_outside_the_sector_on_every_machine(fan_cine, child):
    outside = ~sector_mask(fan_cine)

    for machine in machines(12, background=(0, 0, 0)):
        assert np.count_nonzero(draw(fan_cine, machine, child).pixels[0, outside]) > 100


def drawn_in_region(cine, machine, child):
    r = cine.region
    rows, columns = slice(int(r.y1), int(r.y2)), slice(int(r.x1), int(r.x2))
    return np.count_nonzero(
        draw(cine, machine, child).pixels[0, rows, columns].max(axis=2) > cine.pixels[0, rows, columns]
    )


def test_only_marks_and_the_ruler_stand_in_the_region_of_most_machines(make_cine, child):
    cine = make_cine(height=480, width=640)

    for machine in machines(12, writes_in_corners=False):
        assert drawn_in_region(cine, machine, child) < 500


def test_a_machine_may_write_its_settings_in_the_corners_of_the_region(make_cine, child):
    cine = make_cine(height=480, width=640)
    wide = replace(cine, region=replace(cine.region, x1=0.0, x2=640.0))
    bare = {"ruler_side": "right", "settings_corner": Corner.TOP_LEFT, "font_px": 12}
    (outside,) = machines(1, writes_in_corners=False, **bare)

    assert (
        drawn_in_region(wide, replace(outside, writes_in_corners=True), child)
        > drawn_in_region(wide, outside, child) + 200
    )


def test_machines_look_different(fan_cine, child):
    pictures = {draw(fan_cine, machine, child).pixels.tobytes() for machine in machines(10)}

    assert len(pictures) == 10


def test_the_same_machine_and_seed_draw_the_same_picture(fan_cine, child):
    (machine,) = machines(1)

    assert np.array_equal(draw(fan_cine, machine, child).pixels, draw(fan_cine, machine, child).pixels)


def test_the_ecg_cursor_moves_from_frame_to_frame(fan_cine, child):
    (machine,) = machines(1, has_ecg=True, has_status_bar=False, background=(0, 0, 0), ecg_window_s=2.0)

    screen = draw(fan_cine, machine, child)

    part = screen.ecg
    strip = screen.pixels[:, part.y1 : part.y2, part.x1 : part.x2]
    full_columns = [np.flatnonzero((frame.max(axis=2) > 0).all(axis=0)) for frame in strip]
    step_px = fan_cine.frame_time_ms / 1000 / screen.ecg_seconds_per_px
    cursors = [int(columns[0]) for columns in full_columns]
    assert np.diff(cursors) == pytest.approx(step_px, abs=1)


def test_a_machine_without_ecg_or_grey_bar_shows_none(fan_cine, child):
    (machine,) = machines(1, has_ecg=False, grey_bar_corner=None)

    screen = draw(fan_cine, machine, child)

    assert screen.ecg is None
    assert screen.grey_bar is None


def test_a_picture_without_room_keeps_only_the_sector(child, make_cine):
    cine = make_cine(height=64, width=64)
    cine = replace(cine, region=replace(cine.region, x1=0.0, y1=0.0, x2=64.0, y2=64.0))

    screen = draw(cine, machines(1)[0], child)

    assert screen.pixels.shape == (4, 64, 64, 3)
    assert screen.ecg is None


def test_a_dark_cine_has_no_sector(fan_cine):
    assert not sector_mask(replace(fan_cine, pixels=np.zeros_like(fan_cine.pixels))).any()


def test_a_dark_flank_and_a_dark_hole_belong_to_the_sector(fan_cine):
    pixels = fan_cine.pixels.copy()
    pixels[:, :, 200:] = 0
    pixels[:, 80:120, 150:160] = 0

    assert np.array_equal(sector_mask(replace(fan_cine, pixels=pixels)), sector_mask(fan_cine))


def test_identity_is_written_whole_or_broken_into_lines(make_cine, child):
    cine = make_cine(height=480, width=640)
    (machine,) = machines(1, background=(0, 0, 0), font_px=16, identity_corner=Corner.TOP_LEFT)

    pixels = draw(cine, machine, child).pixels

    assert not pixels[0, :, -1].any()


def test_the_ecg_peaks_at_phase_zero():
    phases = np.linspace(0, 1, 1001)

    assert int(np.argmax(ecg_mv(phases))) in (0, 1000)


def test_r_waves_are_where_the_phase_wraps(make_cine):
    cine = make_cine(frames=40)  # 25 ms a frame, 120 beats/min, the first frame at phase 0.9

    assert r_wave_times_ms(cine) == pytest.approx([50.0, 550.0])
