# SPDX-License-Identifier: Apache-2.0
"""Verification and retrieval of held-out cines and children, by several protocols side by side.

The paper's pairs are of pictures that show the diagnosis, compared by their embeddings. Many cines of a child do not
show it, so pairs of those that do, by plain embeddings, are the figure beside the paper's. Similar cases are found by
class probabilities: these of the same cines, of all cines by diagnosis, and of whole children stand beside it, so that
neither the choice of pairs nor of vectors hides anything. All pairs are of different patients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from echo_plugin.defects import verification
from echo_plugin.defects.held_out_answers import Answers, PatientAnswers
from echo_plugin.defects.tables import words
from echo_plugin.metrics import Cohort
from echo_plugin.model_card import Metric

MEASURES = (
    "verification AUC",
    "verification EER",
    *(f"TAR at FAR {target:g}" for target in verification.FAR_TARGETS),
    "P@1",
    "mAP@R",
)


def compare_held_out(
    answers: Answers, patients: PatientAnswers, owners: Sequence[str], split: str, seed: int
) -> tuple[verification.CasePairs, dict[str, Metric], dict[str, Any]]:
    """Return the pairs of cines that show their diagnosis, the figures of every protocol, and their table."""
    own, shows = np.asarray(owners), answers.shows
    protocols = {
        "": (answers.vectors[shows], answers.truth[shows], own[shows]),
        " (plain embeddings)": (answers.embeddings[shows], answers.truth[shows], own[shows]),
        " (all cines)": (answers.vectors, answers.truth, own),
        " (patients)": (patients.vectors, patients.truth, np.asarray(patients.names)),
    }
    named = {
        "": "cines that show their diagnosis, by class probabilities",
        " (plain embeddings)": "the same cines, by plain embeddings, as in the paper",
        " (all cines)": "all cines, by class probabilities, the child's diagnosis for truth",
        " (patients)": "children, by class probabilities of all their cines together",
    }
    metrics, rows = dict[str, Metric](), []
    chosen: verification.CasePairs | None = None
    for suffix, (vectors, truth, names) in protocols.items():
        pairs = verification.cross_patient_pairs(vectors, truth, names.tolist())
        chosen = chosen or pairs
        found = verification.verification_metrics(pairs, split, seed)
        found |= verification.retrieval_metrics(vectors, truth, names.tolist(), split, seed)
        metrics |= {f"{name}{suffix}": metric for name, metric in found.items()}
        cells = [words(found[name]) if name in found else "–" for name in MEASURES]
        rows.append([named[suffix], str(len(truth)), str(int(pairs.is_same.sum())), str(len(pairs.first)), *cells])
    assert chosen is not None
    table = {
        "title": "Same defect type? Pairs of different patients",
        "note": "Chance: AUC and EER 0.5. Cines whose defect lies outside the picture are in the third row alone.",
        "columns": ["what is compared", "cases", "same", "pairs", *MEASURES],
        "rows": rows,
    }
    return chosen, metrics, table


def shown_patient_metrics(cohort: Cohort, patients: PatientAnswers, normal_id: int) -> dict[str, Metric]:
    """Return the accuracy over patients whose defect some cine shows, how many those are, and of drop-out."""
    right = np.asarray(patients.said == patients.truth, dtype=np.float64)
    metrics = {}
    if not patients.is_shown.all() and patients.is_shown.any():
        metrics["accuracy where a cine shows the defect"] = cohort.of(patients.is_shown).mean(right[patients.is_shown])
        metrics["a cine shows the defect, or the heart is normal"] = cohort.mean(patients.is_shown.astype(np.float64))
    normal = (patients.truth == normal_id) & patients.has_dropout
    if normal.any():
        metrics["called Normal, with drop-out on some cine"] = cohort.of(normal).mean(right[normal])
    return metrics


def agreement_table(cohort: Cohort, patients: PatientAnswers) -> dict[str, Any]:
    """Return how often children are answered rightly by how many of their views agree: the paper's multi-view check."""
    right = np.asarray(patients.said == patients.truth, dtype=np.float64)
    groups = {
        "all that can show it agree": patients.agreement >= 1,
        "half or more of them": (patients.agreement >= 0.5) & (patients.agreement < 1),
        "fewer": patients.agreement < 0.5,
        "no cine can show it, or no answer": np.isnan(patients.agreement),
    }
    rows = [
        [name, str(int(place.sum())), words(cohort.of(place).mean(right[place]))]
        for name, place in groups.items()
        if place.any()
    ]
    columns = ["views that call the child's defect so", "patients", "accuracy"]
    return {"title": "Do the views of a child agree?", "note": "", "columns": columns, "rows": rows}
