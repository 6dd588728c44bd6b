# SPDX-License-Identifier: Apache-2.0
"""The task ``similar_cases``: the most similar past cases of other patients, by themselves."""

from __future__ import annotations

from echo_plugin.anatomy import DEFECTS
from echo_plugin.host.infer_task import Shown, TaskDescription
from echo_plugin.prediction import CinePrediction


def show_similar_cases(prediction: CinePrediction) -> Shown:
    """Return the defects of the cases with their similarity as text, such as ``similar: ASD 0.93, Normal 0.71``."""
    if prediction.has_no_septum:
        return Shown(caption="no septum found to compare")
    if not prediction.nearest:
        return Shown(caption="no past cases to compare with yet")
    cases = [f"{near.case.defect.value} {near.similarity:z.2f}" for near in prediction.nearest]
    return Shown(caption=f"similar: {', '.join(cases)}")


SIMILAR_CASES = TaskDescription(
    title="Most similar past cases of other patients",
    model="defect_embedder",
    labels=[defect.value for defect in DEFECTS],
    predicts=("nearest",),
    show=show_similar_cases,
)
