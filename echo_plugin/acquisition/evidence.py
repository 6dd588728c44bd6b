# SPDX-License-Identifier: Apache-2.0
"""What the models saw in one cine, as it is kept: enough to say how uncertain they are and what the cine is like.

A few frames spread over the cine are looked at in three ways. What each look found is kept rather than one number, so
that a better calibration needs no model to run again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echo_plugin.anatomy import DETECTED_SEPTA, View

PROBES = 6
"""Frames looked at, evenly spread; a shorter cine has fewer."""

LOOKS = ("as it is", "the frame beside it", "mirrored and brighter")
"""A septum that is surely seen stays where it is in all of them."""

SCORES_SHAPE = (PROBES, len(LOOKS), len(DETECTED_SEPTA))
OVERLAPS_SHAPE = (PROBES, len(LOOKS) - 1, len(DETECTED_SEPTA))
Array = NDArray[Any]


@dataclass(frozen=True)
class CineEvidence:
    """What was found in one cine.

    ``frame_indices`` : (PROBES,) 0-based; -1: the cine is shorter.
    ``scores`` : (PROBES, looks, septa) score of the best box, 0: no box; NaN: not looked at.
    ``overlaps`` : (PROBES, looks - 1, septa) IoU of the best box with that of the first look; NaN: one has no box.
    ``embedding`` : (D,) unit length, of the detector's last features.
    ``view, view_probability`` : None: no view classifier is published.
    """

    frame_indices: Array
    scores: Array
    overlaps: Array
    embedding: Array
    view: View | None = None
    view_probability: float | None = None

    def __post_init__(self) -> None:
        shapes = (self.frame_indices.shape, self.scores.shape, self.overlaps.shape, self.embedding.ndim)
        if shapes != ((PROBES,), SCORES_SHAPE, OVERLAPS_SHAPE, 1):
            msg = f"Evidence has shapes {shapes}; {(PROBES,)}, {SCORES_SHAPE}, {OVERLAPS_SHAPE}, 1 axis are accepted."
            raise ValueError(msg)


def probe_frames(frame_count: int) -> Array:
    """Return (PROBES,) frame indices evenly spread, each from the middle of its part; -1 where there are fewer.

    >>> probe_frames(60).tolist(), probe_frames(2).tolist()
    ([5, 15, 25, 35, 45, 55], [0, 1, -1, -1, -1, -1])
    """
    count = min(frame_count, PROBES)
    chosen = np.full(PROBES, -1, dtype=np.int64)
    chosen[:count] = ((np.arange(count) + 0.5) * frame_count / count).astype(np.int64)
    return chosen
