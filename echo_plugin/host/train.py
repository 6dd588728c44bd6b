# SPDX-License-Identifier: Apache-2.0
"""The trainers: learn from the labels of the study folder, publish, and let the next prediction use it.

One may start by itself after every so many submissions; off unless the server is told otherwise.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from monailabel.interfaces.tasks.train import TrainTask

from echo_plugin.anatomy import DETECTED_SEPTA
from echo_plugin.annotations import Annotation
from echo_plugin.answer.runtime import DEVICES
from echo_plugin.errors import AnnotationError, EchoError, TrainingDataError
from echo_plugin.host.datastore import EchoDatastore
from echo_plugin.host.jobs import JobRunningError, TrainingProgress, is_at_work, read_progress, start_job
from echo_plugin.model_card import ModelCard
from echo_plugin.training.options import DefectOptions, DetectorOptions, TrainOptions, ViewOptions
from echo_plugin.training.splits import require_patient

logger = logging.getLogger(__name__)

MEASURED_PATIENTS = 3
"""One each to learn from, to choose the checkpoint with and to measure on."""

UNMEASURED_PATIENTS = 2
"""Enough to learn from without being measured: boxes on the first cines make the next ones quicker to draw."""

RUNS = ".runs"
"""Beside the models: how the latest training of each went."""

Train = Callable[..., ModelCard]


def _train_detector() -> Train:
    from echo_plugin.training.detector import train_detector

    return train_detector


def _train_defects() -> Train:
    from echo_plugin.training.defects import train_defects

    return train_defects


def _train_views() -> Train:
    from echo_plugin.training.views import train_views

    return train_views


@dataclass(frozen=True)
class Trainable:
    """What a trainer learns.

    ``label`` : what a cine must say, for messages. ``load`` : imports the training function, which the server, whose
    trainings run in another process, never needs. ``teaches`` : whether an annotation is a label for it.
    ``shows`` : whether it is one that not all may lack: frames without a box alone teach no detector.
    """

    title: str
    label: str
    load: Callable[[], Train]
    options: type[TrainOptions]
    teaches: Callable[[Annotation], bool]
    shows: Callable[[Annotation], bool] = lambda _: True
    least_patients: int = MEASURED_PATIENTS


def _names_its_septa(annotation: Annotation) -> bool:
    """Whether there is a frame to learn boxes from, as ``training.datasets.detection_frames`` chooses them."""
    unnamed = {box.frame_index for box in annotation.boxes if box.septum not in DETECTED_SEPTA}
    return bool(set(annotation.annotated_frames) - unnamed)


def _has_boxes(annotation: Annotation) -> bool:
    return any(box.septum in DETECTED_SEPTA for box in annotation.boxes)


TRAINABLES = {
    "septal_boxes": Trainable(
        "Septal detector",
        "septal boxes named IAS or IVS",
        _train_detector,
        DetectorOptions,
        _names_its_septa,
        _has_boxes,
        UNMEASURED_PATIENTS,
    ),
    "defects": Trainable("Defect embedder", "a defect", _train_defects, DefectOptions, lambda a: a.defect is not None),
    "views": Trainable("View classifier", "a view", _train_views, ViewOptions, lambda a: a.view is not None),
}


class CineTrainer(TrainTask):
    """Train one model on the study folder, in a process that MONAI Label starts for it.

    Parameters
    ----------
    name
        A key of ``TRAINABLES``.
    models
        Where the model is published; beside it is the file through which a server sees how far its training is.
    cache
        Where decoded frames are kept.
    device
        auto, cpu or cuda, unless the request names one.
    """

    def __init__(self, name: str, models: Path, cache: Path, device: str) -> None:
        self.about = TRAINABLES[name]
        super().__init__(f"{self.about.title}: learns from every cine that says {self.about.label}")
        self.name = name
        self.models = models
        self.device = device
        self.cache = cache
        self.progress = models / RUNS / f"{name}.json"

    def config(self) -> dict[str, Any]:
        """Return what a viewer may set; 0 epochs: as many as the recipe takes."""
        return {"epochs": 0, "seed": 0}

    def stats(self) -> dict[str, Any]:
        """Return epoch, total_epochs, best_metric, eta_s and status of the latest training; empty before the first."""
        return read_progress(self.progress)

    def submitted(self) -> None:
        """Forget the training before: one is being started, and reports in some seconds."""
        TrainingProgress(self.progress).submitted()

    def stopped(self) -> None:
        """Take note that a training was stopped, should it not have come to reporting."""
        if self.stats().get("status") == "SUBMITTED":
            TrainingProgress(self.progress).stopped()

    def require_trainable(self, datastore: EchoDatastore, request: Mapping[str, Any]) -> TrainOptions:
        """Return the options of a training that can start.

        Raises
        ------
        TrainingDataError
            If too few patients are labelled, a cine to learn from has no patient id, an annotation cannot be read, or
            models cannot be published.
        ValueError
            If a parameter of the request is malformed.
        """
        options = self._options(request)
        patients: set[str] = set()
        shown = False
        for image_id, patient in self._patients_of_labels(datastore).items():
            if len(patients) >= self.about.least_patients and shown:
                break  # thousands of other labels need not be read for this
            annotation = self._annotation(datastore, image_id)
            if annotation is not None and not annotation.is_unusable and self.about.teaches(annotation):
                patients.add(patient)
                shown = shown or self.about.shows(annotation)
        if len(patients) < self.about.least_patients:
            msg = (
                f"Training {self.name} needs cines that say {self.about.label} of at least"
                f" {self.about.least_patients} patients; the study folder has {len(patients)}."
            )
            raise TrainingDataError(msg)
        if not shown:
            msg = f"Training {self.name} needs {self.about.label}; the labels of {len(patients)} patients have none."
            raise TrainingDataError(msg)
        if not os.access(self.models, os.W_OK):
            msg = f"Model folder {self.models} cannot be written; start the server with --models and a folder that can."
            raise TrainingDataError(msg)
        return options

    def _patients_of_labels(self, datastore: EchoDatastore) -> dict[str, str]:
        """Return the patient of each cine that `open_labelled_folder` returns; what it refuses is refused here."""
        said = datastore.labels.current()  # an annotation is not in it that says nothing or cannot be read
        known = {entry.image_id: entry.patient_id for entry in datastore.studies.entries() if entry.error is None}
        annotated = [image_id for image_id in datastore.studies.annotated_ids() if image_id in known]
        for image_id in annotated:
            if image_id not in said:
                self._annotation(datastore, image_id)
        return {i: require_patient(known[i], i) for i in annotated if i in said and not said[i].is_unusable}

    def _annotation(self, datastore: EchoDatastore, image_id: str) -> Annotation | None:
        try:
            return datastore.studies.annotation(image_id)
        except AnnotationError as exc:
            msg = f"Training {self.name} cannot start: {exc}"
            raise TrainingDataError(msg) from exc

    def _options(self, request: Mapping[str, Any]) -> TrainOptions:
        numbers: dict[str, int] = {}
        for key in ("epochs", "seed"):
            text = request.get(key) or 0
            if isinstance(text, bool) or not (str(text).isdecimal() and len(str(text)) < 10):
                msg = (
                    f"Training {self.name}: {key} is {str(text)[:40]!r}; a whole number of 0 to 999999999 is accepted."
                )
                raise ValueError(msg)
            numbers[key] = int(text)
        device = str(request.get("device") or self.device)
        # MONAI Label's clients ask for "cuda" whether there is a GPU or not; the server knows
        device = self.device if device.startswith("cuda") else device
        if device not in DEVICES:
            msg = f"Training {self.name}: device is {device[:40]!r}; {', '.join(DEVICES)} are accepted."
            raise ValueError(msg)
        return self.about.options(
            epochs=numbers["epochs"] or None,
            seed=numbers["seed"],
            device=device,
            cache_dir=self.cache / "frames",
            log_dir=self.models / "logs",
            command=f"MONAI Label: train {self.name}",
        )

    def __call__(self, request: Mapping[str, Any], datastore: EchoDatastore) -> dict[str, Any]:
        """Train, publish, and return the card's name, version and metrics."""
        progress = TrainingProgress(self.progress)
        logging.getLogger("echo_plugin").addHandler(progress)

        progress.start()
        try:
            options = self.require_trainable(datastore, request)
            train = self.about.load()
            card = train(datastore.root, self.models, options, on_epoch=progress.epoch_done)
        except (EchoError, ValueError) as exc:
            progress.failed(str(exc))
            raise
        except Exception as exc:
            progress.failed(f"Training {self.name} failed ({type(exc).__name__}: {exc}).")
            raise
        finally:
            logging.getLogger("echo_plugin").removeHandler(progress)
        unmeasured = "" if card.metrics else " Its metric is missing: no annotated patient was left to measure with."
        progress.done(f"Published {card.name} {card.version}.{unmeasured}")
        return {"model": card.name, "version": card.version, "metrics": {k: m.value for k, m in card.metrics.items()}}


