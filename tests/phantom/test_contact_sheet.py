# SPDX-License-Identifier: Apache-2.0
import numpy as np

from echo_plugin.anatomy import Septum
from echo_plugin.annotations import SeptalBox
from echo_plugin.phantom.contact_sheet import SEPTUM_RGB, SheetRow, draw_contact_sheet, frames_through_the_beat


def row_of(count: int, *boxes: SeptalBox) -> SheetRow:
    pictures = tuple(np.full((24, 32, 1), 60, np.uint8) for _ in range(count))
    return SheetRow("A4C", pictures, (boxes,) * count, ("frame",) * count)


def test_frames_are_taken_at_equal_phases():
    phases = np.array([0.9, 0.02, 0.26, 0.49, 0.77, 0.97])

    assert frames_through_the_beat(phases, 4) == [1, 2, 3, 4]


def test_each_cine_is_a_row_with_a_cell_for_each_frame():
    one, two = draw_contact_sheet([row_of(3)]), draw_contact_sheet([row_of(3), row_of(2)])

    assert two.height == 2 * one.height
    assert two.width == one.width > 3 * 320


def test_boxes_are_drawn_in_the_colour_of_their_septum():
    septa = (Septum.INTERATRIAL, Septum.INTERVENTRICULAR)
    boxes = [SeptalBox(0, 4.0 + 10 * n, 4.0, 12.0 + 10 * n, 16.0, septum) for n, septum in enumerate(septa)]

    drawn = {tuple(colour) for colour in np.array(draw_contact_sheet([row_of(1, *boxes)])).reshape(-1, 3)}

    assert {SEPTUM_RGB[septum] for septum in septa} <= drawn
