# SPDX-License-Identifier: Apache-2.0
"""Crops of septa to learn defects from, what each of them shows, and the two recipes: ours and the ASD/VSD paper's.

The label of a cine is the diagnosis of a child: most of its cines do not show the hole. So a crop is labelled by its
wall (an interatrial crop of a child with a VSD is normal), walls are taken only from views that ordinarily image them,
and a cine is an example of its label only if the wall in question is in it.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from echo_plugin.anatomy import DEFECTS, DETECTED_SEPTA, Defect, Septum
from echo_plugin.annotations import SeptalBox
from echo_plugin.answer.defects import can_show, choose_crops, cut_crops, imaged_septa
from echo_plugin.answer.preprocess import CONTEXT_MARGIN, best_boxes
from echo_plugin.cine import Cine
from echo_plugin.errors import TrainingDataError
from echo_plugin.models.checkpoint import DEFECT_EMBEDDER
from echo_plugin.network_config import UNION, WALLS, EmbedderConfig
from echo_plugin.progress import Progress
from echo_plugin.training.datasets import (
    LabelledCine,
    LabelledFolder,
    Prepare,
    PreparedFrames,
    crop_frames,
    prepare_frames,
)
from echo_plugin.training.loop import Recipe
from echo_plugin.training.options import DefectOptions
from echo_plugin.training.splits import patients_of_several_defects
from echo_plugin.training.start import Start

logger = logging.getLogger(__name__)

ROOM = 1.35
"""Crops are kept this much wider than predictions see them: room to move in. Detected boxes are off by as much."""


@dataclass(frozen=True)
class DefectCrops:
    """``frames`` : wide crops; ``labels`` (N,) int64 what each shows; ``shown`` (N, K) bool what it could show.

    ``walls`` (N,) int64 : index into ``DETECTED_SEPTA``; -1: both septa in one crop.
    ``is_example`` (N,) bool : whether to learn from it; a crop of both septa teaches where the hole's wall is there.
    """

    frames: PreparedFrames
    labels: Tensor
    shown: Tensor
    walls: Tensor
    is_example: Tensor
    classes: tuple[Defect, ...]
    size_px: int

    @property
    def cells(self) -> Tensor:
        """(N,) int64: label and wall as one number, for batches that hold each pair as often."""
        return (self.walls + 1) * len(self.classes) + self.labels

    def truths(self, cines: Sequence[LabelledCine], cropping: str) -> Tensor:
        """Return (N,) the class ids of cines; -1: the wall that the diagnosis is about is not in the cine."""
        seen = [visible_defect(cine, cropping) for cine in cines]
        return torch.tensor([-1 if defect is None else self.classes.index(defect) for defect in seen], dtype=torch.long)


def shown_shares(crops: DefectCrops, cines: Sequence[LabelledCine]) -> tuple[float, ...]:
    """Return by class how often a wall that can show the defect of a patient does; 1 where nothing is labelled.

    One more of each kind is counted than there is (Laplace), so that no share is 0.
    """
    items = crops.frames.of(cines)
    shares = []
    for number, defect in enumerate(crops.classes):
        own = items[crops.labels[items] == number]
        says = {True: set[int](), False: set[int]()}
        for item in own.tolist():
            says[bool(crops.is_example[item])].add(int(crops.frames.cine[item]))
        seen, hidden = len(says[True]), len(says[False])
        shares.append(1.0 if defect is Defect.NORMAL or not hidden else (seen + 1) / (seen + hidden + 2))
    return tuple(shares)


def defect_classes(cines: Sequence[LabelledCine], known: Sequence[str] = ()) -> tuple[Defect, ...]:
    """Return the classes to tell apart: those ``known`` already, then the usual and labelled ones as in ``anatomy``."""
    before = tuple(Defect(name) for name in known)
    wanted = {*DEFECTS, *(cine.annotation.defect for cine in cines)}
    return before + tuple(defect for defect in Defect if defect in wanted and defect not in before)


def without_several_defects(labelled: LabelledFolder) -> LabelledFolder:
    """Return the folder without children whose cines name different defects; a warning says how many they are.

    Of such a child a wall that does not have the defect of the label may have the other: it is no normal one.
    """
    several = patients_of_several_defects((cine.patient_id, cine.annotation.defect) for cine in labelled.cines)
    if several:
        logger.warning("%d patients have cines of different defects: defects are learned without them", len(several))
    return dataclasses.replace(labelled, cines=tuple(c for c in labelled.cines if c.patient_id not in several))


def boxes_to_crop(cine: LabelledCine, cropping: str) -> list[SeptalBox]:
    """Return the boxes of a cine that are learned from: those of walls that its view ordinarily images."""
    septa = imaged_septa({box.septum for box in cine.annotation.boxes}, cine.annotation.view)
    wanted = {*septa, Septum.UNSPECIFIED} if cropping == UNION else set(septa)
    return [box for box in cine.annotation.boxes if box.septum in wanted]


def visible_defect(cine: LabelledCine, cropping: str) -> Defect | None:
    """Return what a cine can be expected to show; None: nothing is said, or what it is about is not in the picture."""
    defect, boxes = cine.annotation.defect, boxes_to_crop(cine, cropping)
    if defect is None or not boxes or cine.annotation.is_defect_visible is False:
        return None
    is_there = any(box.septum is Septum.UNSPECIFIED or can_show(box.septum, defect) for box in boxes)
    return defect if is_there else None


def prepare_defect_crops(
    labelled: LabelledFolder,
    cines: Sequence[LabelledCine],
    *,
    size_px: int,
    cropping: str,
    frames_per_cine: int,
    cache_dir: Path | None,
    progress: Progress | None = None,
    known: Sequence[str] = (),
) -> DefectCrops:
    """Return the crops of labelled cines, decoded once; those of cines that cannot be read are left out.

    ``known`` : as for `defect_classes`.
    """
    classes = defect_classes(cines, known)
    wide = 2 * round(size_px * ROOM / 2)
    frames = prepare_frames(
        labelled,
        [(cine, crop_frames(cine, frames_per_cine)) for cine in cines],
        prepare_septal_crops(wide, wide / size_px, cropping),
        name=f"defects-{cropping}-{wide}",
        cache_dir=cache_dir,
        progress=progress,
    )
    walls = frames.targets[:, 0].long()
    labels, is_example = [], []
    for cine, wall in zip(frames.cine.tolist(), walls.tolist(), strict=True):
        defect = cines[cine].annotation.defect or Defect.NORMAL
        is_shown = wall < 0 or can_show(DETECTED_SEPTA[wall], defect)
        labels.append(classes.index(defect if is_shown else Defect.NORMAL))
        # a wall whose hole lies outside the plane looks normal and is not: nothing is learned from it
        is_about_hidden = is_shown and cines[cine].annotation.is_defect_visible is False
        is_example.append(not is_about_hidden and (wall >= 0 or visible_defect(cines[cine], cropping) is not None))
    shown = [[wall < 0 or can_show(DETECTED_SEPTA[wall], d) for d in classes] for wall in walls.tolist()]
    return DefectCrops(
        frames,
        torch.tensor(labels),
        torch.tensor(shown, dtype=torch.bool),
        walls,
        torch.tensor(is_example, dtype=torch.bool),
        classes,
        size_px,
    )


def prepare_septal_crops(size_px: int, room: float, cropping: str) -> Prepare:
    """Return the preparation of crops round the true septa, ``room`` times as wide as a prediction sees them.

    ``size_px`` : the side of these wide crops, whose middle 1/room is what predictions see. Targets (n, 1): the wall.
    """
    margin = (room * (1 + 2 * CONTEXT_MARGIN) - 1) / 2

    def prepare(cine: Cine, labels: LabelledCine, frame_indices: tuple[int, ...]) -> tuple[Tensor, NDArray[Any]]:
        boxes = [box for box in boxes_to_crop(labels, cropping) if box.frame_index in frame_indices]
        crops = choose_crops(best_boxes(boxes), frame_indices, len(frame_indices), cropping=cropping, margin=margin)
        walls = [-1 if crop.septum is None else DETECTED_SEPTA.index(crop.septum) for crop in crops]
        return cut_crops(cine, crops, size_px), np.array(walls, dtype=np.float32).reshape(-1, 1)

    return prepare


def middle_of(crops: DefectCrops, items: Tensor) -> Tensor:
    """Return (n, S, S) uint8: what predictions would see of the wide crops ``items``."""
    edge = (crops.frames.pixels.shape[-1] - crops.size_px) // 2
    return crops.frames.pixels[items][:, edge : edge + crops.size_px, edge : edge + crops.size_px]


def require_shown(crops: DefectCrops, parts: dict[str, list[LabelledCine]], cropping: str) -> None:
    """Raise TrainingDataError if there is nothing to learn from, or nothing to choose the best epoch on."""
    has_example = bool(crops.is_example[crops.frames.of(parts["train"])].any())
    has_truth = bool((crops.truths(parts["validation"], cropping) >= 0).any())
    if not has_example or not has_truth:
        part = "validation" if has_example else "train"
        msg = (
            f"None of the {len(parts[part])} {part} cines shows its defect label in a boxed septum that its view"
            " images; box the septum that the defect is in on cines of more patients."
        )
        raise TrainingDataError(msg)


SUB_CENTRES = 3  # as in Deng 2020
FIRST_FOCUS = 0.25
"""Attention between the walls of a cine before it is calibrated, and where validation patients are too few for that."""


@dataclass(frozen=True)
class DefectRecipe:
    """The numbers of one way to train. ``network`` : without classes and what is calibrated."""

    network: EmbedderConfig
    epochs: int
    learning_rate: float
    optimiser: str
    weight_decay: float
    average_decay: float
    batch_size: int = 32
    frames_per_cine: int = 8
    head_steps: int = 0
    """Batches in which the head is learned anew on what the backbone has learned; 0: it is not."""
    focus: float = 0.0
    """Of the decision, before validation patients choose it."""


OURS = DefectRecipe(
    EmbedderConfig(input_size_px=128, margin_rad=0.1, is_standardised=True, cropping=WALLS),
    epochs=30,
    learning_rate=5e-4,
    optimiser="adamw",
    weight_decay=0.05,
    average_decay=0.995,
    head_steps=500,
    focus=FIRST_FOCUS,
)
"""Crops of one wall each, small: on 100 phantom children 5 epochs tell ASD better than crops of both septa twice as
large do (the figures are in the message of the commit that brought them). m and s: of a sweep on
validation patients."""

PAPER = DefectRecipe(
    EmbedderConfig("resnet50", input_size_px=224, scale=64.0, margin_rad=0.5, cropping=UNION),
    epochs=50,
    learning_rate=1e-3,
    optimiser="sgd",
    weight_decay=1e-4,
    average_decay=0.0,
)
"""Of the ASD/VSD paper: SGD with momentum 0.9, cosine annealing, best validation accuracy kept.

