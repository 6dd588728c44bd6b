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
from pathlib import Path
from typing import Any

from echo_plugin.anatomy import NED_12, View
from echo_plugin.errors import ModelMismatchError, TrainingDataError
from echo_plugin.models.checkpoint import config_from_card, load_published
from echo_plugin.models.durable_file import write_synced
from echo_plugin.models.view_classifier import ViewConfig
from echo_plugin.progress import Progress
from echo_plugin.training.datasets import LabelledCine, LabelledFolder, open_labelled_folder
from echo_plugin.training.options import TrainOptions
from echo_plugin.training.provenance import names_its_patients, seen_patients
from echo_plugin.training.view_cines import cines_of_views
from echo_plugin.views.folds import Published, patient_folds
from echo_plugin.views.reproduced_table import ROWS, describe, tabulate
from echo_plugin.views.reproduced_unit import Material, Unit, unit_rows

TEST_FOLDS = 4
"""Of phantoms, one fold in so many is tested for each seed."""


def reproduce_views(
    studies: Path,
    out: Path,
    *,
    seeds: int,
    folds: int,
    options: TrainOptions,
    vocabulary: Sequence[View] = NED_12,
    start: Path | None = None,
    is_still: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train and measure every row on every unit, write results.json and table.md to ``out``, and return the results.

    ``folds`` : all of them are measured for each seed; 0: one in four patients, drawn anew for each seed.
    ``start`` : the file of a published view classifier whose encoder every row begins with; None: random weights.
    ``is_still`` : that encoder learns nothing more; only what joins the frames does.

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
    strangers = _strangers([cine.patient_id for cine in cines], begun, labelled)
    cines = [cine for cine in cines if cine.patient_id in strangers]
    units = list(_units([cine.patient_id for cine in cines], seeds, folds))
    (out / "runs").mkdir(parents=True, exist_ok=True)
    material = Material(labelled, tuple(cines), tuple(vocabulary), options, out / "runs", begun, is_still)
    report = _report(material, units, _outcomes(material, units, progress))
    write_synced(out / "results.json", (json.dumps(report, indent=1, allow_nan=False) + "\n").encode())
    write_synced(out / "table.md", describe(report).encode())
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


def _as_begun(options: TrainOptions, begun: Published | None) -> TrainOptions:
    """Return the options with the backbone and the size of the encoder that every row begins with."""
    if begun is None:
        usual = ViewConfig(classes=2)
        return dataclasses.replace(
            options,
            backbone=options.backbone or usual.backbone,
            image_size=options.image_size or usual.input_size_px,
        )
    card = begun[0]
    taught = config_from_card(card, ViewConfig)
    for word, asked, found in (
        ("--backbone", options.backbone, taught.backbone),
        ("--image-size", options.image_size, taught.input_size_px),
    ):
        if asked not in (None, found):
            msg = f"Model {card.name} {card.version}, to begin with, is of {word} {found}, not {asked}; leave it out."
            raise ModelMismatchError(msg)
    return dataclasses.replace(options, backbone=taught.backbone, image_size=taught.input_size_px)


def _strangers(patients: Sequence[str], begun: Published | None, labelled: LabelledFolder) -> frozenset[str]:
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
        strangers -= seen_patients(begun[0], everyone, labelled.folder.entries())
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
