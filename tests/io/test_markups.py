# SPDX-License-Identifier: Apache-2.0
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from echo_plugin.anatomy import Septum
from echo_plugin.annotations import SeptalBox
from echo_plugin.errors import AnnotationError
from echo_plugin.io.markups import PointLabel, annotated_frames, boxes_from_markups, boxes_to_markups
from echo_plugin.io.volume import RenditionGeometry

W, H, T = 64, 48, 10
IDENTITY = RenditionGeometry(ijk_to_lps=np.eye(4), shape=(W, H, T))
IAS, IVS, ANY = Septum.INTERATRIAL, Septum.INTERVENTRICULAR, Septum.UNSPECIFIED


@st.composite
def geometries(draw: st.DrawFn) -> RenditionGeometry:
    """Any spacing, origin, rotation and flip."""
    axes = Rotation.random(random_state=draw(st.integers(0, 2**32 - 1))).as_matrix()
    if draw(st.booleans()):
        axes = np.round(np.eye(3))
    flips = np.array(draw(st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3)))
    spacing_mm = np.array(draw(st.tuples(*[st.floats(0.05, 5.0)] * 3)))
    affine = np.eye(4)
    affine[:3, :3] = axes * flips * spacing_mm
    affine[:3, 3] = draw(st.tuples(*[st.floats(-500.0, 500.0)] * 3))
    return RenditionGeometry(ijk_to_lps=affine, shape=(W, H, T))


@st.composite
def boxes(draw: st.DrawFn) -> SeptalBox:
    x1, y1 = draw(st.floats(-5.0, W - 2.0)), draw(st.floats(-5.0, H - 2.0))
    width, height = draw(st.floats(5.5, 80.0)), draw(st.floats(5.5, 80.0))
    score = draw(st.none() | st.floats(0, 1))
    return SeptalBox(draw(st.integers(0, T - 1)), x1, y1, x1 + width, y1 + height, draw(st.sampled_from(Septum)), score)


def one_per_wall(drawn: list[SeptalBox]) -> list[SeptalBox]:
    return list({(box.frame_index, box.septum): box for box in drawn}.values())


def assert_same(found: tuple[SeptalBox, ...], expected: list[SeptalBox], within_px: float = 1e-6) -> None:
    assert [(b.frame_index, b.septum, b.score) for b in found] == [(b.frame_index, b.septum, None) for b in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.xyxy, other.xyxy, rtol=0, atol=within_px)


def roi(box: SeptalBox, **fields: object) -> dict:
    (markup,) = json.loads(boxes_to_markups([box], IDENTITY))["markups"]
    return markup | fields


def text_of(*markups: dict) -> str:
    return json.dumps({"@schema": "markups-schema-v1.0.3.json#", "markups": markups})


BOX = SeptalBox(3, 10.0, 20.0, 30.0, 28.0, IVS)
DRAWN = roi(BOX, name="Detection ROI - 4")
DRAWN["controlPoints"][0] |= {"label": "R-1", "description": ""}


@pytest.mark.heavy
@settings(max_examples=150, deadline=None)
@given(st.lists(boxes(), max_size=5), geometries())
def test_boxes_come_back_through_any_affine(drawn: list[SeptalBox], geometry: RenditionGeometry) -> None:
    walls = one_per_wall(drawn)

    assert_same(boxes_from_markups(boxes_to_markups(walls, geometry), geometry), walls)


@pytest.mark.heavy
@settings(max_examples=60, deadline=None)
@given(boxes(), geometries())
def test_document_in_ras_or_micrometres_gives_the_same_boxes(box: SeptalBox, geometry: RenditionGeometry) -> None:
    document = json.loads(boxes_to_markups([box], geometry))
    (markup,) = document["markups"]
    markup["coordinateSystem"], markup["coordinateUnits"] = "RAS", ["um", "UCUM", "micrometer"]
    markup["center"] = (np.array(markup["center"]) * [-1000, -1000, 1000]).tolist()
    markup["size"] = (np.array(markup["size"]) * 1000).tolist()
    markup["orientation"] = (np.array(markup["orientation"]) * [-1, -1, -1, -1, -1, -1, 1, 1, 1]).tolist()

    assert_same(boxes_from_markups(json.dumps(document), geometry), [box])


def test_first_pixel_is_centred_on_the_first_voxel() -> None:
    markup = roi(SeptalBox(0, 0.0, 0.0, 1.0, 1.0, IAS))

    assert markup["center"] == [0.0, 0.0, 0.0]
    assert markup["size"] == [1.0, 1.0, 1.0]
    assert markup["orientation"] == [-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0]


def test_box_lies_at_the_voxel_centres_it_covers_in_world_mm() -> None:
    affine = np.diag([0.5, 0.25, 1.0, 1.0])
    affine[:3, 3] = [100.0, -20.0, 7.0]
    markups = json.loads(boxes_to_markups([BOX], RenditionGeometry(ijk_to_lps=affine, shape=(W, H, T))))["markups"]

    np.testing.assert_allclose(markups[0]["center"], [100 + 0.5 * 19.5, -20 + 0.25 * 23.5, 7 + 3])
    np.testing.assert_allclose(markups[0]["size"], [20 * 0.5, 8 * 0.25, 1.0])


