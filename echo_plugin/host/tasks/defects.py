# SPDX-License-Identifier: Apache-2.0
"""The task ``defects``: the likely septal defect of the cine, with its evidence."""

from __future__ import annotations

from echo_plugin.anatomy import DEFECT_SEPTA, DEFECTS
from echo_plugin.host.infer_task import Shown, TaskDescription
from echo_plugin.prediction import CinePrediction


def show_defect(prediction: CinePrediction) -> Shown:
    """Return the defect with probability and angle, as ``ASD 0.91 (41 deg)``, beside its wall; no ROI to submit."""
    defect = prediction.defect
    if defect is None:
        return Shown()
    caption = f"{defect.defect.value} {defect.probability:.2f} ({defect.angles_deg[defect.defect]:.0f} deg)"
    if defect.abstained is not None:
        return Shown(caption=f"abstained: {defect.abstained}")
    if defect.is_whole_frame:
        caption += ", no septum found: whole frames were compared"
    own = tuple(box for box in prediction.boxes if box.septum in DEFECT_SEPTA.get(defect.defect, ()))
    return Shown(caption=caption, beside=own or prediction.boxes)


DEFECT = TaskDescription(
    title="Septal defect: Normal, ASD or VSD",
    model="defect_embedder",
    labels=[defect.value for defect in DEFECTS],
    predicts=("boxes", "defect"),
    show=show_defect,
)
