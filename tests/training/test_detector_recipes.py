# SPDX-License-Identifier: Apache-2.0
"""The paper's recipe and ours: which frames, how they are moved, and that boxes are moved with them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from echo_plugin.errors import TrainingDataError
from echo_plugin.models.checkpoint import load_published
from echo_plugin.network_config import ANCHORS_PER_LEVEL
from echo_plugin.training import detector_recipes
from echo_plugin.training.augment import move_boxes, random_affines, visible_boxes, warp
from echo_plugin.training.datasets import BOX_SLOTS, PreparedFrames
from echo_plugin.training.detector import detection_loss, train_detector
from echo_plugin.training.detector_recipes import OURS, PAPER, chosen_images, training_items, validation_items
from echo_plugin.training.options import DetectorOptions

torch.set_num_threads(1)
SIDE = 96


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _frames(boxes):
    """Frames whose pixels are 255 inside each one's box, (N, 4) px, and 0 outside; one cine for two frames."""
    pixels = torch.zeros(len(boxes), SIDE, SIDE, dtype=torch.uint8)
    targets = torch.full((len(boxes), BOX_SLOTS, 5), torch.nan)
    for row, box in enumerate(boxes):
        if box is not None:
            x1, y1, x2, y2 = box
            pixels[row, y1:y2, x1:x2] = 255
            targets[row, 0] = torch.tensor([*box, 1.0])
    targets = torch.cat([targets.flatten(1), torch.zeros(len(boxes), 2)], dim=1)  # every septum was looked for
    return PreparedFrames(pixels, targets, torch.arange(len(boxes)) // 2, ())


class Watcher(torch.nn.Module):
    """Stands for the detector: keeps what the loss hands to it."""

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["paper", "ours"]),
    st.integers(0, 10_000),
    st.integers(16, 40),
    st.integers(16, 40),
    st.integers(10, 36),
    st.integers(10, 36),
)
def test_a_painted_box_and_its_coordinates_move_alike(recipe, seed, x1, y1, width, height):
    """The corners of a rectangle are found in the moved picture where the affine puts them; the box lies among them."""
    motion = (PAPER if recipe == "paper" else OURS).motion
    box = (x1, y1, x1 + width, y1 + height)
    frames = _frames([box])
    affines = random_affines(1, SIDE, motion, _generator(seed))

    picture = warp(frames.pixels[:, None].float() / 255, affines, SIDE)[0, 0] > 0.5
    moved = move_boxes(torch.tensor([[box]], dtype=torch.float32), affines)[0, 0]

    corners = torch.tensor([[x, y, 1.0] for x in box[::2] for y in box[1::2]]) @ affines[0].T
    low, high = corners.amin(dim=0), corners.amax(dim=0)
    if low.min() > 1 and high.max() < SIDE - 1:  # wholly inside: nothing is cut off
        rows, columns = (where.float() for where in torch.where(picture))
        seen = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        # half of a corner's pixel may be lost to the threshold, more where the corner is sharp and turned
        assert (seen - torch.cat([low, high])).abs().max() < 2.0
        assert torch.allclose((moved[:2] + moved[2:]) / 2, (low + high) / 2, atol=1e-3)
    assert (moved[:2] >= low - 1e-3).all() and (moved[2:] <= high + 1e-3).all()
    kept = visible_boxes(moved[None, None], SIDE)
    if torch.isfinite(kept).all():
        assert kept.min() >= 0 and kept.max() <= SIDE
        assert (kept[..., 2:] > kept[..., :2]).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_the_papers_boxes_are_mirrored_turned_up_to_10_degrees_and_scaled_up_to_15_percent(seed):
    affines = random_affines(64, SIDE, PAPER.motion, _generator(seed))
    linear = affines[:, :, :2]
    scale = torch.linalg.det(linear).abs().sqrt()
    angle = torch.rad2deg(torch.atan2(linear[:, 0, 1], linear[:, 1, 1])).abs()
    middle = torch.tensor([SIDE / 2, SIDE / 2, 1.0])

    assert scale.min() >= 1 / 1.15 - 1e-4 and scale.max() <= 1.15 + 1e-4
    assert angle.max() <= 10.001
    assert torch.allclose(affines @ middle, middle[:2].expand(64, 2), atol=1e-3)  # nothing is shifted
    assert 8 < int((torch.linalg.det(linear) < 0).sum()) < 56


def test_mirroring_twice_is_where_it_was():
    box = torch.tensor([[[10.0, 20.0, 30.0, 60.0]]])
    affines = random_affines(1, SIDE, type(PAPER.motion)(0, 0, 0, 0, mirror=1.0), _generator())

    assert torch.allclose(move_boxes(move_boxes(box, affines), affines), box, atol=1e-4)


