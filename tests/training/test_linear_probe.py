# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from echo_plugin.models.view_classifier import ViewClassifier, ViewConfig
from echo_plugin.training.linear_probe import encoder_features, probe


def test_classes_that_a_line_parts_are_told_apart():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    features = rng.normal(0, 0.3, (60, 8)) + np.eye(8)[labels] * 1000  # of any unit

    assert (probe(features[:30], labels[:30], features[30:]) == labels[30:]).all()


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="two classes at least"):
        probe(np.zeros((4, 2)), np.ones(4, int), np.zeros((1, 2)))


def test_features_do_not_depend_on_the_batch():
    torch.manual_seed(0)
    model = ViewClassifier(ViewConfig(3, backbone="vit_micro_patch8", input_size_px=32, temporal="mean"))
    pixels = torch.randint(0, 255, (5, 32, 32), dtype=torch.uint8)

    together, apart = (encoder_features(model, pixels, batch_size=size) for size in (5, 2))

    assert together.shape == (5, 128)
    np.testing.assert_allclose(together, apart, atol=0.05)
