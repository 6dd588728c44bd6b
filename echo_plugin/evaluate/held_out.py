# SPDX-License-Identifier: Apache-2.0
"""Who may be measured, patients that no model involved learned from or was chosen by, and the groups of a report."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echo_plugin.errors import TrainingDataError
from echo_plugin.measure.classes import Cohort
from echo_plugin.model_card import Metric, ModelCard, load_card
from echo_plugin.training.datasets import LabelledCine, LabelledFolder, open_labelled_folder
from echo_plugin.training.provenance import names_its_patients, seen_patients


@dataclass(frozen=True)
class HeldOut:
    """The cines to measure on, none of a patient that a model involved learned from or chose a checkpoint with.

    ``card`` : of the model that is measured. ``left_out`` : how many patients of the folder were learned from.
    """

    labelled: LabelledFolder
    cines: tuple[LabelledCine, ...]
    card: ModelCard
    split: str
    left_out: int

    @property
    def commonest_class(self) -> int | None:
        """The constant answer: the class id that most training patients had; None: not known."""
        return self.card.cohort.majority_id

    def cohort(self, patients: Sequence[str], seed: int) -> Cohort:
        """Return the cohort of items whose patients are given."""
        return Cohort(tuple(patients), self.split, seed)

    def report(
        self, what: str, cohort: Cohort, metrics: Mapping[str, Metric], extra: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return the JSON-ready report of measuring ``what`` (a word of the command line), without its figures."""
        card, studies = self.card, self.labelled.folder.root.name
        return {
            "task": what,
            "model": {"name": card.name, "version": card.version, "sha256": card.sha256, "trained_on": card.trained_on},
            "on_phantoms": self.labelled.is_phantom,
            "split": self.split,
            "patients": cohort.count,
            "patients_left_out": self.left_out,
            "cines": len(self.cines),
            "seed": cohort.seed,
            "command": f"monailabel-echo evaluate {what} --studies {studies} --models DIR --out DIR"
            + (f" --seed {cohort.seed}" if cohort.seed else ""),
            "metrics": {n: dataclasses.asdict(m) for n, m in metrics.items() if np.isfinite(m.value)},
            **extra,
        }


def choose_held_out(
    studies: Path,
    models: Path,
    names: Sequence[str],
    *,
    patients: Sequence[str] | None,
    wants: Callable[[LabelledCine], bool],
) -> HeldOut:
    """Return the annotated cines of unseen patients that ``wants`` accepts; the first of ``names`` is measured.

    Raises
    ------
    TrainingDataError
        If ``patients`` asks for somebody that was learned from, nobody is left, or a card does not say whom its model
        learned from.
    """
    cards = [load_card(models, name) for name in names]
    for card in cards:
        if not names_its_patients(card):
            msg = (
                f"Model {card.name}: its card does not list the patients it learned from, so nobody can be called"
                " unseen; measure a model that `monailabel-echo train` published."
            )
            raise TrainingDataError(msg)
    labelled = open_labelled_folder(studies)
    everyone = {cine.patient_id for cine in labelled.cines}
    # a file that named nobody was learned from under its image id; whoever it turns out to show has been seen
    ids = [(cine.patient_id, cine.image_id) for cine in labelled.cines]
    known = frozenset[str]().union(*(seen_patients(card, {name for pair in ids for name in pair}) for card in cards))
    seen = {patient for patient, image_id in ids if not known.isdisjoint((patient, image_id))}
    clash = seen & set(patients or ())
    if clash:
        msg = (
            f"{len(clash)} of the {len(set(patients or ()))} patients to measure were learned from by {cards[0].name}."
        )
        raise TrainingDataError(msg)
    chosen = (set(patients) if patients is not None else everyone) - seen
    cines = tuple(cine for cine in labelled.cines if cine.patient_id in chosen and wants(cine))
    if not cines:
        msg = (
            f"Study folder {studies} leaves nothing to measure {cards[0].name} on: {len(seen)} of its {len(everyone)}"
            " patients were learned from, and the others lack these labels; annotate other patients."
        )
        raise TrainingDataError(msg)
    words = f"{'phantoms' if labelled.is_phantom else 'patients'} that were not learned from"
    return HeldOut(labelled, cines, cards[0], words, len(seen))


DAYS_OF_YEAR = 365.25

Ranges = Sequence[tuple[str, float, float]]
"""(words, from, below) of each group."""

AGES: Ranges = (("below 1 year", 0.0, 1.0), ("1 to 5 years", 1.0, 5.0), ("5 years and more", 5.0, np.inf))
"""In years."""

QUALITIES: Ranges = (("below 0.4", 0.0, 0.4), ("0.4 to 0.7", 0.4, 0.7), ("0.7 and more", 0.7, np.inf))
"""Of a phantom's picture, 0 to 1."""


def phantom_facts(studies: Path) -> dict[str, Mapping[str, str]]:
    """Return the rows of phantom.csv by image id; none without that file."""
    try:
        with (studies / "phantom.csv").open(encoding="utf-8", newline="") as table:
            return {row["image_id"]: row for row in csv.DictReader(table) if row.get("image_id")}
    except FileNotFoundError:
        return {}


def number_in(row: Mapping[str, str], name: str) -> float | None:
    """Return a number of a row; None: it is not there."""
    text = row.get(name)
    return float(text) if text else None


def in_ranges(values: Sequence[float | str | None], ranges: Ranges) -> dict[str, NDArray[np.bool_]]:
    """Return by group which of the values (N,) are in it; an unknown one, None, is in none."""
    known = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    return {words: (known >= low) & (known < high) for words, low, high in ranges}


def metric_words(metric: Metric, digits: int = 3) -> str:
    """Return a figure with its interval, such as ``0.910 [0.850, 0.960]``; a dash where it is undefined."""
    if not np.isfinite(metric.value):
        return "–"
    interval = "" if metric.low is None else f" [{metric.low:.{digits}f}, {metric.high:.{digits}f}]"
    return f"{metric.value:.{digits}f}{interval}"
