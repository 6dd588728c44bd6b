# SPDX-License-Identifier: Apache-2.0
"""Model cards refuse what would mislead."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

from echo_plugin.errors import ModelMismatchError
from echo_plugin.model_card import (
    DefectDecision,
    DetectorDecision,
    LearnedTimes,
    Metric,
    ModelCard,
    OpenSetRule,
    Training,
    TrainingCohort,
    ViewDecision,
    card_from_json,
    card_to_json,
    load_card,
)
from echo_plugin.network_config import DetectorConfig, EmbedderConfig, MaeConfig, ViewConfig

CARD = ModelCard(
    name="septal_detector",
    version="1",
    task="boxes",
    architecture="RetinaNet",
    classes=("interatrial", "interventricular"),
    network=DetectorConfig(input_size_px=256),
    cohort=TrainingCohort("phantoms only", patients=3, cines=9, digest="0"),
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
        dataclasses.replace(CARD, network=EmbedderConfig(input_size_px=8))


@pytest.mark.parametrize(("low", "high"), [(0.9, 0.8), (0.5, None), (None, 0.5), (float("nan"), 1.0)])
def test_an_interval_that_is_none_is_refused(low: float | None, high: float | None) -> None:
    with pytest.raises(ValueError, match="two ascending bounds, or None for both, are accepted"):
        Metric(0.8, low, high, patients=3, split="test")


def test_a_number_of_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match="patients is -1; 0 or more"):
        Metric(0.8, None, None, patients=-1, split="test")
    with pytest.raises(ValueError, match="-2 patients and 5 cines"):
        TrainingCohort("phantoms only", patients=-2, cines=5, digest="0")


def test_what_was_learned_from_is_said_once() -> None:
    going_on = dataclasses.replace(CARD.cohort, begun_with="septal_detector 4")
    others = dataclasses.replace(going_on, provenance="annotations", earlier=("phantoms only",))

    assert going_on.words == "phantoms only, going on from septal_detector 4"
    assert others.words == "annotations, going on from septal_detector 4 (phantoms only)"


EVERY_KIND = [
    (DetectorConfig(anchor_shapes=(0.25,) * 48), DetectorDecision(0.4)),
    (EmbedderConfig(), DefectDecision(2.0, evidence_bias=(0.0, 0.5), abstain_angle_deg=60.0)),
    (ViewConfig(2), ViewDecision(OpenSetRule("energy", -1.5), LearnedTimes(40.0, 1000.0))),
    (MaeConfig(), None),
]


@pytest.mark.parametrize(("network", "decision"), EVERY_KIND)
def test_a_card_of_every_network_is_read_back_as_it_was_written(network: Any, decision: Any) -> None:
    cohort = dataclasses.replace(CARD.cohort, salt="s", train=(1, 2), constant_boxes=((0.1, 0.2, 0.3, 0.4), None))
    training = Training("train", 3.5, 1, epochs=2, validation={"AP": 0.5})
    metrics = {"AP": Metric(0.5, 0.4, 0.6, 3, "test")}
    card = ModelCard("m", "1", "t", "a", ("x", "y"), network, cohort, decision, training, metrics)

    assert card_from_json(card_to_json(card)) == card


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("network.backbone", "vgg", "Embedder backbone 'vgg' is unknown; .* are accepted"),
        ("network.scale", "16", "network.scale is 16: Input should be a valid number"),
        ("network.scale", None, "network.scale is None: Input should be a valid number"),
        (
            "network.kind",
            "detector2",
            "network.kind is 'detector2'; detector, .*autoencoder are accepted",
        ),
        ("decision.temperature", -1.0, "temperatures -1.0 and .*; positive temperatures"),
        ("decision.shown_share", [1.0, 0.5, 1.5], "shares above 0 up to 1 are accepted"),
        ("decision.shown_share", [1.0], "shown_share is .*; one number for each of"),
        ("decision.sharpness", 1.0, "decision.sharpness is 1.0: Unexpected"),
        ("cohort.train", ["anna"], "cohort.train.0 is anna: Input should be a valid integer"),
        ("classes", 3, "classes is 3: Input should be a valid"),
        ("seed", 3, "field seed is unknown"),
    ],
)
def test_a_card_with_a_wrong_field_is_refused_in_one_sentence(
    tmp_path: Path, path: str, value: object, sentence: str
) -> None:
    card = ModelCard("m", "1", "t", "a", ("Normal", "ASD", "VSD"), EmbedderConfig(), CARD.cohort)
    content = json.loads(card_to_json(card))
    *parts, key = path.split(".")
    inner = content[parts[0]] if parts else content
    inner[key] = value
    (tmp_path / "m.json").write_text(json.dumps(content))

    with pytest.raises(ModelMismatchError, match=rf"^Model card m\.json in .* is not valid: .*{sentence}[^\n]*\.$"):
        load_card(tmp_path, "m")


def test_a_card_that_lacks_a_field_is_refused(tmp_path: Path) -> None:
    content = json.loads(card_to_json(CARD))
    del content["cohort"]
    (tmp_path / "m.json").write_text(json.dumps(content))

    with pytest.raises(ModelMismatchError, match="field cohort is missing"):
        load_card(tmp_path, "m")


def test_a_decision_of_another_network_is_refused() -> None:
    with pytest.raises(ValueError, match="decision is a ViewDecision; a DetectorDecision is accepted"):
        dataclasses.replace(CARD, decision=ViewDecision())


def test_a_card_is_read_anew_only_when_its_file_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_text(card_to_json(CARD))
    os.utime(path, (1e9, 1e9))
    first, again = load_card(tmp_path, "m"), load_card(tmp_path, "m")
    path.write_text(card_to_json(dataclasses.replace(CARD, version="12")))

    assert first is again
    assert load_card(tmp_path, "m").version == "12"
