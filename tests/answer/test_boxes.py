# SPDX-License-Identifier: Apache-2.0
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echo_plugin.anatomy import Septum
from echo_plugin.annotations import SeptalBox
from echo_plugin.answer.boxes import (
    CORNER_REACH,
    FADING,
    SCORE_REACH,
    Course,
    TrackOptions,
    _averaged,
    choose_frames,
    link_boxes,
    weigh_boxes,
)
from echo_plugin.measure.boxes import average_precision, match_detections

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
    assert 0.2 < linked[3].score < 0.3


def test_short_gap_is_bridged_on_the_line_between() -> None:
    linked = link_boxes([box(0, 50.0, 0.8), box(4, 58.0, 0.4)], range(5), TrackOptions(operating_score=0.1))

    assert [b.x1 for b in linked] == pytest.approx([50, 52, 54, 56, 58])
    assert linked[1].score == linked[2].score == linked[3].score == pytest.approx(0.5 * linked[4].score)
    assert linked[4].score < linked[0].score < 0.8


def test_long_gap_is_left_open() -> None:
    linked = link_boxes([box(i, 50.0 + 150 * (i > 5)) for i in (0, 1, 2, 9, 10, 11)], range(12))

    assert [b.frame_index for b in linked] == [0, 1, 2, 9, 10, 11]


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


def test_a_moving_wall_keeps_its_place_and_its_size() -> None:
    moving = [SeptalBox(i, 50 + 6.0 * i, 100, 90 + 6.0 * i, 200, VENTRICULAR, 0.8) for i in range(9)]

    weighed = weigh_boxes(moving, range(9))

    assert [b.x2 - b.x1 for b in weighed] == pytest.approx([40.0] * 9)
    assert [b.x1 for b in weighed[2:-2]] == pytest.approx([50 + 6.0 * i for i in range(2, 7)])
    assert [b.score for b in weighed] == pytest.approx([0.8] * 9)


def test_a_box_that_its_neighbours_confirm_gains_on_one_that_stands_alone() -> None:
    steady, alone = [box(i, 50.0, 0.5) for i in range(9)], box(4, 300.0, 0.7)

    weighed = [b for b in weigh_boxes([*steady, alone], range(9)) if b.frame_index == 4]

    assert [b.x1 for b in weighed] == pytest.approx([50, 300])
    assert weighed[0].score == pytest.approx(0.5)
    assert 0 < weighed[1].score < 0.2


def test_a_course_is_not_led_away_by_weak_boxes_beside_it() -> None:
    steady = [box(i, 50.0, 0.3 + 0.02 * i) for i in range(20)]
    leading_away = [box(i, 50.0 + 4 * i, 0.1) for i in range(20)] + [box(i, 62.0, 0.12) for i in range(20)]

    linked = link_boxes([*leading_away, *steady], range(20))

    assert len(linked) == 20
    assert all(abs(b.x1 - 50) < 1e-6 for b in linked)


def test_every_weak_box_is_kept_for_the_precision_recall_curve() -> None:
    weak = [box(i, 50.0, 0.06) for i in range(3)] + [box(2, 300.0, 0.9)]

    weighed = weigh_boxes(weak, range(3))

    assert [(b.frame_index, round(b.x1)) for b in weighed] == [(0, 50), (1, 50), (2, 300), (2, 50)]
    assert link_boxes([], range(3)) == weigh_boxes([], range(3)) == ()


@pytest.mark.heavy
@given(st.integers(0, 10_000), st.integers(1, 12))
def test_weighing_loses_no_box_and_depends_on_no_order(seed: int, frames: int) -> None:
    rng = np.random.default_rng(seed)
    given_boxes = [
        box(int(rng.integers(frames)), float(rng.uniform(0, 400)), float(rng.uniform(0.01, 1)), septum)
        for septum in (VENTRICULAR, ATRIAL)
        for _ in range(int(rng.integers(0, 12)))
    ]

    weighed = weigh_boxes(given_boxes, range(frames))
    shown = link_boxes(given_boxes, range(frames))

    assert len(weighed) >= len(given_boxes)
    assert weigh_boxes(given_boxes[::-1], range(frames)) == weighed
    assert all(0 < b.score <= 1 and b.frame_index < frames for b in weighed)
    assert len({(b.frame_index, b.septum) for b in shown}) == len(shown)


def test_linking_raises_the_average_precision_of_a_detector_that_flickers() -> None:
    rng = np.random.default_rng(3)
    gains = []
    for _ in range(5):
        truth = [np.array([[50.0 + 20 * np.sin(i / 4), 100, 90 + 20 * np.sin(i / 4), 200]]) for i in range(24)]
        seen = [box(i, t[0, 0] + rng.normal(0, 6), rng.uniform(0.1, 0.9)) for i, t in enumerate(truth) if i % 7]
        seen += [box(int(rng.integers(24)), float(rng.uniform(0, 400)), rng.uniform(0.1, 0.9)) for _ in range(30)]
        precisions = []
        for boxes in (seen, weigh_boxes(seen, range(24))):
            found = [[b for b in boxes if b.frame_index == i] for i in range(24)]
            rows = [(np.array([b.xyxy for b in f]).reshape(-1, 4), np.array([b.score for b in f])) for f in found]
            precisions.append(average_precision(match_detections(rows, truth, iou=0.5), np.ones((1, 24)))[0])
        gains.append(precisions[1] - precisions[0])

    assert min(gains) > 0.05


def test_frames_for_the_defect_are_the_best_of_each_part() -> None:
    boxes = {i: [box(i, 0.0, score=0.9 if i % 5 == 2 else 0.5)] for i in range(20)}

    assert list(choose_frames(boxes, range(20), 4)) == [2, 7, 12, 17]


def test_frames_are_evenly_spread_when_there_is_no_box() -> None:
    assert choose_frames({}, range(8), 4) == {1: (), 3: (), 5: (), 7: ()}
    assert choose_frames({}, [6], 4) == {6: ()}


def _averaged_densely(course: Course, looked_at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scores and corners by the formula: every frame against every other."""

    def fading(others: np.ndarray, reach: int) -> np.ndarray:
        apart = np.abs(course.frames[:, None] - others[None, :])
        return np.where(apart <= reach, FADING**apart, 0.0)

    scores = fading(course.frames, SCORE_REACH) @ course.scores / fading(looked_at, SCORE_REACH).sum(axis=1)
    weights = fading(course.frames, CORNER_REACH) * np.maximum(course.scores, 1e-6)
    return scores, weights @ course.corners / weights.sum(axis=1, keepdims=True)


@given(frames=st.sets(st.integers(0, 40), min_size=1), others=st.sets(st.integers(0, 40)), seed=st.integers(0, 99))
def test_a_course_is_averaged_over_its_neighbours_as_the_formula_says(
    frames: set[int], others: set[int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    course = Course(VENTRICULAR, np.array(sorted(frames)), rng.random((len(frames), 4)), rng.random(len(frames)))
    looked_at = np.array(sorted(frames | others))

    averaged = _averaged(course, looked_at)

    scores, corners = _averaged_densely(course, looked_at)
    np.testing.assert_allclose(averaged.scores, scores, rtol=1e-12)
    np.testing.assert_allclose(averaged.corners, corners, rtol=1e-12)


def test_memory_grows_with_the_frames_and_not_with_their_square() -> None:
    frames = np.arange(4000)
    course = Course(VENTRICULAR, frames, np.ones((4000, 4)), np.ones(4000))

    tracemalloc.start()
    _averaged(course, frames)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert most < 200 * 8 * len(frames)  # bytes; one square of them is 128 MB
