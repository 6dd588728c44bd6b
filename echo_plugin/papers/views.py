# SPDX-License-Identifier: Apache-2.0
"""Table 2 of the neonatal-view paper (ISBI 2025), made again: every way to join frames, on the same patients.

All rows of a unit (a seed and a split of the patients) begin with one classifier of single frames and differ in what
follows. The optimisation is ours (AdamW, averaged weights), the same for every row. Each unit chooses its checkpoint on
patients of its own, neither learned from nor reported; the paper chose it on the fold it reports. What is measured is
one clip from the middle of each cine. A run that was stopped goes on where it was; one of other files, numbers or
starting weights begins anew. Patients from whom the starting weights learned, or who chose them, take no part.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file
from safetensors.torch import save as save_safetensors
from torch import Tensor

from echo_plugin.anatomy import NED_12, View
from echo_plugin.durable import write_atomically
from echo_plugin.errors import ModelMismatchError, TrainingDataError
from echo_plugin.evaluate.folds import (
    FoldAnswers,
    Published,
    answers_of,
    clip_table,
    facts_of_cines,
    facts_of_options,
    fold_choice,
    keep_outcome,
    learn_clip_stage,
    learn_frame_stage,
    patient_folds,
    read_outcome,
)
from echo_plugin.evaluate.report import markdown_table
from echo_plugin.evaluate.views import view_metrics
from echo_plugin.geometry import FloatArray
from echo_plugin.measure.classes import Cohort
from echo_plugin.model_card import LearnedTimes, ViewDecision
from echo_plugin.models.checkpoint import load_published
from echo_plugin.network_config import ViewConfig
from echo_plugin.papers.frozen_encoder import EmbeddedFrames, embed_frames, joining_answers, learn_joining
from echo_plugin.progress import Progress
from echo_plugin.training.datasets import LabelledCine, LabelledFolder, PreparedFrames, digest_of, open_labelled_folder
from echo_plugin.training.options import ViewOptions
from echo_plugin.training.provenance import names_its_patients, seen_patients
from echo_plugin.training.splits import Split
from echo_plugin.training.view_stages import ClipTable, learned_times
from echo_plugin.training.views import cines_of_views, view_config

MEASURES = ("accuracy", "macro_precision", "balanced_accuracy", "macro_f1")
"""Accuracy, precision, recall and F1 of the paper; its precision, recall and F1 are means over the views."""


@dataclass(frozen=True)
class Row:
    """A line of the table: how frames are joined, which ones, and the paper's percentages in the order of MEASURES."""

    name: str
    pooling: str
    sampling: str
    paper: tuple[float, float, float, float] | None = None

    @property
    def file(self) -> str:
        """Part of a file's name."""
        return f"{self.pooling}-{self.sampling}"


ROWS = (
    Row("image classifier", "image", "consecutive", (89.55, 88.99, 89.55, 89.20)),
    Row("mean of 4 consecutive", "mean", "consecutive", (89.73, 90.66, 89.73, 90.01)),
    Row("mean of 4 spaced", "mean", "spaced", (89.99, 90.95, 89.99, 90.27)),
    Row("GRU, 4 consecutive", "gru", "consecutive", (88.46, 88.84, 88.46, 88.44)),
    Row("GRU, 4 spaced", "gru", "spaced"),
    Row("attention, 4 consecutive", "attention", "consecutive", (92.13, 92.14, 91.36, 91.19)),
    Row("attention, 4 spaced", "attention", "spaced"),
    Row("GRU + weaving, 4 spaced", "weave", "spaced", (92.55, 92.72, 92.55, 92.51)),
    Row("GRU + weaving, 4 consecutive", "weave", "consecutive", (93.88, 93.65, 93.88, 93.73)),
)
COMPARISONS = (
    ("weaving over plain GRU, consecutive", "GRU + weaving, 4 consecutive", "GRU, 4 consecutive"),
    ("weaving over plain GRU, spaced", "GRU + weaving, 4 spaced", "GRU, 4 spaced"),
    ("weaving over attention, consecutive", "GRU + weaving, 4 consecutive", "attention, 4 consecutive"),
    ("weaving, consecutive, over the image classifier", "GRU + weaving, 4 consecutive", "image classifier"),
    ("weaving, spaced, over the image classifier", "GRU + weaving, 4 spaced", "image classifier"),
    ("consecutive over spaced, with weaving", "GRU + weaving, 4 consecutive", "GRU + weaving, 4 spaced"),
)


