# SPDX-License-Identifier: Apache-2.0
"""From a cine's pixels to what a model sees, and boxes both ways: the one path of training and prediction.

Tissue region -> square with black borders -> antialiased resize -> luma grey: (N, S, S) uint8. ``normalise`` makes it
(N, 1, S, S) float. What lies outside the tissue region (text, ECG, names) never gets here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from echo_plugin.annotations import SeptalBox
from echo_plugin.cine import ByteArray, Cine, UltrasoundRegion
from echo_plugin.io.sector import tissue_region

GREY_MEAN, GREY_STD = 0.15, 0.2
"""Of the 0..1 grey levels in a padded sector; round numbers, since batch normalisation follows."""

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in (0028,0004) YBR_FULL

CONTEXT_MARGIN = 0.25
"""Added on every side of the box round the septa, as a part of its longer side: the defect network sees neighbours."""


@dataclass(frozen=True)
class FrameMapping:
    """Where the model's square lies in the file: model px = (file px - origin) * scale, in both directions.

    ``left, top`` : file px of the square's upper left corner, negative when the border is there. ``side_px`` : of the
    square, file px. ``size_px`` : of the model's input. ``region`` : file px (x1, y1, x2, y2) that is not border.
    """

    left: int
    top: int
    side_px: int
    size_px: int
    region: tuple[int, int, int, int]

    @property
    def scale(self) -> float:
        """Model px per file px."""
        return self.size_px / self.side_px

    def to_model(self, boxes: NDArray[np.float64] | Sequence[SeptalBox]) -> NDArray[np.float64]:
        """Return (N, 4) XYXY px of the model's input for boxes in px of the file."""
        return (_corners(boxes) - self._origin) * self.scale

    def to_pixels(self, boxes: NDArray[np.float64] | Sequence[SeptalBox]) -> NDArray[np.float64]:
        """Return (N, 4) XYXY px of the file for boxes in px of the model's input."""
        return _corners(boxes) / self.scale + self._origin

    @property
    def _origin(self) -> NDArray[np.float64]:
        return np.array([self.left, self.top, self.left, self.top], dtype=np.float64)


def map_region(region: UltrasoundRegion, height: int, width: int, size_px: int) -> FrameMapping:
    """Return the mapping of the smallest square round a region of an (H, W) frame to a side of ``size_px``."""
    x1, y1 = math.floor(region.x1), math.floor(region.y1)
    x2, y2 = min(math.ceil(region.x2), width), min(math.ceil(region.y2), height)
    side = max(x2 - x1, y2 - y1)
    left, top = x1 - (side - (x2 - x1)) // 2, y1 - (side - (y2 - y1)) // 2
    return FrameMapping(left, top, side, size_px, (x1, y1, x2, y2))


def to_model_input(
    cine: Cine,
    frame_indices: Sequence[int],
    size_px: int,
    *,
    region: UltrasoundRegion | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, FrameMapping]:
    """Return (N, S, S) uint8 grey frames on ``device``, and the mapping of boxes.

    Parameters
    ----------
    cine
        Only the asked frames are decoded.
    frame_indices
        0-based; none gives an empty (0, S, S) tensor.
    region
        The tissue region; None: found by ``io.sector.tissue_region``.
    """
    if region is None:
        region = tissue_region(cine)
    frames = cine.read_frames(frame_indices)
    mapping = map_region(region, cine.height, cine.width, size_px)
    return square_frames(frames, mapping, device=device), mapping


def square_frames(frames: ByteArray, mapping: FrameMapping, *, device: torch.device | str = "cpu") -> Tensor:
    """Return (N, S, S) uint8 grey squares of (N, H, W, C) frames as ``mapping`` cuts them."""
    x1, y1, x2, y2 = mapping.region
    cut = torch.from_numpy(np.ascontiguousarray(frames[:, y1:y2, x1:x2])).to(device)
    N, H, W, C = cut.shape
    square = cut.new_zeros((N, mapping.side_px, mapping.side_px, C))
    square[:, y1 - mapping.top : y1 - mapping.top + H, x1 - mapping.left : x1 - mapping.left + W] = cut
    return _resize_to_grey(square, mapping.size_px)


