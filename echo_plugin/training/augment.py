# SPDX-License-Identifier: Apache-2.0
"""Moving frames and their boxes by one random affine; how frames look is changed in ``appearance``.

Batches are (B, C, S, S) float 0..1: C = 1 for stills, C = T for clips, whose frames therefore always move together.
Affines are (B, 2, 3), map (x, y, 1) px of the frame that comes in to px of the one that goes out, in the continuous
coordinates of ``geometry`` (grid_sample with align_corners=False has the same ones).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, grid_sample, interpolate


@dataclass(frozen=True)
class Motion:
    """How far frames may be moved: half-ranges, all drawn uniformly.

    ``shift`` is a part of the side; ``scale`` and ``stretch`` are ratios (0.25: from 1/1.25 to 1.25, even in the log).
    ``mirror`` is the probability of a left-right reflection: 0 for views, where the side is the diagnosis.
    """

    rotation_deg: float = 10.0
    scale: float = 0.25
    stretch: float = 0.08
    shift: float = 0.15
    mirror: float = 0.0


# RetinaNet of the ASD/VSD paper: reflection, rotation +-10 degrees, scale +-15 %; shifts are ours: the heart of a real
# cine is rarely where the phantom's is
DETECTOR_MOTION = Motion(rotation_deg=15.0, scale=0.35, stretch=0.12, shift=0.22, mirror=0.5)
CROP_MOTION = Motion(rotation_deg=12.0, scale=0.18, stretch=0.06, shift=0.08, mirror=0.5)
VIEW_MOTION = Motion(rotation_deg=15.0, scale=0.25, stretch=0.08, shift=0.12, mirror=0.0)


def uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Return (count,) float32 values of low..high."""
    return torch.rand(count, generator=generator) * (high - low) + low


def random_affines(count: int, side_px: float, motion: Motion, generator: torch.Generator) -> Tensor:
    """Return (count, 2, 3) affines about the middle of a ``side_px`` wide square."""
    angle = uniform(count, -1, 1, generator) * math.radians(motion.rotation_deg)
    scale = (uniform(count, -1, 1, generator) * math.log1p(motion.scale)).exp()
    stretch = (uniform(count, -1, 1, generator) * math.log1p(motion.stretch)).exp()
    flip = 1.0 - 2.0 * (uniform(count, 0, 1, generator) < motion.mirror).float()
    shift = (torch.rand(count, 2, generator=generator) * 2 - 1) * motion.shift * side_px
    cos, sin = angle.cos(), angle.sin()
    rotation = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    linear = rotation * torch.stack([scale * stretch * flip, scale / stretch], 1)[:, None, :]
    middle = torch.full((count, 2), side_px / 2)
    offset = middle + shift - (linear @ middle[:, :, None])[:, :, 0]
    return torch.cat([linear, offset[:, :, None]], dim=2)


def centre_affines(count: int, side_px: float, out_px: float) -> Tensor:
    """Return (count, 2, 3) affines that keep the scale and bring the middle of one square to that of another."""
    shift = torch.full((2, 1), (out_px - side_px) / 2)
    return torch.cat([torch.eye(2), shift], dim=1).expand(count, 2, 3)


def compose(second: Tensor, first: Tensor) -> Tensor:
    """Return the (B, 2, 3) affines that do ``first`` and then ``second``."""
    linear = second[:, :, :2] @ first[:, :, :2]
    offset = second[:, :, :2] @ first[:, :, 2:] + second[:, :, 2:]
    return torch.cat([linear, offset], dim=2)


def warp(frames: Tensor, affines: Tensor, out_px: int) -> Tensor:
    """Return the (B, C, out_px, out_px) frames moved by ``affines``; what comes from outside is black."""
    B, _, _, S = frames.shape
    linear = torch.linalg.inv(affines[:, :, :2])  # from out to in
    offset = -(linear @ affines[:, :, 2:])
    # x_in = L x_out + o with x = (n + 1) * side / 2 in normalised coordinates n
    scaled = linear * (out_px / S)
    constant = scaled.sum(dim=2, keepdim=True) + offset * (2 / S) - 1
    theta = torch.cat([scaled, constant], dim=2).to(frames)
    steps = (torch.arange(out_px, dtype=frames.dtype, device=frames.device) * 2 + 1) / out_px - 1
    ys, xs = torch.meshgrid(steps, steps, indexing="ij")
    points = torch.stack([xs, ys, torch.ones_like(xs)], dim=2)  # (out, out, 3)
    grid = torch.einsum("hwk,bjk->bhwj", points, theta)
    return grid_sample(frames, grid, mode="bilinear", padding_mode="zeros", align_corners=False).reshape(
        B, -1, out_px, out_px
    )


def move_boxes(boxes: Tensor, affines: Tensor) -> Tensor:
    """Return (B, M, 4) boxes moved by (B, 2, 3) affines: tight around the ellipse that each box holds.

    A wall fills its box like an ellipse, not to the corners; hulls of rotated corners would teach boxes that are
    too wide (Kalra 2021, "Towards rotation invariance in object detection", ICCV). NaN boxes stay NaN.
    """
    centres = (boxes[:, :, :2] + boxes[:, :, 2:]) / 2
    halves = (boxes[:, :, 2:] - boxes[:, :, :2]) / 2
    linear = affines[:, None, :, :2]  # (B, 1, 2, 2)
    moved = (linear @ centres[..., None])[..., 0] + affines[:, None, :, 2]
    extents = ((linear**2) @ (halves**2)[..., None])[..., 0].sqrt()
    return torch.cat([moved - extents, moved + extents], dim=2)


def visible_boxes(boxes: Tensor, side_px: float, *, least: float = 0.4) -> Tensor:
    """Return (B, M, 4) boxes cut to the square; one of which less than ``least`` of its area is inside becomes NaN."""
    cut = boxes.clamp(0.0, float(side_px))
    area = (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1)
    inside = (cut[..., 2:] - cut[..., :2]).prod(dim=-1)
    return torch.where((inside >= least * area)[..., None] & (inside > 0)[..., None], cut, torch.nan)


def spoil(frames: Tensor, generator: torch.Generator, cells: int = 4) -> Tensor:
    """Return (B, C, S, S) frames that hold no anatomy any more: tiles shuffled or blurred beyond recognition, by turns.

    A detector learns from them that brightness and speckle are not enough.
    """
    B, C, S, _ = frames.shape
    tile = S // cells
    spoiled = frames.clone()
    for item in range(B):
        if item % 2:
            coarse = adaptive_avg_pool2d(frames[item : item + 1], 2 * cells)
            spoiled[item] = interpolate(coarse, size=(S, S), mode="bilinear", align_corners=False)[0]
            continue
        tiles = frames[item, :, : tile * cells, : tile * cells].unfold(1, tile, tile).unfold(2, tile, tile)
        order = torch.randperm(cells * cells, generator=generator)
        shuffled = tiles.reshape(C, cells * cells, tile, tile)[:, order].reshape(C, cells, cells, tile, tile)
        spoiled[item, :, : tile * cells, : tile * cells] = shuffled.permute(0, 1, 3, 2, 4).reshape(
            C, tile * cells, tile * cells
        )
    return spoiled