def tabulate(
    results: Mapping[str, Sequence[Mapping[str, Any]]], owners: Sequence[str], classes: Sequence[str], split: str
) -> dict[str, Any]:
    """Return the rows with intervals over all units, and the paired differences between them; JSON-ready.

    ``owners`` : the patient of each cine that ``cines`` of an outcome counts.
    """
    rows = []
    for row in ROWS:
        each = results[row.name]
        cohort, truth, probabilities = _pooled(each, owners, split)
        metrics = view_metrics(cohort, truth, probabilities, classes, None)
        wanted = {name: dataclasses.asdict(metrics[name]) for name in metrics if name in MEASURES or "confused" in name}
        of_units = [float((np.array(o["probabilities"]).argmax(1) == np.array(o["truth"])).mean()) for o in each]
        rows.append({"name": row.name, "paper_percent": row.paper, "metrics": wanted, "accuracy_of_units": of_units})
    differences = []
    for name, better, worse in COMPARISONS:
        cohort, truth, one = _pooled(results[better], owners, split)
        _, _, other = _pooled(results[worse], owners, split)
        gain = (one.argmax(1) == truth).astype(float) - (other.argmax(1) == truth)
        metric = cohort.mean(gain)
        differences.append({"name": name, **dataclasses.asdict(metric), "verdict": verdict(metric.low, metric.high)})
    return {"rows": rows, "differences": differences}


def verdict(low: float | None, high: float | None) -> str:
    """Return in a word what an interval of a difference in accuracy shows."""
    if low is None or high is None or low <= 0 <= high:
        return "not shown"
    return "helps" if low > 0 else "hurts"


def _pooled(
    outcomes: Sequence[Mapping[str, Any]], owners: Sequence[str], split: str
) -> tuple[Cohort, NDArray[np.int_], FloatArray]:
    truth = np.concatenate([np.array(o["truth"], dtype=int) for o in outcomes])
    probabilities = np.concatenate([np.array(o["probabilities"], dtype=float) for o in outcomes])
    patients = tuple(owners[i] for o in outcomes for i in o["cines"])
    return Cohort(patients, split), truth, probabilities


def describe(report: Mapping[str, Any]) -> str:
    """Return the table beside the paper's, in Markdown."""
    kind = "phantoms (synthetic; they say nothing about patients)" if report["on_phantoms"] else "patients"
    lines = [
        f"{report['patients']} {kind}, {report['cines']} cines, {len(report['units'])} units, {report['backbone']},"
        f" begun with {report['begun_with']}, {report['epochs'] or 'default'} epochs; percent, 95 % intervals by"
        " resampling patients.",
        "",
    ]
    rows = []
    for row in report["rows"]:
        metrics = row["metrics"]
        cells = [_percent(metrics[name]) for name in MEASURES]
        pair = [_percent(m) for name, m in metrics.items() if "confused" in name] or ["–"]
        paper = "/".join(f"{value:.2f}" for value in row["paper_percent"]) if row["paper_percent"] else "–"
        rows.append([row["name"], *cells, *pair, paper])
    columns = (
        "model",
        "accuracy",
        "precision",
        "recall",
        "F1",
        "confused PSAX-MV / PSAX-PM",
        "paper (accuracy/P/R/F1)",
    )
    differences = [(d["name"], _percent(d), d["verdict"]) for d in report["differences"]]
    lines += [markdown_table(columns, rows), ""]
    lines.append(markdown_table(("difference in accuracy, same cines", "points", ""), differences))
    return "\n".join(lines) + "\n"


