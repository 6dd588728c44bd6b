# SPDX-License-Identifier: Apache-2.0
"""Every kind of label error lowers the quality of its frame, and a label that the detector confirms is good."""

import numpy as np
import pytest
from cleanlab.object_detection.rank import get_label_quality_scores

from echo_plugin.acquisition.label_quality import KINDS, WORDS, judged_boxes, label_quality
from echo_plugin.acquisition.uncertainty import Calibration
from echo_plugin.boxes.metrics import FrameBoxes

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


def test_true_boxes_are_paired_with_the_best_detection_of_their_septum():
    judged = judged_boxes([boxes((IAS, 0), (IVS, 1))], [boxes((IAS, 0), (SHIFTED, 0), scores=0.8)])

    assert judged == pytest.approx(np.array([[0, 0.8, 1.0], [1, 0, 0]]))
