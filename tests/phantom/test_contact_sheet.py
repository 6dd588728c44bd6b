# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from PIL import Image

from echo_plugin.anatomy import Septum
from echo_plugin.cine import Cine, FramesInMemory
from echo_plugin.phantom.contact_sheet import SEPTUM_RGB, frames_through_the_beat, write_contact_sheet


def test_frames_are_taken_at_equal_phases():
    phases = np.array([0.9, 0.02, 0.26, 0.49, 0.77, 0.97])

    assert frames_through_the_beat(phases, 4) == [1, 2, 3, 4]


def test_each_cine_is_a_row_with_a_frame_for_each_phase(fan_cine, tmp_path):
    write_contact_sheet([fan_cine], tmp_path / "one.png", phases=3)
    write_contact_sheet([fan_cine, fan_cine], tmp_path / "two.png", phases=3)

    one, two = Image.open(tmp_path / "one.png"), Image.open(tmp_path / "two.png")
    assert two.height == 2 * one.height
    assert two.width == one.width > 3 * 320


def test_boxes_are_drawn_in_the_colour_of_their_septum(fan_cine, tmp_path):
    write_contact_sheet([fan_cine], tmp_path / "sheet.png", phases=1)

    drawn = {tuple(colour) for colour in np.array(Image.open(tmp_path / "sheet.png")).reshape(-1, 3)}
    assert {SEPTUM_RGB[Septum.INTERATRIAL], SEPTUM_RGB[Septum.INTERVENTRICULAR]} <= drawn


def test_real_frames_stand_below(fan_cine, tmp_path):
    real = Cine("real", FramesInMemory(np.zeros((5, 24, 32, 1), dtype=np.uint8)))

    write_contact_sheet([fan_cine], tmp_path / "without.png")
    write_contact_sheet([fan_cine], tmp_path / "with.png", real=[real])

    assert Image.open(tmp_path / "with.png").height > Image.open(tmp_path / "without.png").height + 200


def test_an_empty_sheet_is_refused(tmp_path):
    with pytest.raises(ValueError, match="0 cines"):
        write_contact_sheet([], tmp_path / "none.png")
