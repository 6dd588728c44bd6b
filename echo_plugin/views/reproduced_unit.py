# SPDX-License-Identifier: Apache-2.0
"""One unit of the neonatal-view paper's table, a seed on one split of the patients: every row learned and answered."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from safetensors.torch import save as save_safetensors
from torch import Tensor

from echo_plugin.anatomy import View
from echo_plugin.models.checkpoint import config_from_card
from echo_plugin.models.durable_file import write_synced
from echo_plugin.models.view_classifier import ViewConfig
from echo_plugin.training.clips import ClipTable, learned_times
from echo_plugin.training.datasets import LabelledCine, LabelledFolder, digest_of
from echo_plugin.training.kept_outcome import facts_of_cines, facts_of_options, keep_outcome, read_outcome
from echo_plugin.training.options import TrainOptions
from echo_plugin.training.prepared_frames import PreparedFrames
from echo_plugin.training.splits import Split
from echo_plugin.training.views import view_config
from echo_plugin.views.folds import (
    FoldAnswers,
    Published,
    answers_of,
    clip_table,
    fold_choice,
    learn_clip_stage,
    learn_frame_stage,
)
from echo_plugin.views.reproduced_table import ROWS, Row
from echo_plugin.views.sampling import LearnedTimes, times_of
from echo_plugin.views.still_encoder import EmbeddedFrames, embed_frames, joining_answers, learn_joining

LEARNING = 2
"""Raised when rows begin or learn otherwise from the same numbers, so that outcomes of before are not read."""


@dataclass(frozen=True)
class Unit:
    """One seed on one split of the patients."""

    seed: int
    fold: int
    split: Split

    @property
    def file(self) -> str:
        """Part of a file's name."""
        return f"seed{self.seed}-fold{self.fold}"


@dataclass(frozen=True)
class Material:
    """What all units share. ``runs`` : where outcomes are kept. ``is_still`` : ``begun``'s encoder learns no more."""

    labelled: LabelledFolder
    cines: tuple[LabelledCine, ...]
    vocabulary: tuple[View, ...]
    options: TrainOptions
    runs: Path
    begun: Published | None
    is_still: bool
    prepared: dict[str, PreparedFrames] = field(default_factory=dict)

    @property
    def begun_with(self) -> str:
        """The weights that every row begins with, in words."""
        if self.begun is None:
            return "random weights"
        card = self.begun[0]
        return f"the encoder of {card.name} {card.version}" + (", held still" if self.is_still else "")

    @cached_property
    def digest(self) -> str:
        """What tells other files, labels, views, sizes and first weights apart."""
        begun = ["" if self.begun is None else self.begun[0].sha256, self.is_still]
        views = [view.value for view in self.vocabulary]
        facts = facts_of_cines(self.labelled, self.cines)
        return digest_of([LEARNING, *facts, views, self.options.image_size, begun, repr(self.times)])

    @cached_property
    def times(self) -> LearnedTimes | None:
        """The interval and span by which clips are taken, in all units: those of the encoder to begin with.

        Without one, the medians of all the cines: what a machine's frame rate is says nothing about a view.
        """
        taught = None if self.begun is None else times_of(self.begun[0])
        return taught or learned_times(self.labelled, self.cines)

    @cached_property
    def embedded(self) -> EmbeddedFrames:
        """What the encoder held still says of every frame that a row looks at."""
        assert self.begun is not None
        choices = [fold_choice(self.config(row), self.times) for row in ROWS]
        kept = self.runs / f"embedded-{self.digest[:12]}.safetensors"
        return embed_frames(self.labelled, self.cines, choices, self.begun, options=self.options, kept=kept)

    def config(self, row: Row) -> ViewConfig:
        """Return the network of a row; frames are seen as the encoder to begin with was taught to see them."""
        chosen = dataclasses.replace(self.options, temporal=row.pooling, sampling=row.sampling)
        config = view_config(chosen, len(self.vocabulary))
        if self.begun is None:
            return config
        taught = config_from_card(self.begun[0], ViewConfig)
        return dataclasses.replace(config, is_standardised=taught.is_standardised, border=taught.border)

    def table(self, config: ViewConfig, split: Split) -> ClipTable:
        """Return the clips that a network learns from and is measured on."""
        name = f"{config.sampling}-{config.frames_per_clip}"
        if name not in self.prepared:
            choice = fold_choice(config, self.times)
            self.prepared[name] = choice.prepare(self.labelled, self.cines, self.options.cache_dir)
        return clip_table(self.prepared[name], config, self.vocabulary, split)


def unit_rows(material: Material, unit: Unit) -> Iterator[tuple[Row, dict[str, Any]]]:
    """Yield the outcome of every row of a unit; those that an earlier run left are read."""
    options = dataclasses.replace(material.options, seed=unit.seed)
    key = digest_of([material.digest, unit.split.digest, unit.fold, *facts_of_options(options)])
    for row in ROWS:
        path = material.runs / f"{unit.file}-{row.file}.json"
        outcome = read_outcome(path, key)
        if outcome is None:
            learn = _still_answers if material.is_still else _moving_answers
            answers = learn(material, unit, material.config(row), options, key)
            outcome = {"truth": answers.truth.tolist(), "cines": answers.cines.tolist()}
            outcome |= {"probabilities": answers.probabilities.round(6).tolist()}
            keep_outcome(path, key, outcome)
        yield row, outcome


def _moving_answers(material: Material, unit: Unit, config: ViewConfig, options: TrainOptions, key: str) -> FoldAnswers:
    """Return what a network says that learned with its encoder, from the unit's classifier of single frames on.

    Means over frames go on with single frames for as many epochs as the others learn from clips.
    """
    first = dataclasses.replace(config, temporal="weave", sampling="spaced", frames_per_clip=4)
    state = _frame_state(
        material.runs / f"{unit.file}-{key[:12]}.safetensors",
        material.table(first, unit.split),
        first,
        options,
        material.begun,
    )
    table = material.table(config, unit.split)
    model, measure = learn_clip_stage(table, config, state, options)
    return answers_of(model, table, measure)


def _still_answers(material: Material, unit: Unit, config: ViewConfig, options: TrainOptions, key: str) -> FoldAnswers:
    """Return what a network says whose encoder is the one to begin with, which learned no more."""
    embedded = material.embedded
    table = embedded.table(fold_choice(config, material.times), material.vocabulary, unit.split)
    model, measure = learn_joining(table, embedded.values, config, options)
    return joining_answers(model, table, embedded.values, measure)


def _frame_state(
    path: Path, table: ClipTable, config: ViewConfig, options: TrainOptions, begun: Published | None
) -> dict[str, Tensor]:
    """Return the classifier of single frames that the rows of a unit begin with, learned once."""
    if path.is_file():
        return load_file(path)
    learned, _ = learn_frame_stage(table, config, options, start=begun)
    state = {name: value.contiguous() for name, value in learned.items()}
    write_synced(path, save_safetensors(state))
    return state