def _percent(metric: Mapping[str, Any]) -> str:
    value = f"{100 * metric['value']:.1f}"
    return value if metric["low"] is None else f"{value} [{100 * metric['low']:.1f}, {100 * metric['high']:.1f}]"


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
    """What all units share. ``runs`` : where outcomes are kept. ``is_frozen`` : ``begun``'s encoder learns no more."""

    labelled: LabelledFolder
    cines: tuple[LabelledCine, ...]
    vocabulary: tuple[View, ...]
    options: ViewOptions
    runs: Path
    begun: Published | None
    is_frozen: bool
    prepared: dict[str, PreparedFrames] = field(default_factory=dict)

    @property
    def begun_with(self) -> str:
        """The weights that every row begins with, in words."""
        if self.begun is None:
            return "random weights"
        card = self.begun[0]
        return f"the encoder of {card.name} {card.version}" + (", frozen" if self.is_frozen else "")

    @cached_property
    def digest(self) -> str:
        """What tells other files, labels, views, sizes and first weights apart."""
        begun = ["" if self.begun is None else self.begun[0].sha256, self.is_frozen]
        views = [view.value for view in self.vocabulary]
        facts = facts_of_cines(self.labelled, self.cines)
        return digest_of([LEARNING, *facts, views, self.options.image_size, begun, repr(self.times)])

    @cached_property
    def times(self) -> LearnedTimes | None:
        """The interval and span by which clips are taken, in all units: those of the encoder to begin with.

        Without one, the medians of all the cines: what a machine's frame rate is says nothing about a view.
        """
        taught = None if self.begun is None else self.begun[0].decision_as(ViewDecision).times
        return taught or learned_times(self.labelled, self.cines)

    @cached_property
    def embedded(self) -> EmbeddedFrames:
        """What the frozen encoder says of every frame that a row looks at."""
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
        taught = self.begun[0].network_as(ViewConfig)
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
            learn = _frozen_answers if material.is_frozen else _trained_answers
            answers = learn(material, unit, material.config(row), options, key)
            outcome = {"truth": answers.truth.tolist(), "cines": answers.cines.tolist()}
            outcome |= {"probabilities": answers.probabilities.round(6).tolist()}
            keep_outcome(path, key, outcome)
        yield row, outcome


def _trained_answers(material: Material, unit: Unit, config: ViewConfig, options: ViewOptions, key: str) -> FoldAnswers:
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


def _frozen_answers(material: Material, unit: Unit, config: ViewConfig, options: ViewOptions, key: str) -> FoldAnswers:
    """Return what a network says whose encoder is the one to begin with, which learned no more."""
    embedded = material.embedded
    table = embedded.table(fold_choice(config, material.times), material.vocabulary, unit.split)
    model, measure = learn_joining(table, embedded.values, config, options)
    return joining_answers(model, table, embedded.values, measure)


def _frame_state(
    path: Path, table: ClipTable, config: ViewConfig, options: ViewOptions, begun: Published | None
) -> dict[str, Tensor]:
    """Return the classifier of single frames that the rows of a unit begin with, learned once."""
    if path.is_file():
        return load_file(path)
    learned, _ = learn_frame_stage(table, config, options, start=begun)
    state = {name: value.contiguous() for name, value in learned.items()}
    write_atomically(path, save_safetensors(state))
    return state


TEST_FOLDS = 4
"""Of phantoms, one fold in so many is tested for each seed."""


