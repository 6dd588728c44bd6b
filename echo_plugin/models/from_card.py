# SPDX-License-Identifier: Apache-2.0
"""The network that a model card describes, without its weights; a card for other classes is refused."""

from __future__ import annotations

import torch

from echo_plugin.anatomy import DETECTED_SEPTA, Defect, View
from echo_plugin.errors import ModelMismatchError
from echo_plugin.model_card import ModelCard
from echo_plugin.models.checkpoint import config_from_card, require_classes
from echo_plugin.models.defect_embedder import DefectEmbedder, EmbedderConfig
from echo_plugin.models.septal_detector import DetectorConfig, SeptalDetector
from echo_plugin.models.view_classifier import ViewClassifier, ViewConfig


def build_detector(card: ModelCard) -> SeptalDetector:
    """Return the septal detector of a card."""
    require_classes(card, tuple(septum.value for septum in DETECTED_SEPTA))
    with torch.random.fork_rng(devices=()):  # initial weights are thrown away: leave the caller's seed alone
        return SeptalDetector(config_from_card(card, DetectorConfig))


def build_embedder(card: ModelCard) -> DefectEmbedder:
    """Return the defect embedder of a card; its classes may be any defects that have a name here, and Normal."""
    known = [defect.value for defect in Defect]
    for name in card.classes:
        if name not in known:
            msg = f"Model {card.name} tells apart defect {name!r}; {known} are accepted."
            raise ModelMismatchError(msg)
    config = config_from_card(card, EmbedderConfig)
    if config.classes != len(card.classes) or card.classes[config.normal_id] != Defect.NORMAL.value:
        msg = (
            f"Model {card.name}: its card names {list(card.classes)}, its network has {config.classes} classes of which"
            f" number {config.normal_id} is Normal; they must be the same."
        )
        raise ModelMismatchError(msg)
    with torch.random.fork_rng(devices=()):
        return DefectEmbedder(config)


def build_view_classifier(card: ModelCard) -> ViewClassifier:
    """Return the view classifier of a card; its vocabulary may be any of standard views."""
    known = {view.value for view in View}
    for name in card.classes:
        if name not in known:
            msg = f"Model {card.name} tells apart view {name!r}; {sorted(known)} are accepted."
            raise ModelMismatchError(msg)
    config = config_from_card(card, ViewConfig)
    if config.classes != len(card.classes):
        msg = f"Model {card.name}: its card names {len(card.classes)} views but its network has {config.classes}."
        raise ModelMismatchError(msg)
    with torch.random.fork_rng(devices=()):
        return ViewClassifier(config)
