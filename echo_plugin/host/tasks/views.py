# SPDX-License-Identifier: Apache-2.0
"""The task ``views``: which standard view the cine shows."""

from __future__ import annotations

from echo_plugin.anatomy import PAEDIATRIC
from echo_plugin.host.infer_task import Shown, TaskDescription
from echo_plugin.prediction import CinePrediction


def show_view(prediction: CinePrediction) -> Shown:
    """Return the view with its probability as text, such as ``A4C 0.97``, and what speaks against it."""
    return Shown() if prediction.view is None else Shown(caption=prediction.view.words)


VIEW = TaskDescription(
    title="Echocardiographic view",
    model="view_classifier",
    labels=[view.value for view in PAEDIATRIC],
    predicts=("view",),
    show=show_view,
)
