# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from echo_plugin.anatomy import Septum
from echo_plugin.annotations import SeptalBox
from echo_plugin.answer.preprocess import (
    GREY_MEAN,
    GREY_STD,
    best_boxes,
    crop_square,
    map_region,
    normalise,
    septal_square,
    to_model_input,
    whole_square,
)
from echo_plugin.cine import Cine, FramesInMemory, UltrasoundRegion

torch.set_num_threads(1)


def cine_of(pixels: np.ndarray) -> Cine:
    return Cine("cine", FramesInMemory(pixels))


def noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def box(x1: float, y1: float, x2: float, y2: float, **rest: object) -> SeptalBox:
    facts = {"frame_index": 0, "septum": Septum.INTERATRIAL, "score": 0.5, **rest}
    return SeptalBox(x1=x1, y1=y1, x2=x2, y2=y2, **facts)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(
    x1=st.floats(0, 300),
    y1=st.floats(0, 200),
    width=st.floats(8, 300),
    height=st.floats(8, 250),
    size_px=st.sampled_from([64, 160, 256]),
    corners=st.tuples(st.floats(-50, 650), st.floats(-50, 650), st.floats(1, 200), st.floats(1, 200)),
)
def test_boxes_go_to_the_model_and_back(
    x1: float, y1: float, width: float, height: float, size_px: int, corners: tuple[float, float, float, float]
) -> None:
    mapping = map_region(UltrasoundRegion(x1, y1, x1 + width, y1 + height), 480, 640, size_px)
    x, y, w, h = corners
    boxes = np.array([[x, y, x + w, y + h]])

    np.testing.assert_allclose(mapping.to_pixels(mapping.to_model(boxes)), boxes, atol=1e-9)
    there = mapping.to_model(np.array([[x1, y1, x1 + width, y1 + height]]))
    assert there.min() >= -1e-6
    assert there.max() <= size_px + 1e-6


def test_no_boxes_in_no_boxes_out() -> None:
    mapping = map_region(UltrasoundRegion(0, 0, 10, 20), 20, 10, 32)

    assert mapping.to_model([]).shape == (0, 4)
    assert mapping.to_pixels(np.zeros((0, 4))).shape == (0, 4)


@pytest.mark.parametrize("samples", [1, 3])
def test_a_bright_rectangle_lies_where_its_mapped_box_is(samples: int) -> None:
    pixels = np.zeros((1, 300, 400, samples), dtype=np.uint8)
    pixels[0, 100:180, 150:200] = 200

    frames, mapping = to_model_input(cine_of(pixels), [0], 128, region=UltrasoundRegion(60, 40, 360, 280))

    rows, columns = np.nonzero(frames[0].numpy() > 100)
    found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    np.testing.assert_allclose(found, mapping.to_model(np.array([[150.0, 100.0, 200.0, 180.0]]))[0], atol=0.6)


def test_nothing_outside_the_region_reaches_the_model() -> None:
    pixels = np.full((1, 100, 100, 1), 255, dtype=np.uint8)
    pixels[0, 20:60, 30:90] = 0

    region = UltrasoundRegion(30, 20, 90, 60)

    frames, _ = to_model_input(cine_of(pixels), [0], 64, region=region)
    crop = crop_square(cine_of(pixels).pixels[0], (20, 10, 70, 60), 32, region=region)
    assert frames.max() == 0
    assert crop.max() == 0


def test_frames_do_not_depend_on_their_neighbours_or_order() -> None:
    cine = cine_of(noise((4, 60, 80, 3)))
    region = UltrasoundRegion(0, 0, 80, 60)

    together, _ = to_model_input(cine, [3, 0, 2], 64, region=region)
    alone = [to_model_input(cine, [i], 64, region=region)[0][0] for i in (3, 0, 2)]

    assert torch.equal(together, torch.stack(alone))


def test_no_frames_in_no_frames_out() -> None:
    frames, _ = to_model_input(cine_of(noise((2, 40, 40, 3))), [], 64, region=UltrasoundRegion(0, 0, 40, 40))

    assert frames.shape == (0, 64, 64)
    assert frames.dtype == torch.uint8


def test_resize_is_that_of_pillow_on_luma_grey() -> None:
    pixels = noise((1, 200, 200, 3), seed=1)

    frames, _ = to_model_input(cine_of(pixels), [0], 64, region=UltrasoundRegion(0, 0, 200, 200))

    grey = Image.fromarray(pixels[0]).convert("L").resize((64, 64), Image.Resampling.BILINEAR)
    assert np.abs(frames[0].numpy().astype(int) - np.asarray(grey).astype(int)).max() <= 1


def test_grey_and_equal_colours_are_the_same() -> None:
    grey = noise((1, 50, 70, 1))
    region = UltrasoundRegion(0, 0, 70, 50)

    one, _ = to_model_input(cine_of(grey), [0], 64, region=region)
    three, _ = to_model_input(cine_of(np.repeat(grey, 3, axis=3)), [0], 64, region=region)

    assert torch.equal(one, three)


def test_whole_square_shows_the_same_as_the_models_input() -> None:
    cine = cine_of(noise((1, 90, 120, 1)))
    region = UltrasoundRegion(10, 5, 110, 80)

    frames, _ = to_model_input(cine, [0], 64, region=region)
    crop = crop_square(cine.pixels[0], whole_square(cine, region), 64, region=region)

    assert torch.equal(frames[0], crop)


def test_septal_square_is_square_and_holds_every_box_with_context() -> None:
    x1, y1, x2, y2 = septal_square([box(10, 20, 30, 80), box(25, 70, 40, 100)], margin=0.25)

    assert (x2 - x1, y2 - y1) == (pytest.approx(120), pytest.approx(120))
    assert (x1 + x2) / 2 == pytest.approx(25)
    assert (y1 + y2) / 2 == pytest.approx(60)


def test_square_round_no_box_is_refused() -> None:
    with pytest.raises(ValueError, match="No septal box to crop around"):
        septal_square([])


def test_crop_beyond_the_picture_is_black_there() -> None:
    pixels = np.full((50, 50, 1), 90, dtype=np.uint8)

    crop = crop_square(pixels, (-20, 0, 20, 40), 40)

    assert crop[:, :20].max() == 0
    assert crop[:, 20:].min() == 90
    assert crop_square(pixels, (100, 100, 140, 140), 40).max() == 0


def test_normalised_frames_have_their_channel_and_scale() -> None:
    frames = torch.tensor([[[0, 255]]], dtype=torch.uint8)

    floats = normalise(frames)

    assert floats.shape == (1, 1, 1, 2)
    np.testing.assert_allclose(
        floats.flatten(), torch.tensor([-GREY_MEAN, 1 - GREY_MEAN]) / GREY_STD, rtol=1e-5, atol=1e-5
    )
    assert normalise(frames, torch.bfloat16).dtype == torch.bfloat16


def test_best_box_of_each_septum_is_kept_and_a_persons_box_is_best() -> None:
    weak, strong = box(0, 0, 1, 1, score=0.2), box(0, 0, 2, 2, score=0.9)
    drawn = box(0, 0, 3, 3, score=None)
    other = box(0, 0, 4, 4, score=0.1, septum=Septum.INTERVENTRICULAR)
    later = box(0, 0, 5, 5, frame_index=3)

    assert best_boxes([later, weak, strong, other]) == {0: [strong, other], 3: [later]}
    assert best_boxes([strong, drawn]) == {0: [drawn]}
    assert best_boxes([]) == {}
