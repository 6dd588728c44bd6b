# SPDX-License-Identifier: Apache-2.0
"""The table of the ASD/VSD paper, made again on phantoms: every network and loss on the same patients.

Patients are split 70/10/20 per cent, as the paper's 84/12/24; each seed splits anew and trains every row on its split.
Rows see crops round the true boxes, so that they differ in the network and not in the detector. Every finished row is
kept, and a run that was stopped goes on; what a row cost is in the table.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from echo_plugin.defects.hog_baseline import hog_svm_scores
from echo_plugin.defects.metrics import any_defect_metrics
from echo_plugin.defects.reproduced_rows import Row
from echo_plugin.defects.reproduced_table import PAPER_ROWS, tabulate, write_table
from echo_plugin.defects.verification import cross_patient_pairs, verification_metrics
from echo_plugin.errors import ModelMismatchError, ModelNotFoundError
from echo_plugin.geometry import FloatArray
from echo_plugin.metrics import Cohort, classification_metrics
from echo_plugin.models.defect_embedder import DefectEmbedder
from echo_plugin.models.durable_file import write_synced
from echo_plugin.runtime import choose_device
from echo_plugin.training.datasets import LabelledCine, LabelledFolder, cines_digest, open_labelled_folder
from echo_plugin.training.defect_calibration import EmbeddedCrops, embed_crops
from echo_plugin.training.defect_crops import (
    DefectCrops,
    boxes_to_crop,
    defect_classes,
    prepare_defect_crops,
    require_shown,
)
from echo_plugin.training.defect_figures import choose_on_validation, majority_class, patients_of
from echo_plugin.training.defect_recipes import chosen_recipe
from echo_plugin.training.defects import learn_defects, load_beginning, optimisation, with_new_head
from echo_plugin.training.loop import place
from echo_plugin.training.options import TrainOptions
from echo_plugin.training.splits import PARTS, Split, split_by_patient

Progress = Callable[[int, int, str], None]

FRACTIONS = (0.7, 0.1, 0.2)
"""The paper's 84, 12 and 24 of 120 patients."""


