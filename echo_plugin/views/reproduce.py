# SPDX-License-Identifier: Apache-2.0
"""Table 2 of the neonatal-view paper (ISBI 2025), made again: every way to join frames, on the same patients.

All rows of a unit (a seed and a split of the patients) begin with one classifier of single frames and differ in what
follows. The optimisation is ours (AdamW, averaged weights), the same for every row. Each unit chooses its checkpoint on
patients of its own, neither learned from nor reported; the paper chose it on the fold it reports. What is measured is
one clip from the middle of each cine. A run that was stopped goes on where it was; one of other files, numbers or
starting weights begins anew. Patients whom the starting weights have seen take no part.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from safetensors.torch import save as save_safetensors
from torch import Tensor

from echo_plugin.anatomy import NED_12, View
from echo_plugin.errors import TrainingDataError
from echo_plugin.models.checkpoint import load_published
from echo_plugin.models.durable_file import write_synced
from echo_plugin.models.view_classifier import ViewConfig
from echo_plugin.training.clips import ClipTable
from echo_plugin.training.datasets import LabelledFolder, cines_digest, digest_of, open_labelled_folder
from echo_plugin.training.options import TrainOptions
from echo_plugin.training.prepared_frames import PreparedFrames, file_stamp
from echo_plugin.training.provenance import known_patients
from echo_plugin.training.splits import Split
from echo_plugin.training.views import view_config
from echo_plugin.views.folds import (
    Published,
    answers_of,
    clip_table,
    learn_clip_stage,
    learn_frame_stage,
    patient_folds,
    prepare_clips,
)
from echo_plugin.views.reproduced_table import ROWS, Row, describe, tabulate

Progress = Callable[[int, int, str], None]

TEST_FOLDS = 4
"""Of phantoms, one fold in so many is tested for each seed."""


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


def reproduce_views(
    studies: Path,
    out: Path,
    *,
    seeds: int,
    folds: int,
    options: TrainOptions,
    vocabulary: Sequence[View] = NED_12,
    start: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train and measure every row on every unit, write results.json and table.md to ``out``, and return the results.

    ``folds`` : all of them are measured for each seed; 0: one in four patients, drawn anew for each seed.
    ``start`` : the file of a published view classifier whose encoder every row begins with; None: random weights.

    Raises
    ------
    TrainingDataError
        If there are too few patients with a view of the vocabulary whom the starting weights have not seen.
    ModelNotFoundError, ModelMismatchError
        If ``start`` is no published view classifier of the same backbone.
    """
    labelled = open_labelled_folder(studies)
    begun = None if start is None else load_published(start.parent, start.stem)
    cines = [cine for cine in labelled.cines if cine.annotation.view in vocabulary]
    strangers = _strangers([cine.patient_id for cine in cines], begun)
    cines = [cine for cine in cines if cine.patient_id in strangers]
    units = list(_units([cine.patient_id for cine in cines], seeds, folds))
    runs = out / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    prepared: dict[str, PreparedFrames] = {}
    results: dict[str, list[dict[str, Any]]] = {row.name: [] for row in ROWS}
    for number, unit in enumerate(units):
        for row, outcome in _unit_rows(labelled, cines, vocabulary, unit, options, runs, prepared, begun):
            results[row.name].append(outcome)
            if progress is not None:
                progress(number * len(ROWS) + ROWS.index(row) + 1, len(units) * len(ROWS), f"{unit.file}, {row.name}")
    patients = {name: number for number, name in enumerate(sorted({cine.patient_id for cine in cines}))}
    owners = [str(patients[cine.patient_id]) for cine in cines]
    words = "phantoms" if labelled.is_phantom else "patients"
    report = {
        "on_phantoms": labelled.is_phantom,
        "patients": len(patients),
        "cines": len(cines),
        "views": [view.value for view in vocabulary],
        "units": [unit.file for unit in units],
        "backbone": view_config(options, len(vocabulary)).backbone,
        "epochs": options.epochs,
        "begun_with": "random weights" if begun is None else f"the encoder of {begun[0].name} {begun[0].version}",
        **tabulate(results, owners, [view.value for view in vocabulary], f"unseen {words}"),
    }
    write_synced(out / "results.json", (json.dumps(report, indent=1, allow_nan=False) + "\n").encode())
    write_synced(out / "table.md", describe(report).encode())
    return report


def _strangers(patients: Sequence[str], begun: Published | None) -> frozenset[str]:
    """Return the patients whom the starting weights have not seen."""
    everyone = frozenset(patients)
    strangers = everyone if begun is None else everyone - known_patients(begun[0], sorted(everyone)).keys()
    if everyone and not strangers:
        msg = f"All {len(everyone)} patients are known to the weights to begin with; other patients are accepted."
        raise TrainingDataError(msg)
    return strangers


def _units(patients: Sequence[str], seeds: int, folds: int) -> Iterator[Unit]:
    for seed in range(seeds):
        splits = patient_folds(patients, folds or TEST_FOLDS, seed)
        for fold, split in enumerate(splits if folds else splits[:1]):
            yield Unit(seed, fold, split)


def _unit_rows(
    labelled: LabelledFolder,
    cines: Sequence[Any],
    vocabulary: Sequence[View],
    unit: Unit,
    options: TrainOptions,
    runs: Path,
    prepared: dict[str, PreparedFrames],
    begun: Published | None,
) -> Iterator[tuple[Row, dict[str, Any]]]:
    """Yield the outcome of every row of a unit; those that an earlier run left are read."""
    options = dataclasses.replace(options, seed=unit.seed)
    files = [file_stamp(labelled.folder, cine) for cine in cines]
    taught = [view.value for view in vocabulary], "" if begun is None else begun[0].sha256
    key = digest_of([cines_digest(cines), files, unit.split.digest, unit.seed, unit.fold, _numbers(options), taught])
    state: dict[str, Tensor] | None = None

    def frames_of(config: ViewConfig) -> PreparedFrames:
        name = f"{config.sampling}-{config.frames_per_clip}"
        if name not in prepared:
            prepared[name] = prepare_clips(labelled, cines, config, options)
        return prepared[name]

    for row in ROWS:
        path = runs / f"{unit.file}-{row.file}.json"
        outcome = _read(path, key)
        if outcome is None:
            chosen = dataclasses.replace(options, temporal=row.pooling, sampling=row.sampling)
            config = view_config(chosen, len(vocabulary))
            if state is None:
                first = dataclasses.replace(config, sampling="spaced", frames_per_clip=4)
                state = _frame_state(
                    runs / f"{unit.file}-{key[:12]}.safetensors",
                    clip_table(frames_of(first), first, vocabulary, unit.split),
                    first,
                    options,
                    begun,
                )
            table = clip_table(frames_of(config), config, vocabulary, unit.split)
            model, measure = learn_clip_stage(table, config, state, options)
            answers = answers_of(model, table, 0.0 if measure is None else measure)
            outcome = {"key": key, "truth": answers.truth.tolist(), "cines": answers.cines.tolist()}
            outcome |= {"probabilities": answers.probabilities.round(6).tolist()}
            write_synced(path, json.dumps(outcome).encode())
        yield row, outcome


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


def _numbers(options: TrainOptions) -> list[object]:
    return [
        options.epochs,
        options.backbone,
        options.image_size,
        options.batch_size,
        options.learning_rate,
        options.max_minutes,
    ]


def _read(path: Path, key: str) -> dict[str, Any] | None:
    """Return the outcome that is kept; None: there is none, or it is one of other data or numbers."""
    try:
        outcome: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return outcome if outcome.get("key") == key else None
