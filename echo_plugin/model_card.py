# SPDX-License-Identifier: Apache-2.0
"""The card that travels with every published model: what it is, learned from what, how good, for what not.

The JSON text of a model card, there and back. Imports no torch, so that cards are read at once.

What a person may choose about the view classifier, by name. Imports nothing: the command line asks it at once.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from echo_plugin.errors import ModelMismatchError, ModelNotFoundError


@dataclass(frozen=True)
class Metric:
    """One measured number with its uncertainty: ``low, high`` bound the 95 % CI; None: not computed."""

    value: float
    low: float | None
    high: float | None
    patients: int
    split: str
    baseline: float | None = None
    """What a constant answer (majority class, mean box) scores on the same patients."""

    def __post_init__(self) -> None:
        bounds = [bound for bound in (self.low, self.high) if bound is not None]
        if len(bounds) == 1 or (len(bounds) == 2 and not bounds[0] <= bounds[1]):
            msg = (
                f"Metric {self.value} has the interval {self.low} to {self.high};"
                " two ascending bounds, or None for both, are accepted."
            )
            raise ValueError(msg)
        if self.patients < 0:
            msg = f"Metric {self.value}: patients is {self.patients}; 0 or more is accepted."
            raise ValueError(msg)


@dataclass(frozen=True)
class TrainingData:
    """Where a model learned: ``digest`` is the SHA-256 over the sorted image ids and what the labels say."""

    provenance: str
    patients: int
    cines: int
    digest: str
    split: Mapping[str, int] = field(default_factory=dict)
    """Patients per split: train, validation, test."""

    def __post_init__(self) -> None:
        if min(self.patients, self.cines, *self.split.values()) < 0:
            msg = (
                f"Training data of {self.patients} patients and {self.cines} cines, split {dict(self.split)};"
                " numbers from 0 are accepted."
            )
            raise ValueError(msg)


@dataclass(frozen=True)
class ModelCard:
    """Identity, input contract, provenance and limits of one set of weights.

    ``classes`` : in class-id order. ``input_size_px`` : side of the square grey input.
    ``config`` : the numbers that rebuild the network.
    ``sha256`` : of the weights file; empty until published. ``trained_on`` : shown in every viewer.
    """

    name: str
    version: str
    task: str
    architecture: str
    classes: tuple[str, ...]
    input_size_px: int
    config: Mapping[str, float | int | str | bool | list[float] | list[int]]
    training_data: TrainingData
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    command: str = ""
    wall_time_s: float | None = None
    seed: int | None = None
    licence: str = "Apache-2.0"
    intended_use: str = "Research and annotation support; not for clinical use."
    limits: str = ""
    sha256: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            msg = f"Model name {self.name!r} is malformed; lower-case letters, digits and '_' are accepted."
            raise ValueError(msg)
        if not self.classes or len(set(self.classes)) != len(self.classes):
            msg = f"Model {self.name}: classes {self.classes} must be distinct and at least one."
            raise ValueError(msg)
        if self.input_size_px < 32:
            msg = f"Model {self.name}: input_size_px is {self.input_size_px}; 32 or more is accepted."
            raise ValueError(msg)
        as_in_json = {key: list(value) if isinstance(value, tuple) else value for key, value in self.config.items()}
        object.__setattr__(self, "config", as_in_json)  # a card read back equals the one written

    @property
    def trained_on(self) -> str:
        """One phrase for a person: what the weights learned from."""
        return self.training_data.provenance


SCHEMA = "monailabel-echo/model-card/1"
_CHECKOUT = Path(__file__).resolve().parents[1] / "apps" / "echo"
APP_FOLDER = _CHECKOUT if _CHECKOUT.is_dir() else Path(__file__).resolve().with_name("app")
"""The app folder that MONAI Label loads: of the checkout, or as the wheel carries it."""
STARTERS = APP_FOLDER / "model"
"""The starter weights, which are public."""


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


TemporalHead = Literal["weave", "gru", "attention", "mean"]
"""What is made of the frames of a clip; ``ViewConfig.temporal`` says what each does."""
Sampling = Literal["consecutive", "spaced"]
"""Which frames make a clip; ``ViewConfig.sampling`` says what each does."""

TEMPORAL_HEADS: tuple[str, ...] = get_args(TemporalHead)
SAMPLINGS: tuple[str, ...] = get_args(Sampling)
