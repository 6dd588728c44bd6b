# SPDX-License-Identifier: Apache-2.0
"""What the imaging of a phantom heart yields: a grey cine with everything known about it by construction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from echo_plugin.anatomy import Defect, View
from echo_plugin.annotations import SeptalBox
from echo_plugin.cine import ByteArray, UltrasoundRegion


@dataclass(frozen=True)
class PhantomCine:
    """A synthetic cine before a machine draws its overlay and a file format takes it.

    ``pixels`` : (T, H, W) uint8 grey, the sector on black with the margins of the whole picture.
    ``region`` : calibrated, tight round the sector.
    ``phases`` : (T,) float64 in 0..1, the place in the cardiac cycle; 0 = R peak.
    ``boxes`` : true septal boxes, score None.
    ``defect_size_mm`` : the largest diameter; None for a normal heart.
    ``facts`` : how the cine came to be (age_days, septal_dropout, gain_db, depth_mm, ...).
    """

    pixels: ByteArray = field(repr=False)
    region: UltrasoundRegion
    frame_time_ms: float
    phases: NDArray[np.float64] = field(repr=False)
    heart_rate_bpm: float
    view: View
    boxes: tuple[SeptalBox, ...] = field(repr=False)
    defect: Defect
    defect_size_mm: float | None
    facts: Mapping[str, float | str] = field(repr=False)

    def __post_init__(self) -> None:
        if self.pixels.ndim != 3 or self.pixels.dtype != np.uint8:
            msg = f"Phantom cine is {self.pixels.dtype} of shape {self.pixels.shape}; (T, H, W) uint8 is accepted."
            raise ValueError(msg)
        T, H, W = self.pixels.shape
        if self.phases.shape != (T,) or np.any(self.phases < 0) or np.any(self.phases > 1):
            msg = f"Phantom cine of {T} frames has phases {self.phases.shape}; {T} values of 0..1 are accepted."
            raise ValueError(msg)
        if not self.region.is_calibrated or self.region.x2 > W or self.region.y2 > H:
            msg = f"Phantom cine of {W} x {H} px: {self.region} must be calibrated and inside the picture."
            raise ValueError(msg)
        if any(box.frame_index >= T for box in self.boxes):
            msg = f"Phantom cine of {T} frames has a box beyond its last frame."
            raise ValueError(msg)
        if (self.defect is Defect.NORMAL) != (self.defect_size_mm is None):
            msg = f"Phantom cine: {self.defect.value} with size {self.defect_size_mm}; a size with a defect, else None."
            raise ValueError(msg)
