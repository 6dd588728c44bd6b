# SPDX-License-Identifier: Apache-2.0
"""A label that a person looked at again and submitted as it was is confirmed; any change is none."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from echo_plugin.acquisition.label_quality import Confirmed, says_the_same
from echo_plugin.anatomy import Septum, View
from echo_plugin.annotations import Annotation, SeptalBox
from echo_plugin.io.markups import boxes_from_markups, boxes_to_markups
from echo_plugin.io.study_folder import StudyFolder
from echo_plugin.io.volume import rendition_geometry

BOXES = tuple(
    SeptalBox(frame, 3.3 + frame, 4.7, 12.123, 15.9, septum)
    for frame in (0, 2)
    for septum in (Septum.INTERATRIAL, Septum.INTERVENTRICULAR)
)
SAID = Annotation("c0.png", BOXES, (0, 1, 2), View.A4C, author="r0", revision=3)
MOVED = replace(BOXES[1], x2=12.2)
STILL = replace(SAID, boxes=BOXES[:2], annotated_frames=(0,))


@given(st.permutations(BOXES), st.sampled_from([None, "r1"]), st.integers(1, 9))
def test_order_author_and_revision_say_nothing(boxes, author, revision):
    assert says_the_same(SAID, replace(SAID, boxes=tuple(boxes), author=author, revision=revision))


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
    assert not says_the_same(SAID, replace(SAID, **change))


@pytest.fixture
def studies(tmp_path) -> StudyFolder:
    Image.new("L", (40, 40), 60).save(tmp_path / "c0.png")
    return StudyFolder(tmp_path)


def test_what_3d_slicer_sends_back_untouched_says_the_same(studies):
    geometry = rendition_geometry(studies.read_cine("c0.png"))

    back = boxes_from_markups(boxes_to_markups(STILL.boxes, geometry), geometry)

    assert says_the_same(STILL, replace(STILL, boxes=tuple(back)))


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
