# SPDX-License-Identifier: Apache-2.0
"""Cards and networks small enough for a test."""

from collections.abc import Callable

import pytest
import torch

from echo_plugin.anatomy import DEFECTS, DETECTED_SEPTA, PAEDIATRIC
from echo_plugin.model_card import Metric, ModelCard, TrainingCohort
from echo_plugin.network_config import DetectorConfig, EmbedderConfig, ViewConfig

CLASSES = {
    DetectorConfig: tuple(septum.value for septum in DETECTED_SEPTA),
    EmbedderConfig: tuple(defect.value for defect in DEFECTS),
    ViewConfig: tuple(view.value for view in PAEDIATRIC),
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def make_card() -> Callable[..., ModelCard]:
    """Return a maker of the card of a network's config."""

    def make(
        config: DetectorConfig | EmbedderConfig | ViewConfig, name: str = "model", version: str = "1"
    ) -> ModelCard:
        return ModelCard(
            name=name,
            version=version,
            task="test",
            architecture=config.backbone,
            classes=CLASSES[type(config)],
            network=config,
            cohort=TrainingCohort("phantoms only", 3, 9, "0" * 64, {"train": 2, "test": 1}),
            metrics={"accuracy": Metric(0.5, None, None, 3, "test", baseline=0.33)},
        )

    return make
