# SPDX-License-Identifier: Apache-2.0
"""The two ways of training the septal detector, the ASD/VSD paper's and ours, and the anchors fitted to its boxes.

The paper names Adam, 50 epochs, 100 annotated images, left-right reflection, rotation of +-10 degrees and scaling of
+-15 %, and no more. What it leaves open (learning rate and its course, averaged weights, batch size) is as in ours.

Anchors are found by k-means under the distance 1 - IoU, as by Redmon and Farhadi 2017 (arXiv 1612.08242, sec. 2,
"Dimension clusters"), with one thing more: an anchor stands on the grid of its level, a box anywhere, so their IoU is
the mean over the places of the box between the points of that grid. Without it a coarse level is given the shapes of
thin walls, which it meets only by chance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from echo_plugin.errors import TrainingDataError
from echo_plugin.geometry import FloatArray
from echo_plugin.models.checkpoint import SEPTAL_DETECTOR
from echo_plugin.network_config import ANCHOR_RATIOS, ANCHOR_SIDES, ANCHORS_PER_LEVEL, STRIDES_PX, DetectorConfig
from echo_plugin.training.augment import DETECTOR_MOTION, Motion, move_boxes, random_affines, visible_boxes
from echo_plugin.training.datasets import PreparedFrames, boxes_of
from echo_plugin.training.loop import Recipe, balanced_batches, shuffled_batches
from echo_plugin.training.options import DetectorOptions
from echo_plugin.training.start import Start

ROUNDS = 50
"""Of k-means; it settles in about twenty."""

PLACES = (np.arange(4) + 0.5) / 8
"""How far a box may be from the nearest point of a grid, in its steps, along one axis."""


def placed_iou(shapes: FloatArray, anchors: FloatArray, strides_px: FloatArray) -> FloatArray:
    """Return (N, M) the mean IoU of boxes anywhere, (N, 2) px wide and high, with the nearest anchors of (M, 2) px.

    ``strides_px`` : (M,) steps of the grids on which the anchors stand.
    """
    offsets = PLACES[None, None, :] * strides_px[None, :, None]  # (1, M, P)
    widths, heights = (
        np.clip(
            np.minimum(
                (shapes[:, None, axis] + anchors[None, :, axis])[..., None] / 2 - offsets,
                np.minimum(shapes[:, None, axis], anchors[None, :, axis])[..., None],
            ),
            0,
            None,
        )
        for axis in (0, 1)
    )
    common = widths[:, :, :, None] * heights[:, :, None, :]  # (N, M, P, P)
    union = (shapes.prod(axis=1)[:, None] + anchors.prod(axis=1)[None])[:, :, None, None] - common
    mean: FloatArray = (common / union).mean(axis=(2, 3))
    return mean


def fixed_shapes() -> FloatArray:
    """Return (M, 2) widths and heights of the fixed family, as parts of the input side, finest level first."""
    return np.array(
        [(side / ratio**0.5, side * ratio**0.5) for level in ANCHOR_SIDES for ratio in ANCHOR_RATIOS for side in level]
    )


def fit_anchors(boxes: FloatArray, side_px: float) -> tuple[float, ...]:
    """Return ``DetectorConfig.anchor_shapes`` for (N, 4) XYXY boxes, px of a square of ``side_px``.

    Begins with the fixed family and never ends below it: an anchor that no box is nearest to stays where it was.
    """
    shapes = boxes[:, 2:] - boxes[:, :2]
    strides = np.repeat(np.array(STRIDES_PX, dtype=float), ANCHORS_PER_LEVEL)
    anchors = fixed_shapes() * side_px
    best, best_iou = anchors, -1.0
    for _ in range(ROUNDS if len(shapes) else 0):
        overlaps = placed_iou(shapes, anchors, strides)
        owner, mean_iou = overlaps.argmax(axis=1), overlaps.max(axis=1).mean()
        if mean_iou <= best_iou:
            break
        best, best_iou = anchors, mean_iou
        anchors = anchors.copy()
        for index in np.unique(owner):
            anchors[index] = np.median(shapes[owner == index], axis=0)
    return tuple(float(part) for part in (best / side_px).ravel())


MOVED_COPIES = 8
"""Of every box, to which anchors are fitted."""

REFITTED_FROM = 1000
"""So many boxes give a detector that has the fixed family of anchors fitted ones."""

LEAST_SIDE_PX = 2.0
"""Of a box that is learned from."""


@dataclass(frozen=True)
class DetectorRecipe:
    """What differs between them.

    ``plain`` : part of the training frames whose look is left as it is. ``spoiled`` : part whose anatomy is destroyed
    and that then have no box. ``images`` : training frames with a box, of all that there are, and at most as many to
    choose the epoch by; None: every frame.
    ``patience`` : epochs without a better measure that end the training; None: it runs to its end.
    """

    epochs: int
    optimiser: str
    weight_decay: float
    motion: Motion
    plain: float
    spoiled: float
    images: int | None = None
    patience: int | None = None

    def optimisation(self, options: DetectorOptions, learning_rate: float) -> Recipe:
        """Return the numbers of the optimisation, with what the options choose."""
        return Recipe(
            epochs=options.epochs or self.epochs,
            learning_rate=options.learning_rate or learning_rate,
            optimiser=self.optimiser,
            weight_decay=self.weight_decay,
            max_minutes=options.max_minutes,
            patience=self.patience if options.patience is None else options.patience or None,
        )


OURS = DetectorRecipe(
    epochs=30, optimiser="adamw", weight_decay=0.02, motion=DETECTOR_MOTION, plain=0.1, spoiled=0.06, patience=12
)

PAPER = DetectorRecipe(
    epochs=50,
    optimiser="adam",
    weight_decay=0.0,
    motion=Motion(rotation_deg=10.0, scale=0.15, stretch=0.0, shift=0.0, mirror=0.5),
    plain=1.0,
    spoiled=0.0,
    images=100,
)


def detector_recipe(name: str) -> DetectorRecipe:
    """Return the recipe "ours" or "paper"."""
    return PAPER if name == "paper" else OURS


def chosen_images(items: Tensor, has_box: Tensor, cine: Tensor, count: int, seed: int) -> Tensor:
    """Return at most ``count`` of ``items`` that have a box, from as many cines as can be.

    ``items`` : (N,) frames. ``has_box``, ``cine`` : (N,) of those frames. One frame of each cine, at random, before a
    second of any.
    """
    shuffled = torch.randperm(len(items), generator=torch.Generator().manual_seed(seed))
    shuffled = shuffled[has_box[shuffled]]
    turns: dict[int, int] = {}
    turn = []
    for owner in cine[shuffled].tolist():
        turn.append(turns.setdefault(owner, 0))
        turns[owner] += 1
    order = torch.argsort(torch.tensor(turn, dtype=torch.int64), stable=True)[:count]
    return items[shuffled[order]].sort().values


def training_items(frames: PreparedFrames, items: Tensor, recipe: DetectorRecipe, seed: int) -> Tensor:
    """Return the frames to learn from: all, or as many with a box as the recipe takes.

    Raises
    ------
    TrainingDataError
        If the recipe takes more than there are.
    """
    if recipe.images is None:
        return items
    has_box = septa_shown(frames)[items] > 0
    there = int(has_box.sum())
    if there < recipe.images:
        msg = (
            f"The recipe learns from {recipe.images} frames with a box but the training patients have {there};"
            " annotate more, or use the recipe 'ours'."
        )
        raise TrainingDataError(msg)
    return chosen_images(items, has_box, frames.cine[items], recipe.images, seed)


def validation_items(frames: PreparedFrames, items: Tensor, recipe: DetectorRecipe, seed: int) -> Tensor:
    """Return the frames to choose the epoch by: all, or at most as many with a box as the recipe learns from."""
    if recipe.images is None:
        return items
    return chosen_images(items, septa_shown(frames)[items] > 0, frames.cine[items], recipe.images, seed)


def epoch_batches(
    frames: PreparedFrames, items: Tensor, recipe: DetectorRecipe, batch_size: int
) -> Callable[[torch.Generator], list[Tensor]]:
    """Return what draws an epoch: each chosen image once, or of all frames those that show rarer septa more often."""
    if recipe.images is not None:
        return lambda generator: shuffled_batches(items, batch_size, generator)
    shown = septa_shown(frames)[items]
    return lambda generator: balanced_batches(items, shown, batch_size, generator)


def septa_shown(frames: PreparedFrames) -> Tensor:
    """Return (N,) 0..3: which septa a frame shows (bit 0 interatrial, bit 1 interventricular)."""
    labels = boxes_of(frames, torch.arange(len(frames.pixels)))[:, :, 4]
    return ((labels == 0).any(dim=1).long() + 2 * (labels == 1).any(dim=1).long()).clone()


def moved_boxes(frames: PreparedFrames, items: Tensor, recipe: DetectorRecipe, seed: int) -> FloatArray:
    """Return (N, 4) XYXY px the boxes of the frames ``items`` as training moves them, ``MOVED_COPIES`` of each."""
    size = frames.pixels.shape[-1]
    targets = boxes_of(frames, items)[:, :, :4].repeat(MOVED_COPIES, 1, 1)
    affines = random_affines(len(targets), size, recipe.motion, torch.Generator().manual_seed(seed))
    boxes = visible_boxes(move_boxes(targets, affines), size).reshape(-1, 4)
    kept: FloatArray = boxes[((boxes[:, 2:] - boxes[:, :2]) > LEAST_SIDE_PX).all(dim=1)].double().numpy()
    return kept


def anchors_for(
    start: Start, frames: PreparedFrames, items: Tensor, recipe: DetectorRecipe, seed: int
) -> tuple[float, ...]:
    """Return the anchors that the detector gone on from was fitted with, else those that fit the boxes as they move.

    Few boxes leave a detector of the fixed family as it is: they could not teach it other anchors.
    """
    own = start.card if start.card is not None and start.card.name == SEPTAL_DETECTOR else None
    known = own.network_as(DetectorConfig).anchor_shapes if own is not None else ()
    if known:
        return known
    boxes = moved_boxes(frames, items, recipe, seed)
    if own is not None and len(boxes) < MOVED_COPIES * REFITTED_FROM:
        return ()
    return fit_anchors(boxes, frames.pixels.shape[-1])
