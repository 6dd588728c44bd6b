# SPDX-License-Identifier: Apache-2.0
"""The task ``defects``: the likely septal defect of the cine, with its evidence."""

from __future__ import annotations

from echo_plugin.anatomy import DEFECTS
from echo_plugin.host.infer_task import Shown, TaskDescription
from echo_plugin.prediction import CinePrediction


def show_defect(prediction: CinePrediction) -> Shown:
    """Return the defect with probability and angle as text, such as ``ASD 0.91 (41 deg)``; no ROI to be submitted."""
    defect = prediction.defect
    if defect is None:
        return Shown()
    caption = f"{defect.defect.value} {defect.probability:.2f} ({defect.angles_deg[defect.defect]:.0f} deg)"
    if defect.abstained is not None:
        return Shown(caption=f"abstained: {defect.abstained}")
    if defect.is_whole_frame:
        caption += ", no septum found: whole frames were compared"
    return Shown(caption=caption)


DEFECT = TaskDescription(
    title="Septal defect: Normal, ASD or VSD",
    model="defect_embedder",
    labels=[defect.value for defect in DEFECTS],
    predicts=("boxes", "defect"),
    show=show_defect,
)