def septal_square(boxes: Sequence[SeptalBox], margin: float = CONTEXT_MARGIN) -> tuple[float, float, float, float]:
    """Return the square (x1, y1, x2, y2) px round the union of one frame's boxes, with context on every side.

    Raises
    ------
    ValueError
        If there is no box.
    """
    if not boxes:
        msg = "No septal box to crop around; at least one is accepted."
        raise ValueError(msg)
    corners = _corners(boxes)
    (x1, y1), (x2, y2) = corners[:, :2].min(axis=0), corners[:, 2:].max(axis=0)
    side = max(x2 - x1, y2 - y1) * (1 + 2 * margin)
    centre_x, centre_y = (x1 + x2) / 2, (y1 + y2) / 2
    return centre_x - side / 2, centre_y - side / 2, centre_x + side / 2, centre_y + side / 2


def crop_square(
    frame: ByteArray,
    square: tuple[float, float, float, float],
    size_px: int,
    *,
    region: UltrasoundRegion | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return the (S, S) uint8 grey cut-out of one (H, W, C) frame.

    ``square`` : XYXY px from `septal_square`, rounded to whole px, black where it leaves the picture or ``region``.
    """
    H, W = frame.shape[:2]
    left, top = round(square[0]), round(square[1])
    side = max(round(square[2] - square[0]), 1)
    inside = (0.0, 0.0, float(W), float(H)) if region is None else (region.x1, region.y1, region.x2, region.y2)
    x1, y1 = max(left, math.floor(inside[0])), max(top, math.floor(inside[1]))
    x2, y2 = min(left + side, math.ceil(inside[2]), W), min(top + side, math.ceil(inside[3]), H)
    mapping = FrameMapping(left, top, side, size_px, (x1, y1, max(x1, x2), max(y1, y2)))
    if x2 <= x1 or y2 <= y1:
        return torch.zeros((size_px, size_px), dtype=torch.uint8, device=device)
    return square_frames(frame[None], mapping, device=device)[0]


def whole_square(cine: Cine, region: UltrasoundRegion) -> tuple[float, float, float, float]:
    """Return the square that `to_model_input` shows: what the defect network sees when no septum was found."""
    mapping = map_region(region, cine.height, cine.width, 32)
    return (
        float(mapping.left),
        float(mapping.top),
        float(mapping.left + mapping.side_px),
        float(mapping.top + mapping.side_px),
    )


def normalise(frames: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return (..., 1, S, S) floats of mean about 0 and deviation about 1 for (..., S, S) uint8 grey frames."""
    scale, shift = 1.0 / (255.0 * GREY_STD), GREY_MEAN / GREY_STD
    return (frames.float() * scale - shift).to(dtype).unsqueeze(-3)


def best_boxes(boxes: Sequence[SeptalBox]) -> dict[int, list[SeptalBox]]:
    """Return by frame index the best-scoring box of each septum; a person's box (no score) beats any score."""
    best: dict[tuple[int, str], SeptalBox] = {}
    for box in boxes:
        key = (box.frame_index, box.septum.value)
        if key not in best or _rank(box) > _rank(best[key]):
            best[key] = box
    frames: dict[int, list[SeptalBox]] = {}
    for frame_index, septum in sorted(best):
        frames.setdefault(frame_index, []).append(best[frame_index, septum])
    return frames


def _rank(box: SeptalBox) -> float:
    return 2.0 if box.score is None else box.score


def _corners(boxes: NDArray[np.float64] | Sequence[SeptalBox]) -> NDArray[np.float64]:
    if isinstance(boxes, np.ndarray):
        return boxes.astype(np.float64).reshape(-1, 4)
    return np.array([[b.x1, b.y1, b.x2, b.y2] for b in boxes], dtype=np.float64).reshape(-1, 4)


def _resize_to_grey(square: Tensor, size_px: int) -> Tensor:
    """Return (N, S, S) uint8 for (N, side, side, C) uint8; grey is made after the resize, where pixels are few."""
    pixels = square.permute(0, 3, 1, 2)  # (N, C, side, side), channels last in memory: the fast path for bytes
    if not pixels.shape[0]:
        return pixels.new_zeros((0, size_px, size_px))
    if pixels.shape[-1] != size_px:
        if pixels.device.type != "cpu":  # bytes are resized on the CPU only
            pixels = pixels.float()
        pixels = interpolate(pixels, (size_px, size_px), mode="bilinear", antialias=True, align_corners=False)
    if pixels.shape[1] == 3:
        weights = torch.tensor(LUMA, device=pixels.device).reshape(1, 3, 1, 1)
        pixels = (pixels.float() * weights).sum(dim=1, keepdim=True)
    if pixels.is_floating_point():
        pixels = pixels.round().clamp(0, 255)
    return pixels[:, 0].to(torch.uint8)
