# SPDX-License-Identifier: Apache-2.0
"""Every kind of label error lowers the quality of its frame, and a label that the detector confirms is good."""

from dataclasses import replace

import numpy as np
import pytest
from cleanlab.object_detection.rank import get_label_quality_scores

from echo_plugin.acquisition.label_quality import KINDS, WORDS, judged_boxes, label_quality
from echo_plugin.acquisition.uncertainty import Calibration, calibrate
from echo_plugin.measure.boxes import FrameBoxes

IAS, IVS = [20.0, 20, 60, 90], [70.0, 90, 120, 170]


def boxes(*labelled: tuple[list[float], int], scores: float = 1.0) -> FrameBoxes:
    corners = np.array([box for box, _ in labelled], dtype=float).reshape(-1, 4)
    return FrameBoxes(corners, np.array([k for _, k in labelled], dtype=int), np.full(len(labelled), scores))


SEEN = boxes((IAS, 0), (IVS, 1), scores=0.97)
SHIFTED = [50.0, 60, 90, 130]


@pytest.mark.parametrize(
    ("label", "kind"),
    [
        (boxes((IAS, 0)), "overlooked"),
        (boxes((IAS, 0), ([95.0, 140, 145, 220], 1)), "badly located"),
        (boxes((IAS, 1), (IVS, 0)), "swapped"),
    ],
)
def test_an_error_is_doubted_and_named(label, kind):
    quality = label_quality([label, boxes((IAS, 0), (IVS, 1))], [SEEN, SEEN], Calibration())

    assert quality.by_kind[kind][0] < 0.35
    assert quality.overall[0] < 0.35
    assert quality.overall[1] > 0.9
    if kind == "overlooked":
        assert quality.doubts(0) == WORDS[kind]


def test_a_box_where_the_detector_sees_nothing_is_doubted():
    quality = label_quality([boxes((IAS, 0)), boxes()], [boxes(), boxes()], Calibration())

    assert quality.by_kind["unsupported"][0] == pytest.approx(0, abs=1e-6)
    assert quality.doubts(0) == WORDS["unsupported"]
    assert quality.overall[1] == 1.0


def test_a_septum_without_a_box_is_doubtful_as_far_as_one_is_seen():
    answers = [boxes((IAS, 0), scores=score) for score in (0.2, 0.5, 0.7)]

    quality = label_quality([boxes()] * 3, answers, Calibration())

    assert quality.overall == pytest.approx([0.8, 0.5, 0.3])


SEEN_BESIDE = FrameBoxes(np.array([IAS, IVS]), np.array([0, 1]), np.array([0.9, 0.97]))


def test_a_septum_that_nobody_looked_for_is_neither_missing_nor_a_false_alarm():
    drawn = boxes((IVS, 1))
    weak = replace(drawn, unsought=(0,))

    by_person, by_import = (label_quality([label], [SEEN_BESIDE], Calibration()) for label in (drawn, weak))

    assert by_person.overall == pytest.approx([0.1], abs=0.01)
    assert by_import.overall[0] > 0.9
    both = np.array([[0, 0.9, np.nan], [1, 0.97, 1]])
    assert judged_boxes([drawn], [SEEN_BESIDE]) == pytest.approx(both, nan_ok=True)
    assert judged_boxes([weak], [SEEN_BESIDE]) == pytest.approx(both[1:])


def test_where_objectlab_and_we_see_the_same_error_the_order_is_the_same():
    labels = [boxes((IAS, 0), (IVS, 1)), boxes((SHIFTED, 0), (IVS, 1)), boxes((IAS, 1), (IVS, 0))]
    theirs = get_label_quality_scores(
        [{"bboxes": label.boxes, "labels": label.labels} for label in labels],
        [[np.column_stack(SEEN.of(k)) for k in (0, 1)]] * 3,
        verbose=False,
    )

    ours = label_quality(labels, [SEEN] * 3, Calibration()).overall

    assert theirs[0] > max(theirs[1:])
    assert ours[0] > max(ours[1:])


def test_no_frames_have_no_quality():
    quality = label_quality([], [], Calibration())

    assert [len(quality.by_kind[kind]) for kind in KINDS] == [0] * 4


def test_septa_are_paired_with_their_best_detection_and_false_alarms_have_no_overlap():
    labels = [boxes((IAS, 0), (IVS, 1)), boxes((IVS, 1)), boxes()]
    answers = [boxes((IAS, 0), (SHIFTED, 0), scores=0.8), boxes((IAS, 0), scores=0.6), boxes()]

    judged = judged_boxes(labels, answers)

    assert judged == pytest.approx(np.array([[0, 0.8, 1.0], [1, 0, 0], [0, 0.6, np.nan], [1, 0, 0]]), nan_ok=True)


def test_false_alarms_on_frames_without_the_septum_make_scores_less_likely_right():
    """Of 100 detections of 0.7 on a septum all are right; on 100 frames without it there is one of 0.7 too."""
    rng = np.random.default_rng(0)
    found = [boxes((IAS, 0), scores=s) for s in np.clip(rng.normal(0.7, 0.1, 100), 0.05, 0.95)]
    missed = [boxes((SHIFTED, 0), scores=s) for s in np.clip(rng.normal(0.2, 0.1, 20), 0.05, 0.95)]
    present, absent = [boxes((IAS, 0))] * 120, [boxes()] * 100

    alone = calibrate(0.5, judged_boxes(present, found + missed))
    alarmed = calibrate(0.5, judged_boxes(present + absent, found + missed + found))

    score = np.array([0.7])
    assert alone.probabilities(score) > 0.9
    assert alarmed.probabilities(score) == pytest.approx(0.5, abs=0.1)
    assert alarmed.difficulties == alone.difficulties
    assert [c.fitted_to for c in (alone, alarmed, calibrate(0.5, judged_boxes(present[:100], found)))] == [120, 220, 0]
