# SPDX-License-Identifier: Apache-2.0
"""A view classifier's architecture trained anew on every fold of the patients, and measured on strangers.

Three parts each time: a fold is tested, a part of the other patients chooses the checkpoint, the rest is learned from.
(The neonatal-view paper chooses its checkpoint on the fold it reports.) Clips to learn from are several a cine; what is
measured is one clip from the middle, as the paper does it. What each fold says is kept in one JSON file, under a key
that tells apart the files, labels, networks and numbers it came from: a run that was stopped goes on where it was.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from torch import Tensor

from echo_plugin.anatomy import View
from echo_plugin.answer.runtime import choose_device
from echo_plugin.answer.views import is_standard_view
from echo_plugin.durable import write_atomically
from echo_plugin.errors import TrainingDataError
from echo_plugin.geometry import FloatArray
from echo_plugin.model_card import LearnedTimes, ModelCard
from echo_plugin.models.view_classifier import ViewClassifier
from echo_plugin.network_config import ViewConfig
from echo_plugin.progress import Progress
from echo_plugin.training.datasets import LabelledCine, LabelledFolder, PreparedFrames, digest_of
from echo_plugin.training.loop import move_to_device
from echo_plugin.training.options import OnEpoch, ViewOptions
from echo_plugin.training.splits import Split
from echo_plugin.training.start import load_view_encoder
from echo_plugin.training.view_stages import ClipChoice, ClipTable, cine_logits, learn_stage, learned_times, stages_of
from echo_plugin.training.views import open_set_rule

TRAIN_CLIPS = 4
"""Clips of a cine to learn from; one more, from the middle, is what is measured."""
VALIDATION_SHARE = 0.15


Published = tuple[ModelCard, dict[str, Tensor]]
"""A published model: its card and its weights."""


@dataclass(frozen=True)
class FoldAnswers:
    """What one trained network says of patients it has not seen: (M, K) logits, (M,) true ids, (M,) cine indices.

    ``is_standard`` : (M,) whether it calls them standard views, by a limit set on the validation patients; None: it was
    not asked, or they set none.
    """

    logits: FloatArray
    truth: NDArray[np.int_]
    cines: NDArray[np.int_]
    validation_measure: float
    is_standard: NDArray[np.bool_] | None = None

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> FoldAnswers:
        """Return the answers that ``to_json`` gave."""
        is_standard = kept["is_standard"]
        return cls(
            np.array(kept["logits"], dtype=np.float64),
            np.array(kept["truth"], dtype=int),
            np.array(kept["cines"], dtype=int),
            kept["validation_measure"],
            None if is_standard is None else np.array(is_standard, dtype=bool),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the answers JSON-ready."""
        return {
            "logits": self.logits.tolist(),
            "truth": self.truth.tolist(),
            "cines": self.cines.tolist(),
            "validation_measure": self.validation_measure,
            "is_standard": None if self.is_standard is None else self.is_standard.tolist(),
        }

    @property
    def probabilities(self) -> FloatArray:
        """(M, K), rows sum to 1."""
        each: FloatArray = softmax(self.logits, axis=1)
        return each


