# SPDX-License-Identifier: Apache-2.0
"""Which cut-outs of a cine the defect network sees, and which defects each of them can show.

"walls": every septum has a square of its own, so that a hole of few millimetres is many pixels wide, and a crop is
labelled by what that wall can have: an interatrial crop shows an ASD or a normal wall, never a VSD.
"union": one square round both septa, as the ASD/VSD paper crops.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from echo_plugin.anatomy import DEFECT_SEPTA, DETECTED_SEPTA, SEPTAL_VIEWS, Defect, Septum, View
from echo_plugin.annotations import SeptalBox
from echo_plugin.boxes.tracks import choose_frames
from echo_plugin.cine import Cine, UltrasoundRegion
from echo_plugin.io.sector import tissue_region
from echo_plugin.preprocess import CONTEXT_MARGIN, crop_square, septal_square, whole_square

WALLS, UNION = "walls", "union"
CROPPINGS = (WALLS, UNION)


@dataclass(frozen=True)
class SeptalCrop:
    """One square that is embedded: px of the file; ``septum`` : the wall; None: both, or the whole frame.

    ``score`` : of the detector, for weighing; 1 for boxes drawn by a person and for whole frames.
    """

    frame_index: int
    square: tuple[float, float, float, float]
    septum: Septum | None
    score: float
    is_whole_frame: bool = False

    @property
    def box(self) -> SeptalBox:
        """The square as a box that viewers can draw."""
        return SeptalBox(self.frame_index, *self.square, self.septum or Septum.UNSPECIFIED, self.score)


def choose_crops(
    boxes: Mapping[int, Sequence[SeptalBox]],
    frame_indices: Sequence[int],
    count: int,
    *,
    cropping: str,
    margin: float = CONTEXT_MARGIN,
) -> list[SeptalCrop]:
    """Return the crops of a cine by frame; empty when no septum was boxed.

    ``boxes`` : by frame index, as `preprocess.best_boxes` gives them. ``count`` : at most so many frames of each wall,
    of each equal part of the cine the best scored.
    """
    if cropping == UNION:
        chosen = choose_frames(boxes, frame_indices, count) if boxes else {}
        return [_crop(frame, found, None, margin) for frame, found in chosen.items()]
    crops = []
    for septum in DETECTED_SEPTA:
        own = {f: [b for b in found if b.septum is septum] for f, found in boxes.items()}
        own = {f: found for f, found in own.items() if found}
        if own:
            chosen = choose_frames(own, frame_indices, count)
            crops += [_crop(frame, found, septum, margin) for frame, found in chosen.items()]
    return sorted(crops, key=lambda crop: crop.frame_index)


def whole_frames(cine: Cine, region: UltrasoundRegion, frame_indices: Sequence[int], count: int) -> list[SeptalCrop]:
    """Return ``count`` whole frames evenly spread: what is embedded when no septum was found."""
    square = whole_square(cine, region)
    return [SeptalCrop(f, square, None, 1.0, is_whole_frame=True) for f in choose_frames({}, frame_indices, count)]


def cut_crops(
    cine: Cine,
    crops: Sequence[SeptalCrop],
    size_px: int,
    *,
    region: UltrasoundRegion | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return (N, S, S) uint8 grey: the pixels of the crops; each frame is decoded once."""
    if not crops:
        return torch.zeros((0, size_px, size_px), dtype=torch.uint8, device=device)
    region = region or tissue_region(cine)
    frames = sorted({crop.frame_index for crop in crops})
    pixels = dict(zip(frames, cine.read_frames(frames), strict=True))
    return torch.stack(
        [crop_square(pixels[crop.frame_index], crop.square, size_px, region=region, device=device) for crop in crops]
    )


def can_show(septum: Septum | None, defect: Defect) -> bool:
    """Whether a crop of this wall (None: of both) can show that defect; Normal always."""
    return septum is None or defect is Defect.NORMAL or septum in DEFECT_SEPTA[defect]


def shown_classes(crops: Sequence[SeptalCrop], classes: Sequence[Defect]) -> Tensor:
    """Return (N, K) bool: which of the classes each crop can show."""
    rows = [[can_show(crop.septum, defect) for defect in classes] for crop in crops]
    return torch.tensor(rows, dtype=torch.bool).reshape(len(crops), len(classes))


def imaged_septa(septa: Iterable[Septum], view: View | None) -> tuple[Septum, ...]:
    """Return those of the boxed septa that ``view`` ordinarily images; all of them where no view was said."""
    boxed = set(septa)
    return tuple(s for s in DETECTED_SEPTA if s in boxed and (view is None or view in SEPTAL_VIEWS[s]))


def _crop(frame_index: int, boxes: Sequence[SeptalBox], septum: Septum | None, margin: float) -> SeptalCrop:
    score = max(1.0 if box.score is None else box.score for box in boxes)
    return SeptalCrop(frame_index, septal_square(boxes, margin), septum, score)
