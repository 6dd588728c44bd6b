# SPDX-License-Identifier: Apache-2.0
"""A study folder of easy stills with a detector that has seen none of its patients."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from echo_plugin.model_card import load_card
from echo_plugin.models.checkpoint import SEPTAL_DETECTOR, build_detector, publish


@pytest.fixture
def strange_studies(easy_studies: Path, tmp_path: Path) -> Path:
    """The easy studies with other patients than those the published detector learned from."""
    root = shutil.copytree(easy_studies, tmp_path / "studies")
    for path in root.glob(".echo_*"):
        path.unlink()
    csv = root / "patients.csv"
    csv.write_text(csv.read_text().replace(",child", ",stranger"))
    return root


@pytest.fixture
def small(strange_studies: Path) -> Path:
    """Six of the stills, three with labels."""
    for path in sorted(strange_studies.glob("*.png"))[6:]:
        path.unlink()
    for path in sorted((strange_studies / "annotations").glob("*.json"))[3:]:
        path.unlink()
    return strange_studies


@pytest.fixture
def publish_another(tmp_path: Path, published_detector: Path) -> tuple[Path, Callable[[], None]]:
    """A models folder, and what publishes an untrained detector of other width over the one in it."""
    models = shutil.copytree(published_detector, tmp_path / "models")

    def publish_wider() -> None:
        card = load_card(models, SEPTAL_DETECTOR)
        wider = replace(card, version="9", network=replace(card.network, backbone="mobilenet_v3_large"))
        publish(models, build_detector(wider).state_dict(), wider)

    return models, publish_wider