def test_proposal_shows_its_wall_and_score_beside_the_point() -> None:
    markup = roi(replace(BOX, score=0.876))

    assert markup["controlPoints"][0]["label"] == "IVS 0.88"
    assert markup["display"]["pointLabelsVisibility"] is True


def test_no_boxes_give_a_valid_empty_document() -> None:
    text = boxes_to_markups([], IDENTITY)

    assert json.loads(text)["markups"] == []
    assert boxes_from_markups(text, IDENTITY) == ()


def test_point_labels_are_placed_and_never_read_as_boxes() -> None:
    text = boxes_to_markups([BOX], IDENTITY, point_labels=[PointLabel("ASD 0.91 (41 deg)", 4, 0.5, 2.5)])

    points = json.loads(text)["markups"][1]
    assert points["type"] == "Fiducial"
    assert (points["controlPoints"][0]["label"], points["controlPoints"][0]["position"]) == (
        "ASD 0.91 (41 deg)",
        [0.0, 2.0, 4.0],
    )
    assert_same(boxes_from_markups(text, IDENTITY), [BOX])


@pytest.mark.parametrize(
    "ghost",
    [
        roi(BOX, name="SAM2 ROI", controlPoints=[], size=[0.0, 0.0, 0.0]),
        roi(BOX, name="SAM2 ROI", controlPoints=[], size=[30.0, 9.0, 9.0]),  # the stale size of older Slicers
        roi(BOX, size=[0.0, 0.0, 0.0]),
        roi(BOX, size=[20.0, 0.0, 1.0]),
        roi(BOX, controlPoints=[{"label": "IVS", "positionStatus": "preview"}]),
        {"type": "ROI"},
        {"type": "Line", "controlPoints": [{"position": [1, 2, 3]}]},
    ],
)
def test_what_nobody_drew_is_no_box(ghost: dict) -> None:
    assert boxes_from_markups(text_of(ghost), IDENTITY) == ()
    assert_same(boxes_from_markups(text_of(ghost, roi(BOX)), IDENTITY), [BOX])


@pytest.mark.parametrize("thickness", [0.0, 8.0, 400.0])
def test_thickness_does_not_matter(thickness: float) -> None:
    assert_same(boxes_from_markups(text_of(roi(BOX, size=[20.0, 8.0, thickness])), IDENTITY), [BOX])


@pytest.mark.parametrize(("z", "frame_index"), [(-0.49, 0), (2.51, 3), (3.49, 3), (9.49, 9)])
def test_frame_is_the_one_nearest_to_the_centre(z: float, frame_index: int) -> None:
    (box,) = boxes_from_markups(text_of(roi(BOX, center=[19.5, 23.5, z])), IDENTITY)

    assert box.frame_index == frame_index


@given(st.floats(-180, 180))
@settings(max_examples=50, deadline=None)
def test_turned_roi_gives_the_hull_of_its_corners(angle_deg: float) -> None:
    turned = Rotation.from_euler("z", angle_deg, degrees=True).as_matrix()
    corners: NDArray[np.float64] = turned[:2, :2] @ np.array([[-10, 10, 10, -10], [-4, -4, 4, 4]]) + [[20.0], [24.0]]

    (box,) = boxes_from_markups(text_of(roi(BOX, orientation=turned.ravel().tolist())), IDENTITY)

    np.testing.assert_allclose(box.xyxy, [*corners.min(axis=1), *corners.max(axis=1)], atol=1e-9)


def test_permuted_axes_keep_the_sides_apart() -> None:
    """A ROI whose first own axis runs through the frames."""
    through_first = [0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0]

    assert_same(boxes_from_markups(text_of(roi(BOX, orientation=through_first, size=[50.0, 20, 8])), IDENTITY), [BOX])


@pytest.mark.parametrize(
    ("label", "description", "name", "septum"),
    [
        ("IVS 0.88", "", "Detection ROI - 0", IVS),
        ("atrial septum", '{"septum": "interventricular"}', "", IAS),
        ("R-1", '{"septum": "interventricular"}', "Detection ROI - 1", IVS),
        ("", "", "IAS_2", IAS),
        ("ASD?", "", "", IAS),
        ("R-1", "", "Detection ROI - 2", ANY),
        ("IAS or IVS", "", "", ANY),
        ("AtrialSeptum", "", "", IAS),
        ("basic", "", "", ANY),
    ],
)
def test_septum_is_what_label_then_description_then_name_say(
    label: str, description: str, name: str, septum: Septum
) -> None:
    markup = roi(BOX, name=name)
    markup["controlPoints"][0] |= {"label": label, "description": description}

    assert boxes_from_markups(text_of(markup), IDENTITY)[0].septum is septum


def test_boxes_of_repeated_inference_count_once() -> None:
    proposals = [replace(BOX, score=0.9), SeptalBox(3, 10, 2, 30, 12, IAS, 0.8), replace(BOX, frame_index=4, score=0.7)]
    again = [replace(p, x1=p.x1 + 0.5, score=0.5) for p in proposals]

    assert_same(boxes_from_markups(boxes_to_markups(proposals + again, IDENTITY), IDENTITY), proposals)


