# SPDX-License-Identifier: Apache-2.0
"""The task ``septal_boxes``: a box on each septum, on each frame."""

from __future__ import annotations

from echo_plugin.anatomy import DETECTED_SEPTA
from echo_plugin.host.infer_task import Shown, TaskDescription
from echo_plugin.prediction import CinePrediction


def show_boxes(prediction: CinePrediction) -> Shown:
    """Return the boxes as ROIs; without any, a text that says so: Slicer refuses a file without markups."""
    return Shown(boxes=tuple(prediction.boxes), caption=None if prediction.boxes else "no septum found")


SEPTAL_BOXES = TaskDescription(
    title="Boxes on the atrial and ventricular septum",
    model="septal_detector",
    labels=[septum.value for septum in DETECTED_SEPTA],
    predicts=("boxes",),
    show=show_boxes,
)
