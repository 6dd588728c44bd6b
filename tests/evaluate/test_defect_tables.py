# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import numpy as np
import pytest

from echo_plugin.evaluate.defect_tables import PAPER, beside_paper
from echo_plugin.evaluate.defects import compare_held_out
from echo_plugin.model_card import Metric

pytestmark = pytest.mark.heavy


def metric(value):
    return Metric(value, None, None, 10, "test", 0.5)


def test_embeddings_stand_beside_the_papers_verification_and_class_probabilities_beside_nothing():
    found = {
        "verification AUC": metric(0.91),
        "verification AUC (patients)": metric(0.92),
        "verification AUC (plain embeddings)": metric(0.71),
    }

    rows = beside_paper(found)["rows"]

    published = PAPER["verification AUC (plain embeddings)"]
    assert published == ("0.976", "0.930", "0.962")
    assert rows == [
        ["verification AUC (plain embeddings)", "0.710", "–", "0.500", *published],
        ["verification AUC (class probabilities)", "0.910", "0.920", "0.500", "–", "–", "–"],
    ]


def test_every_protocol_of_verification_says_by_what_cines_are_compared():
    rng = np.random.default_rng(0)
    truth, names = np.arange(12) % 3, [f"p{number}" for number in range(12)]
    unit = np.eye(3)[truth]
    drawn = rng.normal(size=(12, 8))
    answers = SimpleNamespace(
        shows=np.ones(12, dtype=bool),
        truth=truth,
        vectors=unit,
        embeddings=drawn / np.linalg.norm(drawn, axis=1, keepdims=True),
    )
    patients = SimpleNamespace(vectors=unit, truth=truth, names=tuple(names))

    _, metrics, table = compare_held_out(answers, patients, names, "test", 0)

    by_embeddings = [row for row in table["rows"] if "by plain embeddings, as in the paper" in row[0]]
    assert len(by_embeddings) == 1
    assert all("by class probabilities" in row[0] for row in table["rows"] if row not in by_embeddings)
    assert metrics["verification AUC"].value == 1.0 > metrics["verification AUC (plain embeddings)"].value
