# SPDX-License-Identifier: Apache-2.0
"""The table of the ASD/VSD paper, made again on phantoms: every network and loss on the same patients.

Patients are split 70/10/20 per cent, as the paper's 84/12/24; each seed splits anew and trains every row on its split.
Rows see crops round the true boxes, so that they differ in the network and not in the detector. Every finished row is
kept, and a run that was stopped goes on; what a row cost is in the table.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from echo_plugin.defects.reproduced_answers import HogAnswers, NetworkAnswers, measure, validation_log_loss
from echo_plugin.defects.reproduced_rows import Row
from echo_plugin.defects.reproduced_summary import summarise_table
from echo_plugin.defects.reproduced_table import MEASURES, PAPER_ROWS, write_table
from echo_plugin.errors import ModelMismatchError, ModelNotFoundError
from echo_plugin.models.card_file import load_card
from echo_plugin.models.checkpoint import DEFECT_EMBEDDER, VIEW_CLASSIFIER
from echo_plugin.models.defect_embedder import DefectEmbedder
from echo_plugin.progress import Progress
from echo_plugin.runtime import choose_device
from echo_plugin.training.datasets import LabelledCine, LabelledFolder, digest_of, open_labelled_folder
from echo_plugin.training.defect_calibration import embed_crops
from echo_plugin.training.defect_crops import (
    DefectCrops,
    boxes_to_crop,
    defect_classes,
    prepare_defect_crops,
    require_shown,
    without_several_defects,
)
from echo_plugin.training.defect_figures import choose_on_validation
from echo_plugin.training.defect_recipes import chosen_recipe, optimisation
from echo_plugin.training.defects import learn_defects, load_beginning, with_new_head
from echo_plugin.training.kept_outcome import facts_of_cines, keep_outcome, read_outcome
from echo_plugin.training.loop import place
from echo_plugin.training.options import TrainOptions
from echo_plugin.training.provenance import data_key, seen_patients, words_for_test
from echo_plugin.training.splits import PARTS, Split, split_by_patient
from echo_plugin.training.start_weights import Start
from echo_plugin.training.state import training_key

logger = logging.getLogger(__name__)


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
    summarise: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]] = summarise_table,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train and measure every row for every seed; write ``title`` .json, .md and .html to ``out``.

    Parameters
    ----------
    options
        What all rows share; a row's own options go before them.
    summarise
        What the outcomes say: the rows of the table, and sentences.

    Raises
    ------
    TrainingDataError
        If the folder has too few patients with defect and boxes.
    """
    labelled = without_several_defects(without_known(open_labelled_folder(studies), rows, options))
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
                **summarise(outcomes),
                "paper": PAPER_ROWS,
                "cost_s": sum(outcome.get("wall_time_s", 0.0) for outcome in outcomes),
            }
            write_table(out, title, report)
    if progress is not None:
        progress(seeds * len(rows), seeds * len(rows), "")
    return report


def without_known(labelled: LabelledFolder, rows: Sequence[Row], options: TrainOptions) -> LabelledFolder:
    """Return the folder without patients of whom a published model that some row begins with has learned."""
    names = {"views": VIEW_CLASSIFIER, "starter": DEFECT_EMBEDDER}
    patients = {cine.patient_id for cine in labelled.cines}
    known: set[str] = set()
    for start in {str((row.options or {}).get("start", "")) for row in rows} & set(names):
        if options.starter is not None:
            with suppress(ModelNotFoundError, ModelMismatchError):
                card = load_card(options.starter, names[start])
                known |= seen_patients(card, patients, labelled.folder.entries())
    if known:
        logger.warning("%d patients are left out: the weights that rows begin with have seen them", len(known))
    return dataclasses.replace(labelled, cines=tuple(c for c in labelled.cines if c.patient_id not in known))