def patient_folds(patients: Sequence[str], folds: int, seed: int) -> list[Split]:
    """Return ``folds`` splits of shuffled patients: every patient is in exactly one test part.

    Raises
    ------
    TrainingDataError
        If there are fewer than two folds, or too few patients for three parts of each.
    """
    names = sorted(set(patients))
    if folds < 2 or len(names) < folds or len(names) - -(-len(names) // folds) < 2:
        msg = (
            f"{len(names)} patients cannot be split in {folds} folds; from 2 folds, each with 2 other patients, works."
        )
        raise TrainingDataError(msg)
    order = [str(name) for name in np.random.default_rng(seed).permutation(names)]
    splits = []
    for fold in range(folds):
        test = order[fold::folds]
        others = [name for name in order if name not in set(test)]
        held = max(1, round(VALIDATION_SHARE * len(others)))
        train, validation, tested = (tuple(sorted(part)) for part in (others[held:], others[:held], test))
        splits.append(Split(train, validation, tested, seed))
    return splits


def fold_choice(config: ViewConfig, times: LearnedTimes | None) -> ClipChoice:
    """Return the clips of a cine to learn from and, last, the one that is measured."""
    return ClipChoice(config, times, (TRAIN_CLIPS, 1))


def clip_table(frames: PreparedFrames, config: ViewConfig, vocabulary: Sequence[View], split: Split) -> ClipTable:
    """Return the clips of a split: of the training patients those to learn from, of the others the one to measure."""
    parts = frames.readable(
        {p: [c for c in frames.cines if split.part_of(c.patient_id) == p] for p in ("train", "validation", "test")}
    )
    labels = torch.tensor([vocabulary.index(c.annotation.view) for c in frames.cines if c.annotation.view])
    return measured_apart(ClipTable.of(frames, config.frames_per_clip, labels, parts))


def measured_apart(table: ClipTable) -> ClipTable:
    """Return the table with, of the training patients, the clips to learn from, of the others the last of each cine."""
    number = torch.arange(len(table.frames)) % (TRAIN_CLIPS + 1)
    is_measured = number == TRAIN_CLIPS
    kept = {part: rows[is_measured[rows] == (part != "train")] for part, rows in table.parts.items()}
    return dataclasses.replace(table, parts=kept)


def learn_frame_stage(
    table: ClipTable,
    config: ViewConfig,
    options: ViewOptions,
    on_epoch: OnEpoch | None = None,
    *,
    start: Published | None = None,
) -> tuple[dict[str, Tensor], float]:
    """Return the weights and validation measure of the classifier of single frames that a network begins with.

    Means over frames have no other stage, and learn for all the epochs.

    ``start`` : the view classifier whose encoder it begins with; None: random weights.
    """
    torch.manual_seed(options.seed)
    model = ViewClassifier(dataclasses.replace(config, temporal="mean"))
    if start is not None:
        load_view_encoder(model, start[1], start[0])
    move_to_device(model, choose_device(options.device))
    stage = stages_of(options, config.temporal, is_going_on=False)[0]
    learned = learn_stage(model, table, options, stage, on_epoch=on_epoch)
    return learned.state, learned.best_metric


def learn_clip_stage(
    table: ClipTable,
    config: ViewConfig,
    frame_state: dict[str, Tensor],
    options: ViewOptions,
    on_epoch: OnEpoch | None = None,
) -> tuple[ViewClassifier, float]:
    """Return the network that goes on from a classifier of single frames, and its validation measure.

    It learns for the second part of the epochs, from clips; means over frames, which nothing joins, from frames.
    """
    model = begun_network(config, frame_state, options)
    stage = stages_of(options, "weave", is_going_on=False)[1]
    if config.temporal == "mean":
        stage = dataclasses.replace(stage, name="frames")
    return model, learn_stage(model, table, options, stage, on_epoch=on_epoch).best_metric


def begun_network(config: ViewConfig, frame_state: dict[str, Tensor], options: ViewOptions) -> ViewClassifier:
    """Return a network on its device with the weights of a classifier of single frames; what joins frames is new."""
    torch.manual_seed(options.seed)
    model = ViewClassifier(config)
    model.load_state_dict(frame_state, strict=False)
    move_to_device(model, choose_device(options.device))
    return model


def answers_of(model: ViewClassifier, table: ClipTable, validation_measure: float) -> FoldAnswers:
    """Return what the network says of the test patients' middle clips."""
    logits, truth, cines = cine_logits(model, table, "test", "clips")
    return FoldAnswers(np.concatenate(logits), truth, cines, validation_measure)


def read_outcome(path: Path, key: str) -> dict[str, Any] | None:
    """Return the outcome that is kept; None: there is none, or it is one of other data or numbers."""
    try:
        outcome: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return outcome if outcome.pop("key", None) == key else None


def keep_outcome(path: Path, key: str, outcome: Mapping[str, Any]) -> None:
    """Write a JSON-ready outcome under its key; whole or not at all."""
    write_atomically(path, json.dumps({"key": key, **outcome}).encode())


def facts_of_cines(labelled: LabelledFolder, cines: Sequence[LabelledCine]) -> list[object]:
    """Return what tells other files and labels apart, for a key."""
    return [labelled.facts_of(cine) for cine in cines]


def facts_of_options(options: ViewOptions) -> list[object]:
    """Return the numbers of a training that its network does not hold, for a key."""
    numbers = (options.epochs, options.backbone, options.batch_size, options.learning_rate, options.max_minutes)
    return [*numbers, options.recipe, options.mirror, options.seed]


def cross_validate(
    labelled: LabelledFolder,
    cines: Sequence[LabelledCine],
    config: ViewConfig,
    vocabulary: Sequence[View],
    *,
    splits: Sequence[Split],
    options: ViewOptions,
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
    options: ViewOptions,
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
    is_standard = is_view & [is_standard_view(rule, row[None], classes) for row in answers.logits]
    return dataclasses.replace(answers, is_standard=is_standard)
