# SPDX-License-Identifier: Apache-2.0
"""The ways to train the defect embedder: ours, and that of the ASD/VSD paper."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from echo_plugin.defects.septal_crops import UNION, WALLS
from echo_plugin.models.checkpoint import DEFECT_EMBEDDER
from echo_plugin.models.defect_embedder import EmbedderConfig
from echo_plugin.training.options import TrainOptions
from echo_plugin.training.recipe import Recipe
from echo_plugin.training.start_weights import Start

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
    """Batches in which the head is learned anew on what the backbone has learned (``defect_head``); 0: it is not."""


OURS = DefectRecipe(
    EmbedderConfig(input_size_px=128, margin_rad=0.1, is_standardised=True, cropping=WALLS, focus=FIRST_FOCUS),
    epochs=30,
    learning_rate=5e-4,
    optimiser="adamw",
    weight_decay=0.05,
    average_decay=0.995,
    head_steps=500,
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


def chosen_recipe(options: TrainOptions) -> DefectRecipe:
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


def optimisation(recipe: DefectRecipe, start: Start, options: TrainOptions) -> Recipe:
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
