# SPDX-License-Identifier: Apache-2.0
"""How the view classifier is optimised and how its pictures are varied: our recipe and that of the fetal paper.

Batches are (B, T, S, S) float 0..1; what is random is drawn once for a clip, whose frames are changed alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from echo_plugin.training.appearance import change_appearance
from echo_plugin.training.augment import VIEW_MOTION, compose, random_affines, uniform, warp
from echo_plugin.training.options import TrainOptions

PLAIN = 0.1
"""Part of the training clips whose look is left as it is, in our recipe."""
CROP_ATTEMPTS = 10
"""Of torchvision's RandomResizedCrop, before it takes the whole picture."""


def vary_as_ours(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Return clips turned, moved and with another look; left and right are not exchanged."""
    is_plain = (torch.rand(len(pixels), generator=generator) < PLAIN).to(pixels.device)[:, None, None, None]
    pixels = torch.where(is_plain, pixels, change_appearance(pixels, generator))
    size = pixels.shape[-1]
    return warp(pixels, random_affines(len(pixels), size, VIEW_MOTION, generator), size)


def mirrored(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Return clips of which half, drawn at random, are exchanged left and right."""
    is_flipped = (torch.rand(len(pixels), generator=generator) < 0.5).to(pixels.device)[:, None, None, None]
    return torch.where(is_flipped, pixels.flip(-1), pixels)


def vary_as_usf_mae(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Return clips rotated by 0 to 90 degrees, flipped both ways half the time, and cropped at random.

    A fetus lies as it likes, so no view of it depends on a side.
    """
    count, side = len(pixels), pixels.shape[-1]
    angle = uniform(count, 0, math.pi / 2, generator)
    cos, sin = angle.cos(), angle.sin()
    flips = 1 - 2 * (torch.rand(count, 2, generator=generator) < 0.5).float()
    rotation = torch.stack([torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)], 1)
    linear = flips[:, :, None] * rotation
    middle = torch.full((count, 2, 1), side / 2)
    turned = torch.cat([linear, middle - linear @ middle], dim=2)
    return warp(pixels, compose(resized_crops(count, side, generator), turned), side)


def resized_crops(count: int, side_px: int, generator: torch.Generator) -> Tensor:
    """Return (count, 2, 3) affines of torchvision's RandomResizedCrop with scale (0.5, 2), the fetal paper's.

    More than the whole area is asked for two times in three; what does not fit is drawn again, and in the end the whole
    picture is taken.
    """
    area = side_px**2 * (torch.rand(count, CROP_ATTEMPTS, generator=generator) * 1.5 + 0.5)
    ratio = ((torch.rand(count, CROP_ATTEMPTS, generator=generator) * 2 - 1) * math.log(4 / 3)).exp()
    sides = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], dim=2).round()  # (count, tries, w and h)
    fits = (sides <= side_px).all(dim=2)
    first = fits.float().argmax(dim=1)
    chosen = sides[torch.arange(count), first]
    chosen = torch.where(fits.any(dim=1)[:, None], chosen, torch.full_like(chosen, float(side_px)))
    corner = (torch.rand(count, 2, generator=generator) * (side_px - chosen + 1)).floor()
    scale = side_px / chosen
    return torch.cat([torch.diag_embed(scale), (-corner * scale)[:, :, None]], dim=2)


@dataclass(frozen=True, kw_only=True)
class ViewRecipe:
    """The numbers of one way to train views; ``clip_rate`` : learning rate of the second stage, as a part."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    warm_up: float
    clip_norm: float
    smoothing: float
    vary: Callable[[Tensor, torch.Generator], Tensor]
    clip_rate: float = 1 / 3
    border: float = 0.0
    """Part of the side that is cut off all round; ``ViewConfig`` carries it to predictions."""


RECIPES = {
    "ours": ViewRecipe(
        epochs=40,
        batch_size=32,
        learning_rate=1e-3,
        weight_decay=0.05,
        warm_up=0.05,
        clip_norm=5.0,
        smoothing=0.05,  # neighbouring views shade over
        vary=vary_as_ours,
    ),
    "usf-mae": ViewRecipe(
        epochs=120,
        batch_size=64,
        learning_rate=5e-4,
        weight_decay=0.01,
        warm_up=0.1,
        clip_norm=1.0,
        smoothing=0.0,
        vary=vary_as_usf_mae,
        border=0.05,
    ),
}
"""The fetal paper's (arXiv 2512.24492) warm-up and clipping are from its authors' code; how wide the border is, it
does not say. Our own pictures are cut at the ultrasound region before, so no text is left for it to cut."""


def view_recipe(options: TrainOptions) -> ViewRecipe:
    """Return the recipe that the options name.

    Raises
    ------
    ValueError
        If it is none for views.
    """
    if options.recipe not in RECIPES:
        msg = f"Recipe {options.recipe!r} is none for views; {', '.join(RECIPES)} are accepted."
        raise ValueError(msg)
    recipe = RECIPES[options.recipe]
    if not options.mirror:
        return recipe
    return replace(recipe, vary=lambda pixels, generator: recipe.vary(mirrored(pixels, generator), generator))
