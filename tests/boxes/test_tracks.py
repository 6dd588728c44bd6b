# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from echo_plugin.anatomy import Septum
from echo_plugin.annotations import SeptalBox
from echo_plugin.boxes.tracks import TrackOptions, choose_frames, link_boxes

VENTRICULAR, ATRIAL = Septum.INTERVENTRICULAR, Septum.INTERATRIAL


def box(frame_index: int, x: float, score: float = 0.8, septum: Septum = VENTRICULAR) -> SeptalBox:
    return SeptalBox(frame_index, x, 100.0, x + 40, 200.0, septum, score)


def test_jump_to_a_strong_box_elsewhere_is_refused() -> None:
    steady = [box(i, 50.0 + i, 0.6) for i in range(7)]

    linked = link_boxes([*steady, box(3, 300.0, 0.99)], range(7))

    assert [b.frame_index for b in linked] == list(range(7))
    assert max(b.x1 for b in linked) < 60


def test_jump_is_bridged_when_the_true_box_is_missing() -> None:
    steady = [box(i, 50.0, 0.6) for i in range(7) if i != 3]

    linked = link_boxes([*steady, box(3, 300.0, 0.99)], range(7))

    assert linked[3].x1 == pytest.approx(50)
    assert linked[3].score == pytest.approx(0.3)


def test_short_gap_is_bridged_on_the_line_between() -> None:
    linked = link_boxes([box(0, 50.0, 0.8), box(4, 58.0, 0.4)], range(5))

    assert [b.x1 for b in linked] == pytest.approx([50, 52, 54, 56, 58])
    assert [b.score for b in linked] == pytest.approx([0.8, 0.2, 0.2, 0.2, 0.4])


def test_long_gap_is_left_open() -> None:
    linked = link_boxes([box(0, 50.0), box(1, 50.0), box(9, 200.0), box(10, 200.0)], range(11))

    assert [b.frame_index for b in linked] == [0, 1, 9, 10]


def test_bridges_are_built_on_asked_frames_only() -> None:
    linked = link_boxes([box(0, 50.0), box(4, 58.0)], [0, 2, 4])

    assert [b.frame_index for b in linked] == [0, 2, 4]


def test_corners_are_steadied_by_their_neighbours() -> None:
    rng = np.random.default_rng(0)
    jitter = rng.normal(0, 2, 40)

    linked = link_boxes([box(i, 50.0 + jitter[i]) for i in range(40)], range(40))

    assert np.std([b.x1 for b in linked]) < 0.75 * np.std(jitter)


def test_weak_stretches_are_dropped() -> None:
    assert link_boxes([box(i, 50.0, 0.2) for i in range(9)], range(9)) == ()
    assert len(link_boxes([box(i, 50.0, 0.2) for i in range(9)], range(9), TrackOptions(operating_score=0.1))) == 9


def test_septa_do_not_disturb_one_another_and_order_of_candidates_does_not_matter() -> None:
    candidates = [box(i, 50.0) for i in range(4)] + [box(i, 90.0, septum=ATRIAL) for i in range(4)]

    linked = link_boxes(candidates, range(4))

    assert [(b.frame_index, b.septum) for b in linked] == [(i, s) for i in range(4) for s in (ATRIAL, VENTRICULAR)]
    assert link_boxes(candidates[::-1], range(4)) == linked


def test_single_frame_keeps_its_best_box() -> None:
    assert link_boxes([box(5, 10.0, 0.5), box(5, 90.0, 0.9)], [5]) == (box(5, 90.0, 0.9),)


def test_no_candidates_give_no_boxes() -> None:
    assert link_boxes([], range(3)) == ()


def test_frames_for_the_defect_are_the_best_of_each_part() -> None:
    boxes = {i: [box(i, 0.0, score=0.9 if i % 5 == 2 else 0.5)] for i in range(20)}

    assert list(choose_frames(boxes, range(20), 4)) == [2, 7, 12, 17]


def test_frames_are_evenly_spread_when_there_is_no_box() -> None:
    assert choose_frames({}, range(8), 4) == {1: (), 3: (), 5: (), 7: ()}
    assert choose_frames({}, [6], 4) == {6: ()}