Network, loss and optimiser are the paper's; what it learns from is not. As in our recipe, batches hold every class and
wall as often, crops are moved and changed in look at random, and a cine has several frames.
"""

RECIPES = {"ours": OURS, "paper": PAPER}


def chosen_recipe(options: DefectOptions) -> DefectRecipe:
    """Return the recipe that ``options`` names, with what else they ask for in its place."""
    recipe = RECIPES[options.recipe]
    network = recipe.network
    head = options.head or network.head
    network = dataclasses.replace(
        network,
        backbone=options.backbone or network.backbone,
        input_size_px=options.image_size or network.input_size_px,
        scale=options.scale or network.scale,
        margin_rad=network.margin_rad if options.margin_rad is None else options.margin_rad,
        head=head,
        sub_centres=SUB_CENTRES if head == "subcenter" else 1,
        cropping=options.cropping or network.cropping,
    )
    return dataclasses.replace(
        recipe,
        network=network,
        epochs=options.epochs or recipe.epochs,
        learning_rate=options.learning_rate or recipe.learning_rate,
        batch_size=options.batch_size or recipe.batch_size,
        frames_per_cine=options.frames_per_cine or recipe.frames_per_cine,
    )


def optimisation(recipe: DefectRecipe, start: Start, options: DefectOptions) -> Recipe:
    """Return the numbers of the optimiser; a training that goes on from such a model learns more slowly."""
    return Recipe(
        epochs=recipe.epochs,
        learning_rate=recipe.learning_rate * start.rate_for(DEFECT_EMBEDDER),
        optimiser=recipe.optimiser,
        weight_decay=recipe.weight_decay,
        average_decay=recipe.average_decay,
        max_minutes=options.max_minutes,
        patience=options.patience or None,
    )