def _kept_or_run(labelled: LabelledFolder, row: Row, options: TrainOptions, folder: Path) -> dict[str, Any]:
    """Return the outcome of a row on one seed; one of the same files, labels, numbers and first weights is read."""
    path = folder / f"{row.file}-seed{options.seed}.json"
    numbers = {k: v for k, v in vars(options).items() if k not in ("cache_dir", "device", "starter", "should_stop")}
    facts = facts_of_cines(labelled, labelled.cines)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    try:
        model, start = _begin(labelled, row, options, folder)
        key = training_key(
            model, digest_of(facts), sorted(numbers.items(), key=lambda i: i[0]), row.options is None, MEASURES
        )
        if (kept := read_outcome(path, key)) is not None:
            return kept
        outcome = _run(labelled, row, options, folder, (model, start))
    except (ModelNotFoundError, ModelMismatchError) as exc:
        return {"row": row.name, "seed": options.seed, "not_run": str(exc)}  # tried again: the weights may come
    spent_s = time.monotonic() - started + outcome.pop("earlier_s", 0.0)
    outcome |= {"row": row.name, "seed": options.seed, "wall_time_s": round(spent_s, 1)}
    keep_outcome(path, key, outcome)
    return outcome


def _begin(
    labelled: LabelledFolder, row: Row, options: TrainOptions, folder: Path
) -> tuple[DefectEmbedder, Start | None]:
    """Return the network of a row with the weights that it begins with; without a start for the row without one."""
    torch.manual_seed(options.seed)
    network = chosen_recipe(options).network
    classes = [defect.value for defect in defect_classes(labelled.cines)]
    model = DefectEmbedder(dataclasses.replace(network, classes=len(classes)))
    return model, load_beginning(model, folder, options, classes) if row.options is not None else None


@dataclass(frozen=True)
class Material:
    """The crops of one cropping and size, and which cines of one split are for what."""

    cines: tuple[LabelledCine, ...]
    split: Split
    crops: DefectCrops
    parts: dict[str, list[LabelledCine]]


def _run(
    labelled: LabelledFolder,
    row: Row,
    options: TrainOptions,
    folder: Path,
    begun: tuple[DefectEmbedder, Start | None],
) -> dict[str, Any]:
    """Return what a row is worth; ``earlier_s`` : how long it had learned before it was stopped, wall time."""
    model, start = begun
    material = _prepare(labelled, options)
    crops, parts, words = material.crops, material.parts, words_for_test(labelled)
    if start is None:
        return measure(HogAnswers(crops, parts, options.seed), crops, parts, words, options.seed)
    place(model, choose_device(options.device))
    facts = [
        data_key(material.cines, material.split, options, model.config),
        *facts_of_cines(labelled, material.cines),
    ]
    kept = folder / f"{row.file}-seed{options.seed}.state.pt", digest_of(facts)
    began = time.monotonic()
    recipe = chosen_recipe(options)
    learned = learn_defects(model, crops, parts, optimisation(recipe, start, options), options, None, kept)
    earlier_s = max(0.0, learned.wall_time_s - (time.monotonic() - began))
    learned = with_new_head(model, crops, parts, learned, recipe, options)
    validation, test = (embed_crops(model, crops, parts[part]) for part in ("validation", "test"))
    model.float().cpu()
    chosen = choose_on_validation(model, validation, crops)
    outcome = measure(NetworkAnswers(model, test), crops, parts, words, options.seed)
    kept[0].unlink(missing_ok=True)
    source = start.card.name if start.card else start.body or "random weights"
    network = recipe.network
    return outcome | {
        "network": f"{network.backbone}, {network.input_size_px} px, {network.cropping}, begun with {source}",
        "epochs": learned.epochs,
        "earlier_s": earlier_s,
        "validation_log_loss": validation_log_loss(NetworkAnswers(model, validation), crops),
        "chosen": chosen
        | {name: getattr(model.config, name) for name in ("frame_focus", "focus", "patient_temperature")},
    }


def _prepare(labelled: LabelledFolder, options: TrainOptions) -> Material:
    recipe = chosen_recipe(options)
    cropping = recipe.network.cropping
    cines = [cine for cine in labelled.cines if cine.annotation.defect and boxes_to_crop(cine, cropping)]
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
    return Material(tuple(cines), split, crops, parts)


def _cines_of(part: str, split: Split, cines: Sequence[LabelledCine]) -> list[LabelledCine]:
    wanted = frozenset(getattr(split, part))
    return [cine for cine in cines if cine.patient_id in wanted]