def trainers(models: Path, cache: Path, device: str) -> dict[str, CineTrainer]:
    """Return the trainers by name; the first one's progress is what 3D Slicer's bar shows."""
    return {name: CineTrainer(name, models, cache / "training", device) for name in TRAINABLES}


def submissions_wanted(text: str | None) -> int:
    """Return after how many submissions to train; 0: never.

    Raises
    ------
    ValueError
        If ``text`` is no whole number from 0.

    Examples
    --------
    >>> submissions_wanted("10"), submissions_wanted(None)
    (10, 0)
    """
    if not text:
        return 0
    if not (text.isdecimal() and len(text) < 7):
        msg = f"auto_finetune is {text[:40]!r}; the number of submissions after which to train is accepted, 0: never."
        raise ValueError(msg)
    return int(text)


class AutoFinetune:
    """Start ``trainer`` once ``every`` cines have a new label since its latest training (or since the server began).

    A cine that is submitted twice counts once. While a training runs, labels are counted on, and the first submission
    after its end starts the next.
    """

    def __init__(self, every: int, datastore: EchoDatastore, trainer: CineTrainer) -> None:
        self._every = every
        self._datastore = datastore
        self._trainer = trainer
        self._began_at = datetime.now(UTC)

    def new_labels(self) -> int:
        """Return how many cines got a label, or another, since the latest training began."""
        started_at = self._trainer.stats().get("started_at")
        since = datetime.fromisoformat(started_at) if started_at else self._began_at
        labels = self._datastore.labels.current().values()
        return sum(label.saved_at is not None and label.saved_at > since for label in labels)

    def submitted(self) -> bool:
        """Return whether a training was started, now that somebody has submitted a label."""
        if not self._every or is_at_work("train") or self.new_labels() < self._every:
            return False
        try:
            self._trainer.require_trainable(self._datastore, {})
            start_job("train", {"model": self._trainer.name}, before=self._trainer.submitted)
        except (JobRunningError, TrainingDataError) as exc:
            logger.info("Not trained after %d submissions: %s", self._every, exc)
            return False
        logger.info("Training %s starts: %d cines have a new label", self._trainer.name, self._every)
        return True
