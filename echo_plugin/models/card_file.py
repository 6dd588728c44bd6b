# SPDX-License-Identifier: Apache-2.0
"""The JSON text of a model card, there and back. Imports no torch, so that cards are read at once."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from echo_plugin.errors import ModelMismatchError, ModelNotFoundError
from echo_plugin.model_card import Metric, ModelCard, TrainingData

SCHEMA = "monailabel-echo/model-card/1"
STARTERS = Path(__file__).resolve().parents[2] / "apps" / "echo" / "model"
"""The starter weights of a checkout, which are public."""


def card_to_json(card: ModelCard) -> str:
    """Return the card as JSON text, keys in the order of the dataclass."""
    return json.dumps({"schema": SCHEMA, **dataclasses.asdict(_plain(card))}, indent=2, allow_nan=False) + "\n"


def card_from_json(text: str) -> ModelCard:
    """Return the card of a JSON text.

    Raises
    ------
    ValueError, TypeError, KeyError
        If the text is no JSON, of another schema, or a field is missing, unknown or refused.
    """
    content: dict[str, Any] = json.loads(text)
    schema = content.pop("schema", None) if isinstance(content, dict) else None
    if schema != SCHEMA:
        msg = f"its schema is {schema!r}, {SCHEMA!r} is accepted"
        raise ValueError(msg)
    content["classes"] = tuple(content["classes"])
    content["training_data"] = TrainingData(**content["training_data"])
    content["metrics"] = {name: Metric(**metric) for name, metric in content.get("metrics", {}).items()}
    return ModelCard(**content)


def load_card(directory: Path, name: str) -> ModelCard:
    """Return the card of a published model; reads no weights.

    Raises
    ------
    ModelNotFoundError
        If there is no such card; the message lists the models that are there.
    ModelMismatchError
        If the card is not valid.
    """
    path = directory / f"{name}.json"
    try:
        return card_from_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        there = sorted(p.stem for p in directory.glob("*.json")) if directory.is_dir() else []
        msg = f"Model {name} is not published in {directory}; found there: {', '.join(there) or 'nothing'}."
        raise ModelNotFoundError(msg) from exc
    except (ValueError, KeyError, TypeError) as exc:
        msg = f"Model card {path.name} in {directory} is not valid: {exc}."
        raise ModelMismatchError(msg) from exc


def _plain(card: ModelCard) -> ModelCard:
    """Return the card with plain dictionaries in place of other mappings, as ``dataclasses.asdict`` needs them."""
    training_data = dataclasses.replace(card.training_data, split=_plain_mapping(card.training_data.split))
    return dataclasses.replace(
        card,
        config=_plain_mapping(card.config),
        metrics=_plain_mapping(card.metrics),
        training_data=training_data,
    )


def _plain_mapping(mapping: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in mapping.items()}
