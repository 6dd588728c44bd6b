# SPDX-License-Identifier: Apache-2.0
"""The card that travels with every published model, and its JSON: what it is, how it decides, learned from whom, how.

A card is checked whole when it is read; whoever holds one reads typed fields. Imports no torch, so that cards are read
at once.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_type_hints

from echo_plugin.anatomy import Defect
from echo_plugin.errors import ModelMismatchError, ModelNotFoundError
from echo_plugin.network_config import DetectorConfig, EmbedderConfig, MaeConfig, NetworkConfig, ViewConfig

Part = TypeVar("Part")


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
class TrainingCohort:
    """Who was learned from, chosen by and measured on: ``digest`` is the SHA-256 over sorted image ids and labels.

    ``provenance`` : of this training's own cines. ``begun_with`` : the weights that it went on from, "": none;
    ``earlier`` : what those had learned from, each said once, where it is something else.
    ``train``, ``validation``, ``test`` : fingerprints of patients, salted with ``salt`` ("": they are not listed),
    those of earlier trainings included. ``split_digest`` : of this training's split.
    ``majority_id`` : class id of most training patients; ``constant_boxes`` : by class the median training box, XYXY as
    parts of the input side, None: no such box. Both are the constant answers that figures stand beside.
    """

    PARTS: ClassVar[tuple[str, ...]] = ("train", "validation", "test")

    provenance: str
    patients: int
    cines: int
    digest: str
    split: Mapping[str, int] = field(default_factory=dict)
    """Patients per part: train, validation, test."""
    begun_with: str = ""
    earlier: tuple[str, ...] = ()
    salt: str = ""
    train: tuple[int, ...] = ()
    validation: tuple[int, ...] = ()
    test: tuple[int, ...] = ()
    split_digest: str = ""
    files_without_patient: int = 0
    majority_id: int | None = None
    constant_boxes: tuple[tuple[float, ...] | None, ...] = ()

    def __post_init__(self) -> None:
        if min(self.patients, self.cines, self.files_without_patient, *self.split.values()) < 0:
            msg = (
                f"Training data of {self.patients} patients and {self.cines} cines, split {dict(self.split)};"
                " numbers from 0 are accepted."
            )
            raise ValueError(msg)

    @property
    def words(self) -> str:
        """One phrase for a person: what the weights learned from."""
        going_on = f", going on from {self.begun_with}" if self.begun_with else ""
        return self.provenance + going_on + (f" ({'; '.join(self.earlier)})" if self.earlier else "")


@dataclass(frozen=True)
class Training:
    """How a model learned. ``recipe`` : its name. ``mirror`` : whether clips were exchanged left and right.

    ``command`` repeats it, that of phantoms included; ``frames`` : learned from, None: not counted.
    ``validation`` : figures on the patients that it was chosen by.
    """

    command: str = ""
    wall_time_s: float | None = None
    seed: int | None = None
    recipe: str = "ours"
    mirror: bool = False
    epochs: int = 0
    frames: int | None = None
    validation: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class DetectorDecision:
    """``operating_score`` : from which on a box is one, of best F1 on validation patients; None: none was found."""

    operating_score: float | None = None


@dataclass(frozen=True)
class DefectDecision:
    """How the embeddings of crops become an answer; chosen on validation patients.

    ``temperature`` divides the logits before the softmax. ``frame_focus``, ``focus`` : how much frames of a wall, and
    walls of a cine, that look like a defect count more than the others; 0: alike.
    ``patient_temperature`` divides what each wall says of a patient: walls are not independent of one another; to that
    ``evidence_bias`` is added, by class; (): nothing. ``shown_share`` : by class, how often a wall that can show the
    defect of a patient does, above 0 to 1; (): always.
    ``context_margin`` : round a box, as part of its longer side. ``abstain_angle_deg`` : a cine further from every
    class centre gets no answer, nor one without septum or in another view; None: every cine gets one.
    """

    temperature: float = 1.0
    frame_focus: float = 0.0
    focus: float = 0.0
    patient_temperature: float = 1.0
    evidence_bias: tuple[float, ...] = ()
    shown_share: tuple[float, ...] = ()
    context_margin: float = 0.25
    abstain_angle_deg: float | None = None

    def __post_init__(self) -> None:
        if min(self.temperature, self.patient_temperature) <= 0 or min(self.focus, self.frame_focus) < 0:
            msg = (
                f"Decision has temperatures {self.temperature} and {self.patient_temperature}, focus {self.focus} and"
                f" {self.frame_focus}; positive temperatures and a focus from 0 are accepted."
            )
            raise ValueError(msg)
        if not all(0 < share <= 1 for share in self.shown_share):
            msg = f"Decision has shown_share {self.shown_share}; shares above 0 up to 1 are accepted."
            raise ValueError(msg)


@dataclass(frozen=True)
class OpenSetRule:
    """``score`` : entropy, energy or other. A cine above ``threshold`` shows no standard view."""

    SCORES: ClassVar[tuple[str, ...]] = ("entropy", "energy", "other")

    score: str
    threshold: float

    def __post_init__(self) -> None:
        if self.score not in self.SCORES or not math.isfinite(self.threshold):
            words = ", ".join(self.SCORES)
            msg = f"Open-set rule is {self.score!r} above {self.threshold}; {words} and a finite number are accepted."
            raise ValueError(msg)


@dataclass(frozen=True)
class LearnedTimes:
    """Medians of the cines learned from: ``step_ms`` from frame to frame, ``span_ms`` from the first to the last."""

    step_ms: float
    span_ms: float

    def __post_init__(self) -> None:
        if not (self.step_ms > 0 and self.span_ms > 0):
            msg = f"Learned times are {self.step_ms} and {self.span_ms} ms; positive numbers are accepted."
            raise ValueError(msg)


@dataclass(frozen=True)
class ViewDecision:
    """``open_set`` : which cines show no standard view; None: nothing is said of it. ``times`` : None: not known."""

    open_set: OpenSetRule | None = None
    times: LearnedTimes | None = None


@dataclass(frozen=True)
class NoDecision:
    """Of a network that answers nothing about a heart."""


Decision = DetectorDecision | DefectDecision | ViewDecision | NoDecision
KINDS: dict[str, tuple[type[NetworkConfig], type[Decision]]] = {
    DetectorConfig.kind: (DetectorConfig, DetectorDecision),
    EmbedderConfig.kind: (EmbedderConfig, DefectDecision),
    ViewConfig.kind: (ViewConfig, ViewDecision),
    MaeConfig.kind: (MaeConfig, NoDecision),
}


@dataclass(frozen=True)
class ModelCard:
    """Identity, input contract, provenance and limits of one set of weights.

    ``classes`` : in class-id order. ``network`` : what rebuilds it. ``decision`` : how its output becomes an answer;
    None: that network's default. ``sha256`` : of the weights file; empty until published.
    """

    name: str
    version: str
    task: str
    architecture: str
    classes: tuple[str, ...]
    network: NetworkConfig
    cohort: TrainingCohort
    decision: Decision | None = None
    training: Training = field(default_factory=Training)
    metrics: Mapping[str, Metric] = field(default_factory=dict)
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
        wanted = KINDS[self.network.kind][1]
        if self.decision is None:
            object.__setattr__(self, "decision", wanted())
        elif type(self.decision) is not wanted:
            msg = f"Model {self.name}: decision is a {type(self.decision).__name__}; a {wanted.__name__} is accepted."
            raise ValueError(msg)
        if isinstance(self.decision, DefectDecision):
            self._require_one_for_each_class(self.decision)

    def _require_one_for_each_class(self, decision: DefectDecision) -> None:
        for name in ("evidence_bias", "shown_share"):
            values = getattr(decision, name)
            if len(values) not in (0, len(self.classes)):
                msg = f"Model {self.name}: {name} is {values}; one number for each of {list(self.classes)} is accepted."
                raise ValueError(msg)

    @property
    def input_size_px(self) -> int:
        """Side of the square grey input."""
        return self.network.input_size_px

    @property
    def trained_on(self) -> str:
        """One phrase for a person: what the weights learned from; shown in every viewer."""
        return self.cohort.words

    @property
    def normal_id(self) -> int:
        """The class id of a normal heart."""
        return self.classes.index(Defect.NORMAL.value)

    def network_as(self, kind: type[Part]) -> Part:
        """Return the network's numbers, which are to be of one kind.

        Raises
        ------
        ModelMismatchError
            If the card is of another network.
        """
        return self._as(self.network, kind, "network")

    def decision_as(self, kind: type[Part]) -> Part:
        """Return how answers are made, which is to be of one kind; raises as `network_as`."""
        return self._as(self.decision, kind, "decision")

    def _as(self, part: object, kind: type[Part], word: str) -> Part:
        if not isinstance(part, kind):
            msg = f"Model {self.name}: its {word} is a {type(part).__name__}; a {kind.__name__} is accepted."
            raise ModelMismatchError(msg)
        return part


SCHEMA = "monailabel-echo/model-card/2"
_CHECKOUT = Path(__file__).resolve().parents[1] / "apps" / "echo"
APP_FOLDER = _CHECKOUT if _CHECKOUT.is_dir() else Path(__file__).resolve().with_name("app")
"""The app folder that MONAI Label loads: of the checkout, or as the wheel carries it."""
STARTERS = APP_FOLDER / "model"
"""The starter weights, which are public."""


def card_to_json(card: ModelCard) -> str:
    """Return the card as JSON text, keys in the order of the dataclass."""
    return json.dumps({"schema": SCHEMA, **dataclasses.asdict(card)}, indent=2, allow_nan=False) + "\n"


def card_from_json(text: str) -> ModelCard:
    """Return the card of a JSON text, every field of it checked.

    Raises
    ------
    ValueError
        If the text is no JSON, of another schema, or a field is missing, unknown or refused.
    """
    content: Any = json.loads(text)
    schema = content.pop("schema", None) if isinstance(content, dict) else None
    if schema != SCHEMA:
        msg = f"its schema is {schema!r}, {SCHEMA!r} is accepted"
        raise ValueError(msg)
    network = content.get("network")
    kind = network.get("kind") if isinstance(network, dict) else None
    if kind not in KINDS:
        msg = f"network.kind is {kind!r}; {', '.join(KINDS)} are accepted"
        raise ValueError(msg)
    types = get_type_hints(ModelCard) | dict(zip(("network", "decision"), KINDS[kind], strict=True))
    fields = {field.name for field in dataclasses.fields(ModelCard)}
    if odd := sorted(fields ^ content.keys()):
        msg = f"field {odd[0]} is {'missing' if odd[0] in fields else 'unknown'}; {', '.join(types)} are accepted"
        raise ValueError(msg)
    return ModelCard(**{name: _checked(types[name], value, name) for name, value in content.items()})


def _checked(kind: Any, value: object, name: str) -> Any:
    """Return a value of JSON as what the card's field ``name`` is to be."""
    from pydantic import TypeAdapter, ValidationError  # takes half a second, which --help does not wait for

    try:
        return TypeAdapter(kind).validate_json(json.dumps(value), strict=True, extra="forbid")
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        place = ".".join([name, *map(str, first["loc"])])
        msg = f"{place} is {str(first['input'])[:80]}: {first['msg'].removeprefix('Value error, ').rstrip('.')}"
        raise ValueError(msg) from exc


_SETTLED_NS = 2_000_000_000
"""A file as new as this can be replaced by another of the same stamp, within one tick of the file system's clock."""


@functools.lru_cache(maxsize=32)
def _read_card(path: Path, _stamp: tuple[int, int, int]) -> ModelCard:
    """Return the card in a file, kept until its stamp changes: it is asked for at each prediction."""
    return card_from_json(path.read_text(encoding="utf-8"))


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
        status = path.stat()
        if time.time_ns() - status.st_mtime_ns < _SETTLED_NS:
            return card_from_json(path.read_text(encoding="utf-8"))
        return _read_card(path, (status.st_mtime_ns, status.st_ino, status.st_size))
    except FileNotFoundError as exc:
        there = sorted(p.stem for p in directory.glob("*.json")) if directory.is_dir() else []
        msg = f"Model {name} is not published in {directory}; found there: {', '.join(there) or 'nothing'}."
        raise ModelNotFoundError(msg) from exc
    except ValueError as exc:
        msg = f"Model card {path.name} in {directory} is not valid: {str(exc).rstrip('.')}."
        raise ModelMismatchError(msg) from exc
