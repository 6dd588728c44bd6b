# SPDX-License-Identifier: Apache-2.0
"""The detector's tensors as septal boxes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from echo_plugin.anatomy import DETECTED_SEPTA
from echo_plugin.annotations import SeptalBox


def rows_on_cpu(results: Sequence[dict[str, Tensor]]) -> list[NDArray[np.float64]]:
    """Return for each frame (N, 6): XYXY, score, class id; all frames leave the device in one copy."""
    rows = [torch.cat([r["boxes"], r["scores"][:, None], r["labels"][:, None].float()], dim=1) for r in results]
    return np.split(torch.cat(rows).double().cpu().numpy(), np.cumsum([len(part) for part in rows])[:-1])


def septal_boxes(frame_index: int, corners: NDArray[np.float64], rows: NDArray[np.float64]) -> list[SeptalBox]:
    """Return the boxes of one frame with an area; ``corners`` (N, 4) are px of the file."""
    return [
        SeptalBox(frame_index, x1, y1, x2, y2, DETECTED_SEPTA[int(label)], min(score, 1.0))
        for (x1, y1, x2, y2), (score, label) in zip(corners.tolist(), rows[:, 4:].tolist(), strict=True)
        if x1 < x2 and y1 < y2
    ]