def test_the_papers_recipe_leaves_looks_alone(monkeypatch):
    frames, handed = _frames([(20, 30, 50, 60), None]), []
    monkeypatch.setattr(
        "echo_plugin.training.detector._loss", lambda m, inputs, wanted, unsought: handed.append((inputs, wanted))
    )
    still = type(PAPER)(**{**vars(PAPER), "motion": type(PAPER.motion)(0, 0, 0, 0, 0)})

    detection_loss(Watcher(), frames, torch.arange(2), _generator(), still)

    (inputs, wanted), values = handed[0], handed[0][0][0, 0]
    assert len(values.unique()) == 2
    assert wanted[0]["boxes"].tolist() == [[20.0, 30.0, 50.0, 60.0]] and wanted[0]["labels"].tolist() == [1]
    assert wanted[1]["boxes"].shape == (0, 4)
    assert inputs.shape == (2, 1, SIDE, SIDE)


def test_images_are_chosen_from_as_many_cines_as_can_be_and_all_show_a_box():
    cine = torch.arange(60) // 6
    has_box = torch.arange(60) % 3 != 0

    chosen = chosen_images(torch.arange(60) + 100, has_box, cine, 25, seed=4) - 100

    assert len(chosen) == len(chosen.unique()) == 25
    assert has_box[chosen].all()
    counts = torch.bincount(cine[chosen], minlength=10)
    assert counts.min() >= 2 and counts.max() <= 3


def test_too_few_images_for_the_paper_are_said():
    frames = _frames([(10, 10, 40, 50)] * 12 + [None] * 8)

    with pytest.raises(TrainingDataError, match="learns from 100 frames with a box but the training patients have 12"):
        training_items(frames, torch.arange(20), PAPER, seed=0)


def test_the_epoch_of_the_paper_is_chosen_by_as_many_frames_as_it_learns_from_and_ours_by_all():
    frames = _frames([(10, 10, 40, 50)] * 130 + [None] * 70)

    chosen = validation_items(frames, torch.arange(200), PAPER, seed=0)

    assert len(chosen) == 100 and chosen.max() < 130
    assert torch.equal(validation_items(frames, torch.arange(200), OURS, seed=0), torch.arange(200))
    assert len(validation_items(frames, torch.arange(100, 200), PAPER, seed=0)) == 30  # all that there are


def test_the_papers_optimiser_is_adam_for_50_epochs_without_an_early_end():
    optimisation = PAPER.optimisation(DetectorOptions(recipe="paper"), 1e-3)

    assert (optimisation.optimiser, optimisation.epochs, optimisation.weight_decay) == ("adam", 50, 0.0)
    assert optimisation.patience is None
    assert isinstance(optimisation.build_optimiser(torch.nn.Linear(2, 2)), torch.optim.Adam)


def test_what_a_person_chooses_goes_before_the_recipe():
    options = DetectorOptions(epochs=7, patience=0, learning_rate=0.5)

    optimisation = OURS.optimisation(options, 1e-3)

    assert (optimisation.epochs, optimisation.patience, optimisation.learning_rate) == (7, None, 0.5)
    assert OURS.optimisation(DetectorOptions(), 1e-3).patience == OURS.patience > 0


def test_an_unknown_recipe_is_refused():
    with pytest.raises(ValueError, match="Training option recipe is 'secret'; ours, paper are accepted"):
        DetectorOptions(recipe="secret")


@pytest.mark.heavy
def test_fitted_anchors_are_in_the_card_and_stay_with_the_weights(easy_studies, tmp_path):
    options = DetectorOptions(epochs=1, batch_size=8, image_size=64, device="cpu", backbone="mobilenet_v3_large")
    first = train_detector(easy_studies, tmp_path, options)

    second = train_detector(easy_studies, tmp_path, DetectorOptions(**(vars(options) | {"recipe": "ours", "seed": 9})))

    card, _ = load_published(tmp_path, "septal_detector")
    assert len(first.network.anchor_shapes) == 2 * 3 * ANCHORS_PER_LEVEL
    assert all(0 < part < 4 and math.isfinite(part) for part in first.network.anchor_shapes)
    assert card.network.anchor_shapes == second.network.anchor_shapes == first.network.anchor_shapes
    assert (int(card.version) > 1, card.training.recipe) == (True, "ours")


@pytest.mark.heavy
@pytest.mark.parametrize(("boxes", "is_refitted"), [(1, True), (10_000, False)])
def test_a_detector_of_the_fixed_family_is_refitted_by_many_boxes_only(
    easy_studies, tmp_path, monkeypatch, boxes, is_refitted
):
    options = DetectorOptions(epochs=1, batch_size=8, image_size=64, device="cpu", backbone="mobilenet_v3_large")
    monkeypatch.setattr(detector_recipes, "fit_anchors", lambda *_: ())
    assert train_detector(easy_studies, tmp_path, options).network.anchor_shapes == ()
    monkeypatch.undo()
    monkeypatch.setattr(detector_recipes, "REFITTED_FROM", boxes)

    card = train_detector(easy_studies, tmp_path, options)

    assert bool(card.network.anchor_shapes) is is_refitted