@pytest.mark.parametrize("is_corrected_first", [True, False])
def test_corrected_box_is_kept_before_a_repeated_proposal(is_corrected_first: bool) -> None:
    proposal = roi(replace(BOX, score=0.9))
    corrected = roi(replace(BOX, score=0.9), center=[21.5, 24.5, 3.0])
    order = [corrected, proposal] if is_corrected_first else [proposal, corrected]

    assert_same(boxes_from_markups(text_of(*order), IDENTITY), [SeptalBox(3, 12.0, 21.0, 32.0, 29.0, IVS)])


def test_drawn_box_is_kept_before_a_proposal_of_the_same_wall() -> None:
    drawn = roi(replace(BOX, x1=12.0))

    found = boxes_from_markups(text_of(roi(replace(BOX, score=0.9)), drawn), IDENTITY)

    assert_same(found, [replace(BOX, x1=12.0)])


def test_two_walls_and_two_distant_boxes_are_all_kept() -> None:
    boxes_ = [BOX, replace(BOX, septum=IAS), replace(BOX, y1=0.0, y2=9.0), replace(BOX, frame_index=2)]

    assert_same(boxes_from_markups(boxes_to_markups(boxes_, IDENTITY), IDENTITY), boxes_)


def test_box_without_any_known_text_is_a_box_of_an_unspecified_septum() -> None:
    assert_same(boxes_from_markups(text_of(DRAWN), IDENTITY), [replace(BOX, septum=ANY)])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("not json", "Markups are not JSON"),
        ("[" * 100_000, "Markups are not JSON"),
        ("[]", "no list 'markups'"),
        ('{"markups": [7]}', "no list 'markups'"),
        (text_of(roi(BOX, center=[19.5, 23.5, 9.6])), r"Markup 1 \(a ROI\) is on frame index 10 .* 0 to 9"),
        (text_of(roi(BOX, center=[19.5, 23.5, -0.6])), "is on frame index -1"),
        (text_of(roi(BOX, center=[190.5, 23.5, 3.0])), r"outside the picture of 64 x 48 px"),
        (text_of(DRAWN, roi(BOX, center=[1.0, 2.0])), r"Markup 2 \(a ROI\): 'center' is \[1.0, 2.0\]; 3 finite"),
        (text_of(roi(BOX, size=[1, "2", 3])), "'size' is"),
        (text_of(roi(BOX, size=[1, -2, 3])), "'size' .* is negative"),
        (text_of(roi(BOX, size=[1, float("nan"), 3])), "'size' is .* finite"),
        (text_of(roi(BOX, size=[1, 10**400, 3])), "'size' is .* finite"),
        (text_of(roi(BOX, size=[1, True, 3])), "'size' is .* finite"),
        (text_of(roi(BOX, size=None)), "'size' is None"),
        (text_of(roi(BOX, orientation=[0.0] * 9)), "is no rotation"),
        (text_of(roi(BOX, orientation=[1.0] * 3)), "'orientation' is"),
        (text_of(roi(BOX, coordinateSystem="IJK")), "is in 'IJK', 'mm'"),
        (text_of(roi(BOX, coordinateUnits="inch")), "is in 'LPS', 'inch'"),
        (text_of(roi(BOX, controlPoints={})), "'controlPoints' is no list"),
    ],
)
def test_what_cannot_be_a_box_is_refused_in_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(AnnotationError, match=sentence):
        boxes_from_markups(text, IDENTITY)


def test_box_of_a_frame_the_rendition_lacks_is_refused_on_writing() -> None:
    with pytest.raises(AnnotationError, match="A box is on frame index 10"):
        boxes_to_markups([replace(BOX, frame_index=10)], IDENTITY)
    with pytest.raises(AnnotationError, match="A point label is on frame index 10"):
        boxes_to_markups([], IDENTITY, point_labels=[PointLabel("x", 10, 1, 1)])


def test_sheared_rendition_is_refused() -> None:
    sheared = np.eye(4)
    sheared[0, 1] = 0.5
    with pytest.raises(ValueError, match="not at right angles"):
        boxes_to_markups([BOX], RenditionGeometry(ijk_to_lps=sheared, shape=(W, H, T)))


def test_frames_with_boxes_and_frames_asked_for_are_annotated() -> None:
    assert annotated_frames([BOX], T) == (3,)
    assert annotated_frames([BOX], T, asked_frames=[8, 3, 0]) == (0, 3, 8)
    assert annotated_frames([], T, asked_frames=[8]) == (8,)


def test_empty_submission_without_more_is_a_negative_for_the_middle_frame() -> None:
    assert annotated_frames([], T) == (5,)
    assert annotated_frames([], 1) == (0,)
    assert annotated_frames([], T, asked_frames=[]) == ()


def test_annotated_frame_beyond_the_cine_is_refused() -> None:
    with pytest.raises(AnnotationError, match="An annotated frame is on frame index 10"):
        annotated_frames([], T, asked_frames=[10])