def reproduce_views(
    studies: Path,
    out: Path,
    *,
    seeds: int,
    folds: int,
    options: ViewOptions,
    vocabulary: Sequence[View] = NED_12,
    start: Path | None = None,
    is_frozen: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train and measure every row on every unit, write results.json and table.md to ``out``, and return the results.

    ``folds`` : all of them are measured for each seed; 0: one in four patients, drawn anew for each seed.
    ``start`` : the file of a published view classifier whose encoder every row begins with; None: random weights.
    ``is_frozen`` : that encoder learns nothing more; only what joins the frames does.

    Raises
    ------
    TrainingDataError
        If there are too few patients with a view of the vocabulary whom the starting weights' training has not seen, or
        their card does not list whom it has seen.
    ModelNotFoundError, ModelMismatchError
        If ``start`` is no published view classifier, or one of another backbone or size than the options ask for.
    """
    begun = None if start is None else load_published(start.parent, start.stem)
    options = _as_begun(options, begun)
    labelled = open_labelled_folder(studies)
    cines: Sequence[LabelledCine] = cines_of_views(labelled, vocabulary)
    strangers = _strangers([cine.patient_id for cine in cines], begun)
    cines = [cine for cine in cines if cine.patient_id in strangers]
    units = list(_units([cine.patient_id for cine in cines], seeds, folds))
    (out / "runs").mkdir(parents=True, exist_ok=True)
    material = Material(labelled, tuple(cines), tuple(vocabulary), options, out / "runs", begun, is_frozen)
    report = _report(material, units, _outcomes(material, units, progress))
    write_atomically(out / "results.json", (json.dumps(report, indent=1, allow_nan=False) + "\n").encode())
    write_atomically(out / "table.md", describe(report).encode())
    return report


def _outcomes(material: Material, units: Sequence[Unit], progress: Progress | None) -> dict[str, list[dict[str, Any]]]:
    """Return, by the name of a row, what it gave on each unit."""
    results: dict[str, list[dict[str, Any]]] = {row.name: [] for row in ROWS}
    for number, unit in enumerate(units):
        for row, outcome in unit_rows(material, unit):
            results[row.name].append(outcome)
            if progress is not None:
                progress(number * len(ROWS) + ROWS.index(row) + 1, len(units) * len(ROWS), f"{unit.file}, {row.name}")
    return results


def _report(
    material: Material, units: Sequence[Unit], results: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    """Return the table and what it was made of, JSON-ready; patients are numbers in it."""
    patients = {name: number for number, name in enumerate(sorted({cine.patient_id for cine in material.cines}))}
    owners = [str(patients[cine.patient_id]) for cine in material.cines]
    views, is_phantom = [view.value for view in material.vocabulary], material.labelled.is_phantom
    return {
        "on_phantoms": is_phantom,
        "patients": len(patients),
        "cines": len(material.cines),
        "views": views,
        "units": [unit.file for unit in units],
        "backbone": material.options.backbone,
        "epochs": material.options.epochs,
        "begun_with": material.begun_with,
        **tabulate(results, owners, views, f"unseen {'phantoms' if is_phantom else 'patients'}"),
    }


def _as_begun(options: ViewOptions, begun: Published | None) -> ViewOptions:
    """Return the options with the backbone and the size of the encoder that every row begins with."""
    if begun is None:
        usual = ViewConfig(classes=2)
        return dataclasses.replace(
            options,
            backbone=options.backbone or usual.backbone,
            image_size=options.image_size or usual.input_size_px,
        )
    card = begun[0]
    taught = card.network_as(ViewConfig)
    for word, asked, found in (
        ("--backbone", options.backbone, taught.backbone),
        ("--image-size", options.image_size, taught.input_size_px),
    ):
        if asked not in (None, found):
            msg = f"Model {card.name} {card.version}, to begin with, is of {word} {found}, not {asked}; leave it out."
            raise ModelMismatchError(msg)
    return dataclasses.replace(options, backbone=taught.backbone, image_size=taught.input_size_px)


def _strangers(patients: Sequence[str], begun: Published | None) -> frozenset[str]:
    """Return the patients from whom the starting weights have not learned and who did not choose among them."""
    if begun is not None and not names_its_patients(begun[0]):
        msg = (
            f"Model {begun[0].name} {begun[0].version}, to begin with, does not list the patients it learned from, so"
            " nobody can be called unseen; begin with one that `monailabel-echo train` published."
        )
        raise TrainingDataError(msg)
    everyone = frozenset(patients)
    strangers = everyone
    if begun is not None:
        strangers -= seen_patients(begun[0], everyone)
    if everyone and not strangers:
        msg = (
            f"The weights to begin with learned from all {len(everyone)} patients or were chosen by them; other"
            " patients are accepted."
        )
        raise TrainingDataError(msg)
    return strangers


def _units(patients: Sequence[str], seeds: int, folds: int) -> Iterator[Unit]:
    for seed in range(seeds):
        splits = patient_folds(patients, folds or TEST_FOLDS, seed)
        for fold, split in enumerate(splits if folds else splits[:1]):
            yield Unit(seed, fold, split)
