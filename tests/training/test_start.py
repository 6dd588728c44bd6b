# SPDX-License-Identifier: Apache-2.0
"""What a training goes on from."""

import dataclasses

import pytest
import torch

from echo_plugin.errors import ModelMismatchError, ModelNotFoundError
from echo_plugin.model_card import ModelCard, TrainingData
from echo_plugin.models.checkpoint import publish
from echo_plugin.models.defect_embedder import DefectEmbedder, EmbedderConfig
from echo_plugin.models.septal_detector import DetectorConfig, SeptalDetector
from echo_plugin.models.view_classifier import ViewClassifier, ViewConfig
from echo_plugin.training.options import TrainOptions
from echo_plugin.training.start_weights import Start, load_start

torch.set_num_threads(1)
CONFIG = ViewConfig(classes=2, input_size_px=64)


@pytest.fixture
def published(tmp_path):
    """A folder with a view classifier, and its network."""
    network = ViewClassifier(CONFIG)
    data = TrainingData("noise", patients=1, cines=1, digest="0")
    card = ModelCard("view_classifier", "4", "view", "test", ("A4C", "OTHER"), 64, dataclasses.asdict(CONFIG), data)
    publish(tmp_path, network.state_dict(), card)
    return tmp_path, network


@pytest.mark.parametrize(
    ("network", "body"),
    [
        (DefectEmbedder(EmbedderConfig(input_size_px=64)), "backbone"),
        (SeptalDetector(DetectorConfig(backbone="resnet18", input_size_px=64)), "backbone.body"),
    ],
    ids=["defects", "detector"],
)
def test_the_view_encoder_becomes_the_body_of_another_network(published, network, body):
    models, encoder = published
    name = "septal_detector" if body.endswith("body") else "defect_embedder"

    start = load_start(network, name, models, TrainOptions(start="views"))

    loaded = network.get_submodule(body).state_dict()
    wanted = encoder.backbone.state_dict()
    for key in ("conv1.weight", "bn1.running_mean", "layer4.1.conv2.weight"):
        torch.testing.assert_close(loaded[key], wanted[key])
    assert start.card.name == "view_classifier"


def test_an_encoder_of_another_architecture_is_refused(published):
    models, _ = published
    network = DefectEmbedder(EmbedderConfig(backbone="resnet50", input_size_px=64))

    with pytest.raises(ModelMismatchError, match=r"view_classifier: its encoder has no backbone\.\S+ of shape"):
        load_start(network, "defect_embedder", models, TrainOptions(start="views"))


def test_an_absent_view_encoder_is_no_silent_scratch(tmp_path):
    network = DefectEmbedder(EmbedderConfig(input_size_px=64))

    with pytest.raises(ModelNotFoundError, match="view_classifier"):
        load_start(network, "defect_embedder", tmp_path, TrainOptions(start="views"))


def test_weights_that_have_learned_go_on_at_a_fifth_of_the_rate(published):
    models, _ = published

    own = load_start(ViewClassifier(CONFIG), "view_classifier", models, TrainOptions(start="starter"))

    assert own.rate_for("view_classifier") == pytest.approx(0.2)
    assert own.rate_for("defect_embedder") == 1.0
    assert Start().rate_for("view_classifier") == 1.0


@pytest.mark.parametrize("contrast", [True, False])
def test_weights_go_on_with_the_contrast_that_they_were_taught(tmp_path, contrast):
    config = DetectorConfig(input_size_px=64, is_standardised=contrast)
    card = ModelCard(
        "septal_detector", "1", "detection", "test", ("interatrial", "interventricular"), 64,
        dataclasses.asdict(config) | {"anchor_shapes": []}, TrainingData("noise", patients=1, cines=1, digest="0"),
    )  # fmt: skip
    publish(tmp_path, SeptalDetector(config).state_dict(), card)
    network = SeptalDetector(DetectorConfig(input_size_px=64, is_standardised=not contrast))

    load_start(network, "septal_detector", tmp_path, TrainOptions(start="starter"))

    assert network.config.is_standardised is network.backbone.is_standardised is contrast


def test_an_embedder_of_other_crops_is_not_gone_on_with(tmp_path):
    config = EmbedderConfig(input_size_px=64)
    data = TrainingData("noise", patients=1, cines=1, digest="0")
    card = ModelCard(
        "defect_embedder", "1", "classification", "test", ("Normal", "ASD", "VSD"), 64, dataclasses.asdict(config), data
    )
    publish(tmp_path, DefectEmbedder(config).state_dict(), card)
    network = DefectEmbedder(dataclasses.replace(config, cropping="walls"))

    assert load_start(network, "defect_embedder", tmp_path, TrainOptions(start="starter")) == Start()
