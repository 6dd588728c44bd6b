# SPDX-License-Identifier: Apache-2.0
"""Random changes of frames: moved with their boxes by one affine, and shown as another machine would show them.

Batches are (B, C, S, S) float 0..1: C = 1 for stills, C = T for clips, whose frames move together and share every
number that is drawn (noise apart, which is new in every frame of a real cine too). Affines are (B, 2, 3), map (x, y, 1)
px of the frame that comes in to px of the one that goes out, in the continuous coordinates of ``geometry`` (grid_sample
with align_corners=False has the same ones). Machines differ in gain, depth, haze, speckle, resolution, sector, shadows
and overlays, and the phantom has one look. The order follows the machine: scatter and beam first, then gain and
compression, then what is drawn over the picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, grid_sample, interpolate, pad


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


DARKEST = 0.12
"""Mean grey level of the echoes below which no gain is taken away: a wall that cannot be seen teaches nothing."""

Draw = Callable[[float, float], Tensor]


def change_appearance(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Return ``frames`` (B, C, S, S) of 0..1 with another look, in 0..1."""
    B = len(frames)

    def draw(low: float, high: float) -> Tensor:
        values = torch.rand(B, 1, 1, 1, generator=generator) * (high - low) + low
        return values.to(frames)

    def chance(probability: float) -> Tensor:
        return (draw(0, 1) < probability).to(frames)

    frames = _change_resolution(frames, draw)
    frames = _add_noise(frames, draw, generator)
    frames = frames * _smooth_field(frames, generator, cells=4).mul(draw(0.0, 0.5)).exp()
    frames = frames * _depth_gain(frames, draw)
    frames = frames + chance(0.5) * _haze(frames, draw, generator)
    frames = frames * (1 - chance(0.35) * draw(0.3, 1.0) * _shadow(frames, draw))
    frames = frames * (1 - chance(0.4) * draw(0.4, 0.97) * _lost_contact(frames, draw))
    frames = _compress(frames.clamp(0, 1), draw, chance)
    frames = frames * (1 - chance(0.35) * (1 - _sector(frames, draw)))
    return _draw_overlays(frames, generator)


def _blur(frames: Tensor, taps: list[float], dim: int) -> Tensor:
    """Convolve along ``dim`` with odd ``taps``: sums of shifted views, ten times as fast as a one-channel conv2d."""
    half, length = len(taps) // 2, frames.shape[dim]
    margins = (0, 0, half, half) if dim == 2 else (half, half, 0, 0)
    padded = pad(frames, margins, mode="replicate")
    total = padded.narrow(dim, 0, length) * taps[0]
    for start, tap in enumerate(taps[1:], start=1):
        total.add_(padded.narrow(dim, start, length), alpha=tap)
    return total


def _gaussian(sigma: float) -> list[float]:
    half = max(1, math.ceil(2 * sigma))
    taps = [math.exp(-0.5 * (step / sigma) ** 2) for step in range(-half, half + 1)]
    return [tap / sum(taps) for tap in taps]


def _change_resolution(frames: Tensor, draw: Draw) -> Tensor:
    """Blend with a blurred copy: beyond 0 smoother, below 0 sharper; across the beam more than along it."""
    fine = _blur(_blur(frames, _gaussian(0.8), 2), _gaussian(1.0), 3)
    wide = _blur(_blur(fine, _gaussian(0.7), 2), _gaussian(2.2), 3)
    frames = frames + draw(-0.6, 1.0) * (fine - frames)
    return (frames + draw(-0.5, 1.0).clamp_min(0) * (wide - frames)).clamp(0, 1)


