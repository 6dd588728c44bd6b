# SPDX-License-Identifier: Apache-2.0
"""A view classifier's architecture trained anew on every fold of the patients; what each fold says is kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from echo_plugin.anatomy import View
from echo_plugin.models.view_classifier import ViewConfig
from echo_plugin.progress import Progress
from echo_plugin.training.clips import ClipTable, learned_times
from echo_plugin.training.datasets import LabelledCine, LabelledFolder, digest_of
from echo_plugin.training.kept_outcome import facts_of_cines, facts_of_options, keep_outcome, read_outcome
from echo_plugin.training.options import OnEpoch, TrainOptions
from echo_plugin.training.splits import Split
from echo_plugin.training.views import open_set_rule
from echo_plugin.views.folds import (
    FoldAnswers,
    answers_of,
    begun_network,
    clip_table,
    fold_choice,
    learn_clip_stage,
    learn_frame_stage,
)


def cross_validate(
    labelled: LabelledFolder,
    cines: Sequence[LabelledCine],
    config: ViewConfig,
    vocabulary: Sequence[View],
    *,
    splits: Sequence[Split],
    options: TrainOptions,
    kept: Path,
    progress: Progress | None = None,
    on_epoch: Callable[[int], OnEpoch | None] = lambda fold: None,
) -> list[FoldAnswers]:
    """Return the answers of each split's network, trained in all its stages, to its test patients.

    Clips are at the interval of the cines that it learns from, as they will be of whatever it is asked about.

    ``kept`` : the folder where they are kept; those that an earlier run left there are read.
    """
    kept.mkdir(parents=True, exist_ok=True)
    facts = [*facts_of_cines(labelled, cines), repr(config), [view.value for view in vocabulary]]
    answers = []
    for fold, split in enumerate(splits):
        choice = fold_choice(config, learned_times(labelled, [c for c in cines if c.patient_id in split.train]))
        key = digest_of([*facts, split.digest, choice.facts, *facts_of_options(options)])
        path = kept / f"fold{fold}.json"
        outcome = read_outcome(path, key)
        if outcome is None:
            frames = choice.prepare(labelled, cines, options.cache_dir, progress)
            table = clip_table(frames, config, vocabulary, split)
            outcome = _learn_fold(table, cines, config, vocabulary, options=options, on_epoch=on_epoch(fold)).to_json()
            keep_outcome(path, key, outcome)
        answers.append(FoldAnswers.from_json(outcome))
    return answers


def _learn_fold(
    table: ClipTable,
    cines: Sequence[LabelledCine],
    config: ViewConfig,
    vocabulary: Sequence[View],
    *,
    options: TrainOptions,
    on_epoch: OnEpoch | None,
) -> FoldAnswers:
    state, measure = learn_frame_stage(table, config, options, on_epoch)
    if config.temporal == "mean":
        model = begun_network(config, state, options)
    else:
        model, measure = learn_clip_stage(table, config, state, options, on_epoch)
    answers, classes = answers_of(model, table, measure), [view.value for view in vocabulary]
    rule = open_set_rule(model, table, classes, cines)
    if rule is None:
        return answers
    is_view = np.array([vocabulary[i] is not View.OTHER for i in answers.logits.argmax(axis=1)])
    is_standard = is_view & [rule.is_standard(row[None], classes) for row in answers.logits]
    return dataclasses.replace(answers, is_standard=is_standard)
