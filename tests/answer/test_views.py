# SPDX-License-Identifier: Apache-2.0
import dataclasses

import numpy as np
import pytest
import torch

from echo_plugin.anatomy import View
from echo_plugin.answer.views import answer_view
from echo_plugin.model_card import ModelCard, OpenSetRule, TrainingCohort, ViewDecision
from echo_plugin.models.view_classifier import ViewClassifier
from echo_plugin.network_config import ViewConfig

torch.set_num_threads(1)
CARD = ModelCard(
    "view_classifier",
    "1",
    "view",
    "",
    ("A4C", "A2C", "OTHER"),
    ViewConfig(classes=3, input_size_px=32),
    TrainingCohort("", 0, 0, ""),
)


@pytest.fixture(scope="module")
def classifier() -> ViewClassifier:
    torch.manual_seed(0)
    return ViewClassifier(ViewConfig(classes=3, input_size_px=32)).eval()


@torch.inference_mode()
def test_a_still_is_answered_by_the_classifier_of_single_frames_and_says_so(classifier) -> None:
    clips = torch.randn(1, 1, 1, 32, 32).expand(3, 4, 1, 32, 32)

    answer = answer_view(classifier, CARD, clips, [0], is_still=True)

    assert answer.is_still
    expected = classifier.frame_logits(clips[:1, 0]).softmax(dim=1)[0].tolist()
    assert list(answer.probabilities.values()) == pytest.approx(expected)


@torch.inference_mode()
def test_clips_are_averaged(classifier) -> None:
    clips = torch.randn(3, 4, 1, 32, 32)

    answer = answer_view(classifier, CARD, clips, range(12), is_still=False)

    mean = classifier(clips).softmax(dim=1).mean(dim=0).tolist()
    assert list(answer.probabilities.values()) == pytest.approx(mean)
    assert not answer.is_still


@torch.inference_mode()
@pytest.mark.parametrize(("threshold", "is_standard"), [(2.0, True), (-1.0, False)])
def test_an_answer_above_the_limit_is_no_standard_view(classifier, threshold: float, is_standard: bool) -> None:
    rule = ViewDecision(OpenSetRule("entropy", threshold))
    clips = torch.randn(2, 4, 1, 32, 32)
    two = dataclasses.replace(CARD, classes=("A4C", "A2C", "A5C"), decision=rule)

    assert answer_view(classifier, two, clips, range(8), is_still=False).is_standard is is_standard


@torch.inference_mode()
def test_other_is_no_standard_view_however_sure(classifier) -> None:
    rule = ViewDecision(OpenSetRule("entropy", 2.0))
    clips = torch.randn(2, 4, 1, 32, 32)
    best = int(classifier(clips).softmax(dim=1).mean(dim=0).argmax())
    names = ["A4C", "A2C"]
    names.insert(best, "OTHER")

    answer = answer_view(
        classifier, dataclasses.replace(CARD, classes=tuple(names), decision=rule), clips, range(8), is_still=False
    )

    assert answer.view is View.OTHER
    assert answer.is_standard is False
    assert np.isclose(sum(answer.probabilities.values()), 1.0)


@torch.inference_mode()
def test_the_limit_of_clips_says_nothing_of_a_still(classifier) -> None:
    clips = torch.randn(1, 1, 1, 32, 32).expand(2, 4, 1, 32, 32)
    limited = dataclasses.replace(CARD, decision=ViewDecision(OpenSetRule("entropy", -1.0)))

    assert answer_view(classifier, limited, clips, range(8), is_still=False).is_standard is False
    assert answer_view(classifier, limited, clips, [0], is_still=True).is_standard is None
