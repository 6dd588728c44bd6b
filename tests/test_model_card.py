# SPDX-License-Identifier: Apache-2.0
"""Model cards refuse what would mislead."""

import dataclasses

import pytest

from echo_plugin.model_card import Metric, ModelCard, TrainingData

CARD = ModelCard(
    name="septal_detector",
    version="1",
    task="boxes",
    architecture="RetinaNet",
    classes=("interatrial", "interventricular"),
    input_size_px=256,
    config={},
    training_data=TrainingData("phantoms only", patients=3, cines=9, digest="0"),
)


def test_a_card_says_what_it_was_trained_on() -> None:
    assert CARD.trained_on == "phantoms only"


@pytest.mark.parametrize("name", ["", "../x", "Septal", "a-b", "1a"])
def test_a_name_that_is_no_file_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="malformed"):
        dataclasses.replace(CARD, name=name)


@pytest.mark.parametrize("classes", [(), ("a", "a")])
def test_classes_must_be_distinct(classes: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="must be distinct"):
        dataclasses.replace(CARD, classes=classes)


def test_a_tiny_input_is_refused() -> None:
    with pytest.raises(ValueError, match="input_size_px is 8"):
        dataclasses.replace(CARD, input_size_px=8)


@pytest.mark.parametrize(("low", "high"), [(0.9, 0.8), (0.5, None), (None, 0.5), (float("nan"), 1.0)])
def test_an_interval_that_is_none_is_refused(low: float | None, high: float | None) -> None:
    with pytest.raises(ValueError, match="two ascending bounds, or None for both, are accepted"):
        Metric(0.8, low, high, patients=3, split="test")


def test_a_number_of_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match="patients is -1; 0 or more"):
        Metric(0.8, None, None, patients=-1, split="test")
    with pytest.raises(ValueError, match="-2 patients and 5 cines"):
        TrainingData("phantoms only", patients=-2, cines=5, digest="0")
