# SPDX-License-Identifier: Apache-2.0
"""Every kind of label error lowers the quality of its frame; a label that the detector or a person confirms is good.

A label that a person looked at again and submitted as it was is confirmed; any change is none.
"""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from cleanlab.object_detection.rank import get_label_quality_scores
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from echo_plugin.acquisition.label_quality import KINDS, WORDS, Confirmed, is_same_label, label_quality, match_boxes
from echo_plugin.acquisition.uncertainty import Calibration, calibrate
from echo_plugin.anatomy import Septum, View
from echo_plugin.annotations import Annotation, SeptalBox
from echo_plugin.io.markups import boxes_from_markups, boxes_to_markups
from echo_plugin.io.study_folder import StudyFolder
from echo_plugin.io.volume import rendition_geometry
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
    assert match_boxes([drawn], [SEEN_BESIDE]) == pytest.approx(both, nan_ok=True)
    assert match_boxes([weak], [SEEN_BESIDE]) == pytest.approx(both[1:])


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

    judged = match_boxes(labels, answers)

    assert judged == pytest.approx(np.array([[0, 0.8, 1.0], [1, 0, 0], [0, 0.6, np.nan], [1, 0, 0]]), nan_ok=True)


def test_false_alarms_on_frames_without_the_septum_make_scores_less_likely_right():
    """Of 100 detections of 0.7 on a septum all are right; on 100 frames without it there is one of 0.7 too."""
    rng = np.random.default_rng(0)
    found = [boxes((IAS, 0), scores=s) for s in np.clip(rng.normal(0.7, 0.1, 100), 0.05, 0.95)]
    missed = [boxes((SHIFTED, 0), scores=s) for s in np.clip(rng.normal(0.2, 0.1, 20), 0.05, 0.95)]
    present, absent = [boxes((IAS, 0))] * 120, [boxes()] * 100

    alone = calibrate(0.5, [match_boxes(present, found + missed)])
    alarmed = calibrate(0.5, [match_boxes(present + absent, found + missed + found)])

    score = np.array([0.7])
    assert alone.probabilities(score) > 0.9
    assert alarmed.probabilities(score) == pytest.approx(0.5, abs=0.1)
    assert alarmed.difficulties == alone.difficulties
    assert [c.fitted_to for c in (alone, alarmed, calibrate(0.5, [match_boxes(present[:100], found)]))] == [120, 220, 0]


BOXES = tuple(
    SeptalBox(frame, 3.3 + frame, 4.7, 12.123, 15.9, septum)
    for frame in (0, 2)
    for septum in (Septum.INTERATRIAL, Septum.INTERVENTRICULAR)
)
LABEL = Annotation("c0.png", BOXES, (0, 1, 2), View.A4C, author="r0", revision=3)
MOVED = replace(BOXES[1], x2=12.2)
STILL = replace(LABEL, boxes=BOXES[:2], annotated_frames=(0,))


@given(st.permutations(BOXES), st.sampled_from([None, "r1"]), st.integers(1, 9))
def test_order_author_and_revision_say_nothing(boxes, author, revision):
    assert is_same_label(LABEL, replace(LABEL, boxes=tuple(boxes), author=author, revision=revision))


@pytest.mark.parametrize(
    "change",
    [
        {"boxes": BOXES[1:]},
        {"boxes": (BOXES[0], MOVED, *BOXES[2:])},
        {"boxes": (replace(BOXES[0], septum=Septum.UNSPECIFIED), *BOXES[1:])},
        {"annotated_frames": (0, 2)},
        {"view": None},
        {"is_unusable": True},
    ],
)
def test_every_change_is_one(change):
    assert not is_same_label(LABEL, replace(LABEL, **change))


@pytest.fixture
def studies(tmp_path) -> StudyFolder:
    Image.new("L", (40, 40), 60).save(tmp_path / "c0.png")
    return StudyFolder(tmp_path)


def test_what_3d_slicer_sends_back_untouched_is_same_label(studies):
    geometry = rendition_geometry(studies.read_cine("c0.png"))

    back = boxes_from_markups(boxes_to_markups(STILL.boxes, geometry), geometry)

    assert is_same_label(STILL, replace(STILL, boxes=tuple(back)))


NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
OTHER = (BOXES[0], MOVED)


def confirmed_each_time(studies, *submissions) -> list[bool]:
    """Return whether the label is confirmed after each of the submissions (author, s after noon, boxes)."""
    is_confirmed, said = Confirmed(studies), []
    for author, seconds, boxes in submissions:
        at = NOON + timedelta(seconds=seconds)
        saved = studies.save_annotation(replace(STILL, boxes=boxes), author=author, now=at)
        said.append(is_confirmed("c0.png", saved.revision))
    return said


def test_a_label_is_confirmed_by_a_later_submission_of_the_same_and_only_while_that_is_current(studies):
    times = [("r1", 100 * n, boxes) for n, boxes in enumerate((STILL.boxes, STILL.boxes, OTHER, STILL.boxes))]

    assert confirmed_each_time(studies, *times) == [False, True, False, False]
    assert Confirmed(studies)("c0.png", 2)


def test_submit_pressed_twice_confirms_nothing_nor_undoes_a_confirmation(studies):
    same = STILL.boxes
    presses = [("r1", seconds, same) for seconds in (0, 1, 59, 59 + 60, 59 + 61)]

    assert confirmed_each_time(studies, *presses) == [False, False, False, True, True]


def test_another_person_who_submits_the_same_confirms_it_at_once(studies):
    assert confirmed_each_time(studies, ("r1", 0, STILL.boxes), ("r2", 5, STILL.boxes)) == [False, True]


def test_a_label_without_a_time_was_not_submitted_twice(studies):
    studies.save_annotation(STILL, author="r1", now=NOON)
    path = studies.root / "annotations" / "c0.png.json"
    document = json.loads(path.read_text())
    del document["saved_at"]
    path.write_text(json.dumps(document))

    assert confirmed_each_time(studies, ("r1", 1, STILL.boxes)) == [True]


def test_a_history_that_cannot_be_read_confirms_nothing(studies):
    for author in ("r1", "r2"):
        studies.save_annotation(STILL, author=author)
    (studies.root / "annotations" / "history" / "c0.png" / "1.json").write_text("{")

    assert not Confirmed(studies)("c0.png", 2)
