# SPDX-License-Identifier: Apache-2.0
"""Detectors for a review, each trained on some of the patients: on a folder of links that holds no other cine."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from echo_plugin.acquisition.review import TrainFold
from echo_plugin.errors import EchoError
from echo_plugin.io.annotation_file import annotation_to_json
from echo_plugin.io.patients_file import PATIENTS_FILE
from echo_plugin.io.study_scan import ANNOTATIONS_DIRECTORY
from echo_plugin.models.card_file import STARTERS, load_card
from echo_plugin.models.checkpoint import SEPTAL_DETECTOR
from echo_plugin.progress import Progress
from echo_plugin.training.datasets import LabelledFolder, open_judgeable_folder
from echo_plugin.training.options import EpochStatus, TrainOptions
from echo_plugin.training.provenance import known_patients, names_its_patients

logger = logging.getLogger(__name__)


def train_folds(studies: Path, models: Path, options: TrainOptions) -> TrainFold:
    """Return what trains a detector on given patients of a study folder.

    It goes on from the detector in ``models`` where that has seen none of the folder's patients, else from the starter
    weights where those have not, else from nothing: a detector that began with one that knows a patient may not judge
    that patient.
    """
    labelled, _ = open_judgeable_folder(studies)
    begin = next((folder for folder in (models, STARTERS) if _is_stranger(folder, labelled)), None)
    start = "scratch" if begin is None else "starter"
    logger.info("Detectors of the folds start from %s", begin or start)

    def train(patients: Sequence[str], publish_to: Path, progress: Progress) -> None:
        from echo_plugin.training.detector import train_detector

        def on_epoch(status: EpochStatus) -> None:
            progress(status.epoch, status.total_epochs, "epochs")

        with tempfile.TemporaryDirectory(prefix="monailabel-echo-fold-") as folder:
            link_cines(labelled, patients, Path(folder))
            with_start = replace(options, start=start, starter=begin)
            train_detector(Path(folder), publish_to, with_start, on_epoch=on_epoch, progress=progress)

    return train


def _is_stranger(models: Path, labelled: LabelledFolder) -> bool:
    try:
        card = load_card(models, SEPTAL_DETECTOR)
    except EchoError:
        return False
    patients = sorted({cine.patient_id for cine in labelled.cines})
    return names_its_patients(card) and not known_patients(card, patients, labelled.folder.entries())


def link_cines(labelled: LabelledFolder, patients: Sequence[str], folder: Path) -> None:
    """Fill ``folder`` with links to the labelled cines of these patients, their labels, and patients.csv."""
    root = labelled.folder.root
    annotations = folder / ANNOTATIONS_DIRECTORY
    annotations.mkdir()
    if (root / PATIENTS_FILE).is_file():
        shutil.copy(root / PATIENTS_FILE, folder / PATIENTS_FILE)
    for cine in labelled.of_patients(patients):
        source = labelled.folder.entry(cine.image_id).path
        place = folder / source.relative_to(root)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.symlink(source, place)  # noqa: PTH211 - reads in the order of the words
        except OSError:  # Windows lets few users make links
            shutil.copy(source, place)
        text = annotation_to_json(cine.annotation)
        (annotations / f"{cine.image_id}.json").write_text(text, encoding="utf-8")
