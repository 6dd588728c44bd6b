# SPDX-License-Identifier: Apache-2.0
import json
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echo_plugin.anatomy import Defect, Septum, View
from echo_plugin.annotations import Annotation, SeptalBox
from echo_plugin.errors import AnnotationError
from echo_plugin.io.annotation_store import annotation_from_json, annotation_to_json

COORDINATES = st.floats(-1e6, 1e6, allow_nan=False)


@st.composite
def boxes(draw: st.DrawFn) -> SeptalBox:
    x1, x2 = sorted(draw(st.lists(COORDINATES, min_size=2, max_size=2, unique=True)))
    y1, y2 = sorted(draw(st.lists(COORDINATES, min_size=2, max_size=2, unique=True)))
    score = draw(st.none() | st.floats(0, 1))
    return SeptalBox(draw(st.integers(0, 500)), x1, y1, x2, y2, draw(st.sampled_from(Septum)), score)


@st.composite
def annotations(draw: st.DrawFn) -> Annotation:
    drawn = draw(st.lists(boxes(), max_size=6))
    frames = {box.frame_index for box in drawn} | draw(st.sets(st.integers(0, 500), max_size=6))
    defect = draw(st.none() | st.sampled_from(Defect))
    zones = st.just(UTC) | st.integers(-14 * 60, 14 * 60).map(lambda m: timezone(timedelta(minutes=m)))
    return Annotation(
        image_id=draw(st.from_regex(r"\A[0-9A-Za-z_][0-9A-Za-z_%-]{0,30}\Z")),
        boxes=tuple(drawn),
        annotated_frames=tuple(sorted(frames)),
        view=draw(st.none() | st.sampled_from(View)),
        defect=defect,
        defect_size_mm=None if defect is Defect.NORMAL else draw(st.none() | st.floats(0.01, 100)),
        author=draw(st.none() | st.text(max_size=20)),
        saved_at=draw(st.none() | st.datetimes(timezones=zones)),
        revision=draw(st.integers(0, 10**6)),
        is_unusable=draw(st.booleans()),
        is_defect_visible=None if defect in (None, Defect.NORMAL) else draw(st.none() | st.booleans()),
    )


ONE = Annotation(
    image_id="1.2.3",
    boxes=(SeptalBox(7, 10.5, 20, 60, 80.25, Septum.INTERATRIAL), SeptalBox(0, 1, 2, 3, 4, Septum.UNSPECIFIED, 0.5)),
    annotated_frames=(0, 3, 7),
    defect=Defect.ASD,
    saved_at=datetime(2026, 1, 31, 12, tzinfo=UTC),
    revision=3,
)


def changed(**fields: object) -> str:
    return json.dumps(json.loads(annotation_to_json(ONE)) | fields)


def changed_box(**fields: object) -> str:
    document = json.loads(annotation_to_json(ONE))
    document["boxes"][1] |= fields
    return json.dumps(document)


@pytest.mark.heavy
@settings(max_examples=150, deadline=None)
@given(annotations())
def test_annotation_comes_back_equal(annotation: Annotation) -> None:
    assert annotation_from_json(annotation_to_json(annotation)) == annotation


@pytest.mark.heavy
@settings(max_examples=50, deadline=None)
@given(annotations())
def test_reading_and_writing_again_gives_the_same_bytes(annotation: Annotation) -> None:
    text = annotation_to_json(annotation)

    assert annotation_to_json(annotation_from_json(text)) == text


def test_keys_stand_in_a_fixed_order() -> None:
    document = json.loads(annotation_to_json(ONE))

    assert list(document) == [
        "schema", "version", "image_id", "revision", "author", "saved_at",
        "view", "defect", "defect_size_mm", "annotated_frames", "boxes",
    ]  # fmt: skip
    assert list(document["boxes"][0]) == ["frame_index", "x1", "y1", "x2", "y2", "septum", "score"]
    assert (document["schema"], document["version"]) == ("monailabel-echo/annotation", 1)


