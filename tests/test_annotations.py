# SPDX-License-Identifier: Apache-2.0
"""Labels that exist are valid; the messages say what is wrong."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echo_plugin.anatomy import Defect, Septum, View
from echo_plugin.annotations import Annotation, DefectPrediction, SeptalBox, ViewPrediction, require_image_id
from echo_plugin.errors import AnnotationError, UnknownImageError

BOX = SeptalBox(2, 1.0, 2.0, 5.0, 9.0, Septum.INTERATRIAL)


@pytest.mark.parametrize(
    "image_id",
    ["", "..", "../x", "a/b", "a\\b", ".hidden", "a..b", "x" * 201, "a\n", "é", "a b", "C:", "nul\0", "-rf", "a."],
)
def test_image_ids_that_could_leave_the_folder_are_refused(image_id: str) -> None:
    with pytest.raises(UnknownImageError, match="malformed"):
        require_image_id(image_id)


@pytest.mark.heavy
@given(st.from_regex(r"[0-9](\.?[0-9]){0,30}", fullmatch=True))
def test_every_dicom_uid_is_an_image_id(uid: str) -> None:
    assert require_image_id(uid) == uid


@pytest.mark.parametrize("corners", [(5, 0, 5, 9), (6, 0, 5, 9), (0, 9, 5, 9), (float("inf"), 0, 5, 9)])
def test_box_without_area_is_refused(corners: tuple[float, float, float, float]) -> None:
    with pytest.raises(AnnotationError, match=r"frame index 3 has corners .* x1 < x2 and y1 < y2"):
        SeptalBox(3, *corners, Septum.INTERATRIAL)


@pytest.mark.parametrize("frame_index", [-1, 1.5, "2"])
def test_box_on_an_impossible_frame_is_refused(frame_index: object) -> None:
    with pytest.raises(AnnotationError, match="0-based whole number"):
        SeptalBox(frame_index, 0, 0, 1, 1, Septum.INTERATRIAL)


@pytest.mark.parametrize("score", [-0.1, 1.1, float("nan")])
def test_score_outside_0_to_1_is_refused(score: float) -> None:
    with pytest.raises(AnnotationError, match="0 to 1 or None"):
        SeptalBox(0, 0, 0, 1, 1, Septum.INTERATRIAL, score)


def test_septum_must_be_a_septum() -> None:
    with pytest.raises(AnnotationError, match="septum 'IAS'"):
        SeptalBox(0, 0, 0, 1, 1, "IAS")


def test_box_on_a_frame_nobody_looked_at_is_refused() -> None:
    with pytest.raises(AnnotationError, match=r"boxes on frames \[2\]"):
        Annotation("1.2", boxes=(BOX,), annotated_frames=(1,))


@pytest.mark.parametrize("frames", [(2, 1), (1, 1), (-1, 2)])
def test_annotated_frames_must_ascend(frames: tuple[int, ...]) -> None:
    with pytest.raises(AnnotationError, match="must ascend"):
        Annotation("1.2", annotated_frames=frames)


@pytest.mark.parametrize("frames", [(1.5,), ("1",), (None,)])
def test_annotated_frames_must_be_whole_numbers(frames: tuple[object, ...]) -> None:
    with pytest.raises(AnnotationError, match="must ascend from 0 as whole numbers"):
        Annotation("1.2", annotated_frames=frames)


@pytest.mark.parametrize(("field", "value"), [("view", "A4C"), ("defect", "ASD")])
def test_view_and_defect_must_be_of_the_vocabulary(field: str, value: str) -> None:
    with pytest.raises(AnnotationError, match=f"{field} is '{value}'"):
        Annotation("1.2", **{field: value})


def test_normal_heart_has_no_size_of_a_defect() -> None:
    with pytest.raises(AnnotationError, match=r"defect_size_mm is 4\.0 with the defect Normal"):
        Annotation("1.2", defect=Defect.NORMAL, defect_size_mm=4.0)


def test_frame_without_box_is_a_negative() -> None:
    annotation = Annotation("1.2", boxes=(BOX,), annotated_frames=(1, 2))

    assert annotation.boxes_on(1) == ()
    assert annotation.boxes_on(2) == (BOX,)


def test_time_without_zone_is_refused() -> None:
    with pytest.raises(AnnotationError, match="no time zone"):
        Annotation("1.2", saved_at=datetime(2026, 1, 1))


@pytest.mark.parametrize("size", [0.0, -3.0, float("nan")])
def test_defect_size_must_be_a_length(size: float) -> None:
    with pytest.raises(AnnotationError, match="defect_size_mm"):
        Annotation("1.2", defect=Defect.ASD, defect_size_mm=size)


def test_annotation_keeps_who_and_when() -> None:
    when = datetime(2026, 1, 1, tzinfo=UTC)

    annotation = Annotation("1.2", view=View.A4C, author="reader-1", saved_at=when, revision=3)

    assert (annotation.author, annotation.saved_at, annotation.revision) == ("reader-1", when, 3)


def test_view_probabilities_must_sum_to_one() -> None:
    with pytest.raises(ValueError, match=r"sum to 0\.9"):
        ViewPrediction(View.A4C, {View.A4C: 0.9}, (0,))


def test_predicted_view_must_have_a_probability() -> None:
    with pytest.raises(ValueError, match="not among its probabilities"):
        ViewPrediction(View.A4C, {View.A2C: 1.0}, (0,))


def test_defect_needs_an_angle_for_each_class() -> None:
    with pytest.raises(ValueError, match="must name the same classes"):
        DefectPrediction(Defect.ASD, {Defect.ASD: 1.0}, {}, (0,))


def test_probability_is_that_of_the_answer() -> None:
    answer = DefectPrediction(
        Defect.ASD, {Defect.ASD: 0.75, Defect.NORMAL: 0.25}, {Defect.ASD: 40.0, Defect.NORMAL: 75.0}, (0, 4)
    )

    assert answer.probability == 0.75


@pytest.mark.parametrize("angle_deg", [-1.0, 181.0, float("nan")])
def test_angle_beyond_half_a_turn_is_refused(angle_deg: float) -> None:
    with pytest.raises(ValueError, match="0 to 180 degrees are accepted"):
        DefectPrediction(Defect.ASD, {Defect.ASD: 1.0}, {Defect.ASD: angle_deg}, (0,))


@pytest.mark.parametrize("answer", [ViewPrediction, DefectPrediction])
def test_predictions_look_at_frames_that_can_be(answer: type) -> None:
    parts = (
        (View.A4C, {View.A4C: 1.0}) if answer is ViewPrediction else (Defect.ASD, {Defect.ASD: 1.0}, {Defect.ASD: 3})
    )

    with pytest.raises(ValueError, match=r"frame_indices \(-1, 2\)"):
        answer(*parts, (-1, 2))


@pytest.mark.parametrize("defect", [None, Defect.NORMAL])
def test_only_a_defect_can_be_said_to_be_visible(defect: Defect | None) -> None:
    with pytest.raises(AnnotationError, match="is_defect_visible is True without a defect"):
        Annotation("cine", defect=defect, is_defect_visible=True)