def reproduce_defects(
    studies: Path,
    out: Path,
    rows: Sequence[Row],
    *,
    seeds: int,
    options: TrainOptions,
    title: str = "table",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train and measure every row for every seed; write ``title`` .json, .md and .html to ``out``.

    Parameters
    ----------
    options
        What all rows share; a row's own options go before them.

    Raises
    ------
    TrainingDataError
        If the folder has too few patients with defect and boxes.
    """
    labelled = open_labelled_folder(studies)
    outcomes = []
    for seed in range(seeds):
        for number, row in enumerate(rows):
            if progress is not None:
                progress(seed * len(rows) + number, seeds * len(rows), row.name)
            own = dataclasses.replace(options, **(row.options or {"recipe": "paper"}), seed=seed)
            outcomes.append(_kept_or_run(labelled, row, own, out / "rows" / title))
            report = {
                "studies": studies.name,
                "on_phantoms": labelled.is_phantom,
                "seeds": seeds,
                "fractions": FRACTIONS,
                "outcomes": outcomes,
                "rows": tabulate(outcomes),
                "paper": PAPER_ROWS,
                "cost_s": sum(outcome.get("wall_time_s", 0.0) for outcome in outcomes),
            }
            write_table(out, title, report)
    if progress is not None:
        progress(seeds * len(rows), seeds * len(rows), "")
    return report


def _kept_or_run(labelled: LabelledFolder, row: Row, options: TrainOptions, folder: Path) -> dict[str, Any]:
    """Return the outcome of a row on one seed; one of the same data and numbers that is kept is read."""
    path = folder / f"{row.file}-seed{options.seed}.json"
    numbers = {k: v for k, v in vars(options).items() if k not in ("cache_dir", "device", "starter", "should_stop")}
    key = repr([cines_digest(labelled.cines), sorted(numbers.items(), key=lambda item: item[0]), row.options is None])
    try:
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if kept.get("key") == key:
            return kept
    except (FileNotFoundError, ValueError):
        pass
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    try:
        outcome = _run(labelled, row, options, folder)
    except (ModelNotFoundError, ModelMismatchError) as exc:
        return {"row": row.name, "seed": options.seed, "not_run": str(exc)}  # tried again: the weights may come
    outcome |= {"row": row.name, "seed": options.seed, "key": key, "wall_time_s": round(time.monotonic() - started, 1)}
    write_synced(path, json.dumps(outcome, indent=1).encode())
    return outcome


def _run(labelled: LabelledFolder, row: Row, options: TrainOptions, folder: Path) -> dict[str, Any]:
    torch.manual_seed(options.seed)
    recipe = chosen_recipe(options)
    cropping = recipe.network.cropping
    cines = [cine for cine in labelled.cines if cine.annotation.defect and boxes_to_crop(cine, cropping)]
    model = DefectEmbedder(dataclasses.replace(recipe.network, classes=len(defect_classes(cines))))
    start = load_beginning(model, folder, options) if row.options is not None else None
    defects = labelled.defects
    patients = sorted({cine.patient_id for cine in cines})
    split = split_by_patient({p: defects.get(p) for p in patients}, seed=options.seed, fractions=FRACTIONS)
    crops = prepare_defect_crops(
        labelled,
        cines,
        size_px=recipe.network.input_size_px,
        cropping=cropping,
        frames_per_cine=recipe.frames_per_cine,
        cache_dir=options.cache_dir,
    )
    parts = crops.frames.readable({part: _cines_of(part, split, cines) for part in PARTS})
    require_shown(crops, parts, cropping)
    if start is None:
        return _measure(_HogAnswers(crops, parts, options.seed), crops, parts, options.seed)
    place(model, choose_device(options.device))
    kept = folder / f"{row.file}-seed{options.seed}.state.pt", split.digest
    learned = learn_defects(
        model, crops, parts, optimisation(recipe, start, options), options, on_epoch=None, kept=kept
    )
    learned = with_new_head(model, crops, parts, learned, recipe, options)
    validation, test = (embed_crops(model, crops, parts[part]) for part in ("validation", "test"))
    model.float().cpu()
    chosen = choose_on_validation(model, validation, crops)
    outcome = _measure(_NetworkAnswers(model, test), crops, parts, options.seed)
    kept[0].unlink(missing_ok=True)
    begun = start.card.name if start.card else start.body or "random weights"
    return outcome | {
        "network": f"{recipe.network.backbone}, {recipe.network.input_size_px} px, {cropping}, begun with {begun}",
        "epochs": learned.epochs,
        "validation_measure": learned.best_metric,
        "chosen": chosen | {name: getattr(model.config, name) for name in ("frame_focus", "focus", "shown_share")},
    }


def _cines_of(part: str, split: Split, cines: Sequence[LabelledCine]) -> list[LabelledCine]:
    wanted = frozenset(getattr(split, part))
    return [cine for cine in cines if cine.patient_id in wanted]


@dataclass(frozen=True)
class _NetworkAnswers:
    """What a network says of the test cines and patients."""

    model: DefectEmbedder
    embedded: EmbeddedCrops

    @torch.no_grad()
    def of_cines(self) -> tuple[FloatArray, FloatArray]:
        """Return (C, K) probabilities and (C, D) unit embeddings."""
        embeddings = self.embedded.of_cines(self.model)
        unit = self.model.signature(embeddings)
        return self.model.probabilities(embeddings).double().numpy(), unit.double().numpy()

    @torch.no_grad()
    def of_patients(self, patients: Sequence[str]) -> FloatArray:
        """Return (P, K) probabilities."""
        return self.embedded.of_patients(self.model, patients).numpy()


class _HogAnswers:
    """What the support vector machine says of the test cines and patients: the mean of the scores of their crops."""

    def __init__(self, crops: DefectCrops, parts: dict[str, list[LabelledCine]], seed: int) -> None:
        learned_from = torch.cat([crops.frames.of(parts[part]) for part in ("train", "validation")])
        learned_from = learned_from[crops.is_example[learned_from]]
        items = [crops.frames.of([cine]) for cine in parts["test"]]
        scores = hog_svm_scores(crops, learned_from, torch.cat(items), seed)
        self.scores = [part.mean(dim=0) for part in torch.split(scores, [len(rows) for rows in items])]
        self.patients = [cine.patient_id for cine in parts["test"]]

    def of_cines(self) -> tuple[FloatArray, FloatArray]:
        """Return (C, K) probabilities and (C, K) unit vectors of scores."""
        scores = torch.stack(self.scores)
        return scores.softmax(dim=1).double().numpy(), torch.nn.functional.normalize(scores, dim=1).double().numpy()

    def of_patients(self, patients: Sequence[str]) -> FloatArray:
        """Return (P, K) probabilities."""
        rows = [[s for s, p in zip(self.scores, self.patients, strict=True) if p == patient] for patient in patients]
        means: Tensor = torch.stack([torch.stack(row).mean(dim=0) for row in rows])
        return means.softmax(dim=1).double().numpy()


def _measure(
    answers: _NetworkAnswers | _HogAnswers, crops: DefectCrops, parts: dict[str, list[LabelledCine]], seed: int
) -> dict[str, Any]:
    """Return the figures of the paper's table by patient, verification between cines of different patients."""
    classes, split = [defect.value for defect in crops.classes], "test patients (phantoms)"
    majority = majority_class(crops, parts["train"])
    patients, truth = patients_of(parts["test"], crops)
    probabilities = answers.of_patients(patients)
    cohort = Cohort(tuple(patients), split, seed)
    metrics = classification_metrics(cohort, truth.numpy(), probabilities, classes=classes, majority_id=majority)
    normal = classes.index("Normal")
    said = probabilities.argmax(axis=1)
    metrics |= any_defect_metrics(cohort, truth.numpy(), said, normal_id=normal, majority_id=majority)
    cropping = "walls" if bool((crops.walls >= 0).all()) else "union"
    seen = crops.truths(parts["test"], cropping)
    known = torch.where(seen >= 0)[0].tolist()
    _, embeddings = answers.of_cines()
    owners = [parts["test"][number].patient_id for number in known]
    pairs = cross_patient_pairs(embeddings[known], seen[known].numpy(), owners)
    metrics |= verification_metrics(pairs, split, seed)
    return {
        "patients": {part: len({cine.patient_id for cine in cines}) for part, cines in parts.items()},
        "cines": len(parts["test"]),
        "metrics": {
            name: dataclasses.asdict(metric) for name, metric in metrics.items() if metric.value == metric.value
        },
    }
