# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import numpy as np
import pytest
import torch

from echo_plugin.models.view_classifier import ViewClassifier
from echo_plugin.network_config import ViewConfig
from echo_plugin.training.view_stages import ClipTable
from echo_plugin.training.views import encoder_features, linear_probe, linear_probe_metrics


def test_classes_that_a_line_parts_are_told_apart():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    features = rng.normal(0, 0.3, (60, 8)) + np.eye(8)[labels] * 1000  # of any unit

    assert (linear_probe(features[:30], labels[:30], features[30:]) == labels[30:]).all()


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="two classes at least"):
        linear_probe(np.zeros((4, 2)), np.ones(4, int), np.zeros((1, 2)))


def test_frames_of_test_patients_are_answered_by_those_of_training_patients():
    torch.manual_seed(0)
    model = ViewClassifier(ViewConfig(2, backbone="vit_micro_patch8", input_size_px=32, temporal="mean"))
    labels = torch.arange(12) % 2
    pixels = torch.randint(0, 60, (24, 32, 32), dtype=torch.uint8)
    pixels[labels.repeat_interleave(2) == 1, :16] += 150
    clips = torch.arange(24).reshape(12, 2)
    table = ClipTable(pixels, clips, labels, torch.arange(12), {"train": torch.arange(8), "test": torch.arange(8, 12)})

    found = linear_probe_metrics(model, table, [f"p{n}" for n in range(12)], words="test patients", seed=0)
    alike = replace(table, labels=torch.zeros(12, dtype=torch.long))

    assert found["linear probe accuracy"].value == 1.0
    assert (found["linear probe accuracy"].patients, found["linear probe accuracy"].baseline) == (4, 0.5)
    assert linear_probe_metrics(model, alike, ["p"] * 12, words="test patients", seed=0) == {}


def test_features_do_not_depend_on_the_batch():
    torch.manual_seed(0)
    model = ViewClassifier(ViewConfig(3, backbone="vit_micro_patch8", input_size_px=32, temporal="mean"))
    pixels = torch.randint(0, 255, (5, 32, 32), dtype=torch.uint8)

    together, apart = (encoder_features(model, pixels, batch_size=size) for size in (5, 2))

    assert together.shape == (5, 128)
    np.testing.assert_allclose(together, apart, atol=0.05)
