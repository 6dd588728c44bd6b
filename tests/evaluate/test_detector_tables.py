# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from echo_plugin.evaluate.detector import COLUMNS, MeasuredFrames, tables_of_groups
from echo_plugin.measure.boxes import FrameBoxes, constant_boxes, detection_metrics
from echo_plugin.measure.classes import Cohort

UNKNOWN = {"view": None, "age_years": None, "image_quality": None}


def _frames(mm_per_px, count=12):
    rng = np.random.default_rng(3)
    corners = rng.uniform(0, 60, (count, 2))
    true = np.concatenate([corners, corners + 30], axis=1)
    found = true + rng.normal(0, 3, true.shape)
    label = np.zeros(1, dtype=int)
    truths = [FrameBoxes(box[None], label, np.ones(1), mm_per_px) for box in true]
    answers = [FrameBoxes(box[None], label, rng.random(1)) for box in found]
    cohort = Cohort(tuple(f"p{i % 4}" for i in range(count)), "test")
    return MeasuredFrames(cohort, tuple(answers), tuple(truths), constant_boxes(truths))


def _rows(frames, facts):
    by_view, *_ = tables_of_groups(frames, facts)
    return {row[0]: dict(zip(COLUMNS, row, strict=True)) for row in by_view["rows"]}


@pytest.mark.heavy
def test_a_group_has_the_figures_of_its_frames_with_patients_and_intervals():
    frames = _frames((0.5, 0.5))
    views = ["A4C" if i % 4 < 3 else "A2C" for i in range(12)]

    rows = _rows(frames, [UNKNOWN | {"view": view} for view in views])

    only = frames.only(np.array([view == "A4C" for view in views]))
    whole = detection_metrics(only.cohort, only.answers, only.truths, frames.medians)
    row, precision, distance = rows["A4C"], whole["AP50"], whole["centre distance mm interatrial"]
    assert (row["frames"], row["patients"]) == ("9", "3")
    assert row["AP"] == f"{whole['AP'].value:.3f}"
    assert row["AP50"] == f"{precision.value:.3f} [{precision.low:.3f}, {precision.high:.3f}]"
    assert row["constant answer's AP50"] == f"{precision.baseline:.3f}"
    assert row["centre distance interatrial"] == f"{distance.value:.1f} [{distance.low:.1f}, {distance.high:.1f}] mm"
    assert row["AP50 (boxes) interventricular"] == row["centre distance interventricular"] == "–"
    assert rows["A2C"]["patients"] == "1"
    assert "[" not in rows["A2C"]["AP50"]


def test_distances_are_in_px_where_no_pixel_has_a_known_size():
    rows = _rows(_frames(None), [UNKNOWN | {"view": "A4C"}] * 12)

    assert rows["A4C"]["centre distance interatrial"].endswith("] px")


def test_a_group_without_a_septum_says_so():
    nothing = FrameBoxes(np.zeros((0, 4)), np.zeros(0, dtype=int), np.zeros(0))
    frames = MeasuredFrames(Cohort(("a",), "test"), (nothing,), (nothing,), None)

    row = _rows(frames, [UNKNOWN | {"view": "SSN"}])["SSN"]

    assert row["AP"] == "no septum"
    assert set(list(row.values())[4:]) == {"–"}


@pytest.mark.parametrize("age", [None, 3.0])
def test_what_is_not_known_of_the_cines_makes_no_rows_and_is_said(age):
    _, by_age, by_quality = tables_of_groups(_frames(None), [UNKNOWN | {"age_years": age}] * 12)

    assert bool(by_age["rows"]) is (age is not None)
    assert by_quality["note"].startswith("Not known of these cines")
