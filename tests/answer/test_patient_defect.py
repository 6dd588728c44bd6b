# SPDX-License-Identifier: Apache-2.0
import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echo_plugin.anatomy import Defect, Septum
from echo_plugin.annotations import DefectPrediction, SeptalBox
from echo_plugin.answer.defects import combine_cines
from echo_plugin.answer.prediction import CineEmbedding
from echo_plugin.errors import ModelMismatchError
from echo_plugin.model_card import ModelCard, TrainingCohort
from echo_plugin.network_config import EmbedderConfig

CLASSES = (Defect.NORMAL, Defect.ASD, Defect.VSD)
NOTHING, HOLE = (0.0, -0.3, -0.1), (0.0, 4.0, -0.1)


def said(
    defect: Defect,
    evidence: tuple[float, ...],
    septum: Septum = Septum.INTERATRIAL,
    abstained: str | None = None,
) -> CineEmbedding:
    rest = {d: 0.0 if d is not defect else 1.0 for d in CLASSES}
    crop = SeptalBox(0, 0, 0, 5, 5, septum, 0.9)
    prediction = DefectPrediction(defect, rest, dict.fromkeys(CLASSES, 60.0), (0,), (crop,), abstained=abstained)
    vector = np.eye(3, dtype=np.float32)[CLASSES.index(defect)]
    card = ModelCard("m", "1", "", "", tuple(d.value for d in CLASSES), EmbedderConfig(), TrainingCohort("", 0, 0, ""))
    return CineEmbedding(vector, vector, np.array(evidence), prediction, card, card)


def test_one_view_with_the_hole_speaks_for_the_child() -> None:
    answer = combine_cines([said(Defect.NORMAL, NOTHING), said(Defect.NORMAL, NOTHING), said(Defect.ASD, HOLE)])

    assert answer.defect is Defect.ASD
    assert answer.agreement == pytest.approx(1 / 3)
    assert (answer.cines, answer.asked) == (3, 3)
    assert sum(answer.probabilities.values()) == pytest.approx(1, abs=1e-9)
    assert answer.probabilities[Defect.ASD] == pytest.approx(np.exp(3.4) / (1 + np.exp(3.4) + np.exp(-0.3)))


def test_views_that_agree_are_said_to() -> None:
    answer = combine_cines([said(Defect.NORMAL, NOTHING)] * 2)

    assert (answer.defect, answer.agreement) == (Defect.NORMAL, 1.0)
    assert answer.similarity == pytest.approx(1.0)


def test_a_wall_that_cannot_have_the_hole_does_not_disagree() -> None:
    answer = combine_cines([said(Defect.ASD, HOLE), said(Defect.NORMAL, NOTHING, Septum.INTERVENTRICULAR)])

    assert (answer.defect, answer.agreement) == (Defect.ASD, 1.0)


def test_withheld_answers_are_passed_over() -> None:
    cines = [said(Defect.ASD, HOLE, abstained="no septum found"), said(Defect.NORMAL, NOTHING)]

    answer = combine_cines(cines)

    assert (answer.defect, answer.cines, answer.asked, answer.similarity) == (Defect.NORMAL, 1, 2, None)
    assert combine_cines(cines[:1]) is None


@given(st.permutations(range(4)))
def test_the_order_of_cines_does_not_matter(order: list[int]) -> None:
    cines = [said(Defect.NORMAL, (0.0, 0.1 * k, -0.2 * k)) for k in range(4)]

    first, second = combine_cines(cines), combine_cines([cines[place] for place in order])

    assert first.probabilities[Defect.ASD] == pytest.approx(second.probabilities[Defect.ASD], abs=1e-12)


def test_an_answer_in_words_and_json_says_how_many_views_agree() -> None:
    answer = combine_cines([said(Defect.NORMAL, NOTHING), said(Defect.ASD, HOLE)])

    assert answer.describe() == "ASD 0.96 from 2 of 2 cines; 50% of those that can show it say so."
    assert answer.to_json()["agreement"] == 0.5
    assert set(answer.to_json()["probabilities"]) == {"Normal", "ASD", "VSD"}


def test_evidence_of_two_networks_is_not_added() -> None:
    before, after = said(Defect.ASD, HOLE), said(Defect.NORMAL, NOTHING)
    after = dataclasses.replace(after, embedder=dataclasses.replace(after.embedder, sha256="e" * 64))

    with pytest.raises(ModelMismatchError, match="replaced while 2 cines of a patient were read"):
        combine_cines([before, after])
