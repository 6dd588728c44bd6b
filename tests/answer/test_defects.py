# SPDX-License-Identifier: Apache-2.0
"""What is said of a cine when one of its walls looks like a defect that it cannot have; nothing is trained."""

import pytest
import torch

from echo_plugin.anatomy import Defect, Septum
from echo_plugin.annotations import DefectPrediction
from echo_plugin.answer.defect_rule import DefectRule
from echo_plugin.answer.defects import SeptalCrop, answer, join_crops
from echo_plugin.model_card import DefectDecision
from echo_plugin.models.defect_embedder import DefectEmbedder
from echo_plugin.network_config import EmbedderConfig

ATRIAL, VENTRICULAR = Septum.INTERATRIAL, Septum.INTERVENTRICULAR


@torch.inference_mode()
def said_of(looks: dict[Septum, str], classes: tuple[str, ...] = ("Normal", "ASD", "VSD")) -> DefectPrediction:
    """Return the answer to a cine with one crop of each wall, which looks exactly like the class that is named."""
    torch.manual_seed(0)
    embedder = DefectEmbedder(EmbedderConfig(input_size_px=64, classes=len(classes))).eval()
    embedder.centres.copy_(torch.eye(*embedder.centres.shape))
    rule = DefectRule(embedder, DefectDecision(focus=1.0), classes.index("Normal"))
    crops = [SeptalCrop(0, (0.0, 0.0, 10.0, 10.0), septum, 1.0) for septum in looks]
    each = embedder.centres.T[[classes.index(name) for name in looks.values()]]
    return answer(rule, classes, crops, join_crops(rule, classes, crops, each, None), None)


@pytest.mark.parametrize("classes", [("Normal", "ASD", "VSD"), ("VSD", "ASD", "Normal")])
def test_a_wall_that_looks_like_what_it_cannot_have_does_not_speak_for_it(classes: tuple[str, ...]) -> None:
    for looks in ({ATRIAL: "Normal", VENTRICULAR: "ASD"}, {VENTRICULAR: "Normal", ATRIAL: "VSD"}):
        found = said_of(looks, classes)

        assert found.defect is Defect.NORMAL
        assert found.probabilities[Defect.NORMAL] > 0.9


def test_a_wall_that_looks_like_what_it_cannot_have_does_not_hide_the_other_one() -> None:
    found = said_of({ATRIAL: "ASD", VENTRICULAR: "ASD"})

    assert found.defect is Defect.ASD
    assert found.probabilities[Defect.ASD] > 0.9


@pytest.mark.parametrize("classes", [("Normal", "ASD", "VSD"), ("VSD", "ASD", "Normal")])
def test_a_defect_that_no_wall_of_the_cine_can_have_is_never_the_answer(classes: tuple[str, ...]) -> None:
    found = said_of({VENTRICULAR: "ASD"}, classes)

    assert found.defect is not Defect.ASD
    assert found.probabilities[Defect.ASD] == 0
    assert sum(found.probabilities.values()) == pytest.approx(1)


def test_a_wall_that_can_have_none_of_the_defects_takes_no_attention_from_one_that_can() -> None:
    alone, with_other = (
        said_of(looks, ("Normal", "ASD")) for looks in ({ATRIAL: "Normal"}, {ATRIAL: "Normal", VENTRICULAR: "ASD"})
    )

    assert with_other.probabilities == pytest.approx(alone.probabilities)
    assert with_other.defect is Defect.NORMAL


def test_a_wall_with_what_it_can_have_speaks_for_the_cine() -> None:
    for looks, defect in (({ATRIAL: "ASD", VENTRICULAR: "Normal"}, Defect.ASD), ({VENTRICULAR: "VSD"}, Defect.VSD)):
        found = said_of(looks)

        assert found.defect is defect
        assert found.probabilities[defect] > 0.9