def _add_noise(frames: Tensor, draw: Draw, generator: torch.Generator) -> Tensor:
    """Add speckle-like noise (grows with the echo, correlated over two pixels) and a little electronic noise."""
    B, C, H, W = frames.shape
    noise = torch.randn(B, C, H // 2, W // 2, generator=generator).to(frames)
    speckle = interpolate(noise, size=(H, W), mode="bilinear", align_corners=False)
    return frames * (1 + draw(-0.3, 0.5).clamp_min(0) * speckle) + draw(-0.03, 0.04).clamp_min(0) * speckle * (
        frames > 0
    )


def _smooth_field(frames: Tensor, generator: torch.Generator, *, cells: int) -> Tensor:
    """Return (B, 1, S, S) smooth noise of about unit size."""
    B, _, H, W = frames.shape
    control = torch.randn(B, 1, cells, cells, generator=generator).to(frames)
    return interpolate(control, size=(H, W), mode="bilinear", align_corners=True)


def _rows_and_columns(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Return (1, 1, S, 1) and (1, 1, 1, S): the place of pixel centres, 0..1."""
    H, W = frames.shape[2:]
    rows = (torch.arange(H, dtype=frames.dtype, device=frames.device) + 0.5) / H
    columns = (torch.arange(W, dtype=frames.dtype, device=frames.device) + 0.5) / W
    return rows.reshape(1, 1, H, 1), columns.reshape(1, 1, 1, W)


def _depth_gain(frames: Tensor, draw: Draw) -> Tensor:
    """Return a time-gain compensation set wrongly: brighter or darker with depth, straight and bent."""
    rows, _ = _rows_and_columns(frames)
    depth = rows * 2 - 1
    return (draw(-0.5, 0.5) * depth + draw(-0.35, 0.35) * (1 - 2 * depth**2)).exp()


def _haze(frames: Tensor, draw: Draw, generator: torch.Generator) -> Tensor:
    """Return reverberation and clutter: a smooth veil inside the sector, stronger near the probe."""
    rows, _ = _rows_and_columns(frames)
    lit = (frames[:, :1, ::4, ::4] > 0.01).to(frames)  # the sector's soft outline needs a quarter of the pixels
    outline = avg_pool2d(lit, 3, stride=1, padding=1)
    inside = interpolate(outline, size=frames.shape[2:], mode="bilinear", align_corners=False)
    veil = (0.5 + 0.5 * _smooth_field(frames, generator, cells=5)).clamp(0, 1.5)
    return inside * veil * draw(0.0, 0.25) * (1 - draw(0.0, 0.9) * rows)


def _polar(frames: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
    """Return angle from straight down (rad) and depth (0..1 of the side) seen from a probe near the top middle."""
    rows, columns = _rows_and_columns(frames)
    x = columns - draw(0.42, 0.58)
    y = rows - draw(-0.06, 0.10)
    return torch.atan2(x, y), torch.hypot(x, y)


def _shadow(frames: Tensor, draw: Draw) -> Tensor:
    """Return a rib or lung shadow: 1 inside a thin fan of beams from some depth on, soft at its sides."""
    angle, depth = _polar(frames, draw)
    width = draw(0.03, 0.16)
    fan = torch.exp(-0.5 * ((angle - draw(-0.6, 0.6)) / width) ** 2)
    return fan * ((depth - draw(0.0, 0.5)) * 12).clamp(0, 1)


def _lost_contact(frames: Tensor, draw: Draw) -> Tensor:
    """Return 0 in the middle to 1 towards the side on which the probe lifts off the chest: there a wall fades out."""
    angle, _ = _polar(frames, draw)
    side = draw(-1, 1).sign()
    return ((side * angle - draw(-0.05, 0.4)) / draw(0.08, 0.5)).clamp(0, 1)


def _sector(frames: Tensor, draw: Draw) -> Tensor:
    """Return 1 inside a sector of another opening and depth, 0 outside: what another probe would have shown."""
    angle, depth = _polar(frames, draw)
    inside = (angle.abs() < draw(0.6, 0.95)) & (depth < draw(0.85, 1.15))
    return inside.to(frames)


def _compress(frames: Tensor, draw: Draw, chance: Callable[[float], Tensor]) -> Tensor:
    """Apply gain, reject and grey curve; often very dark, as real cines of good machines are, but never to nothing."""
    lit = (frames > 0.02).to(frames)
    level = (frames * lit).sum((1, 2, 3), keepdim=True) / lit.sum((1, 2, 3), keepdim=True).clamp_min(1)
    gain = torch.exp(draw(-0.55, 0.4) - chance(0.4) * draw(0.0, 0.7))
    gain = torch.maximum(gain, (DARKEST / level.clamp_min(0.01)).clamp_max(1.6))
    reject = draw(-0.08, 0.12).clamp_min(0)
    gamma = torch.exp(draw(-0.45, 0.6))
    return ((frames * gain - reject) / (1 - reject)).clamp(1e-4, 1) ** gamma


def _draw_overlays(frames: Tensor, generator: torch.Generator, most: int = 3) -> Tensor:
    """Put blocks of text, callipers and scales, striped or filled, over some frames; all frames of a clip alike."""
    B, _, H, W = frames.shape
    frames = frames.clone()
    for item, count in enumerate(torch.randint(-3, most + 1, (B,), generator=generator).tolist()):
        for _ in range(max(count, 0)):
            place = torch.rand(6, generator=generator).tolist()
            h, w = max(2, round((0.01 + 0.05 * place[0]) * H)), max(2, round((0.01 + 0.16 * place[1] ** 2) * W))
            y, x = round(place[2] * (H - h)), round(place[3] * (W - w))
            block = torch.full((h, w), 0.35 + 0.65 * place[4])
            if place[5] < 0.7:
                block = block * (torch.rand(h, (w + 2) // 3, generator=generator) < 0.5).repeat_interleave(3, 1)[:, :w]
            frames[item, :, y : y + h, x : x + w] = block.to(frames)
    return frames