def test_numpy_numbers_are_written_as_plain_ones() -> None:
    box = SeptalBox(np.int64(2), *np.array([1, 2, 3, 4], dtype=np.float32), Septum.INTERATRIAL, np.float32(0.5))
    annotation = Annotation("a", (box,), (np.int64(2),), defect_size_mm=np.float32(4.0))

    assert annotation_from_json(annotation_to_json(annotation)).boxes == (
        SeptalBox(2, 1.0, 2.0, 3.0, 4.0, Septum.INTERATRIAL, 0.5),
    )


def test_fields_that_may_be_absent_read_as_not_said() -> None:
    text = (
        '{"schema": "monailabel-echo/annotation", "version": 1, "image_id": "a", "annotated_frames": [4], "boxes": []}'
    )

    assert annotation_from_json(text) == Annotation("a", annotated_frames=(4,))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", r"^a\.json: not JSON"),
        ("[" * 100_000, r"^a\.json: not JSON"),
        ("[]", r"^a\.json: no object of schema 'monailabel-echo/annotation'"),
        ('{"schema": "other"}', "no object of schema"),
        (changed(version=2), r"version 2 was written by a newer program; up to 1"),
        (changed(version="1"), "'version' is '1'; a whole number"),
        (changed(image_id="../x"), r"^a\.json: Image id '\.\./x' is malformed"),
        (changed(image_id=None), r"^a\.json: Image id '' is malformed"),
        (changed(annotated_frames=[0, True]), "'annotated_frames' is 'True'; a whole number"),
        (changed(annotated_frames=7), "'annotated_frames' is '7'; a list"),
        (changed(annotated_frames=[0]), r"^a\.json: Annotation of 1\.2\.3: boxes on frames \[7\]"),
        (changed(boxes={}), "'boxes' is '{}'; a list"),
        (changed(boxes=[1]), r"'boxes\[0\]' is '1'; an object"),
        (changed(defect="asd"), r"'defect' is 'asd'; \['Normal', 'ASD', 'VSD', "),
        (changed(view=4), "'view' is '4'"),
        (changed(author=4), "'author' is '4'; a text"),
        (changed(saved_at="yesterday"), "'saved_at' is 'yesterday'; a time such as"),
        (changed(saved_at="2026-01-31T12:00:00"), "has no time zone"),
        (changed(defect_size_mm=-1), "defect_size_mm is -1"),
        (changed(revision=-1), "'revision' is '-1'"),
        (changed(defect_visible="no"), r"'defect_visible' is 'no'; true or false"),
        (changed(unusable="yes"), r"'unusable' is 'yes'; true or false"),
        (changed(patient="x"), r"has the unknown fields \['patient'\]"),
        (changed_box(septum="IVS"), r"'boxes\[1\]' 'septum' is 'IVS'; \['interatrial'"),
        (changed_box(septum=None), r"'boxes\[1\]' 'septum' is 'None'"),
        (changed_box(x1="1"), r"'boxes\[1\]' 'x1' is '1'; a finite number"),
        (changed_box(x1=float("nan")), r"'boxes\[1\]' 'x1' is 'nan'"),
        (changed_box(x1=9), r"^a\.json: Septal box on frame index 0 has corners \(9\.0, "),
        (changed_box(score=1.5), "has score 1.5; 0 to 1"),
        (changed_box(frame_index=1.0), r"'boxes\[1\]' 'frame_index' is '1.0'; a whole number"),
        (changed_box(frame_number=1), r"'boxes\[1\]' has the unknown fields \['frame_number'\]"),
    ],
)
def test_what_cannot_be_is_refused_naming_file_and_field(text: str, sentence: str) -> None:
    with pytest.raises(AnnotationError, match=sentence):
        annotation_from_json(text, source="a.json")


def test_missing_field_is_named() -> None:
    document = json.loads(annotation_to_json(ONE))
    del document["boxes"][0]["y2"]

    with pytest.raises(AnnotationError, match=r"'boxes\[0\]' lacks the fields \['y2'\]"):
        annotation_from_json(json.dumps(document))
