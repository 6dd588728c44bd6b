# SPDX-License-Identifier: Apache-2.0
"""The MONAI Label app: a study folder, four predictions, their trainers and the choice of the next cine."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monailabel.interfaces.app import MONAILabelApp

from echo_plugin import __version__
from echo_plugin.anatomy import DETECTED_SEPTA
from echo_plugin.answer.defects import PatientDefect
from echo_plugin.cine import Cine
from echo_plugin.errors import EchoError, ModelNotFoundError
from echo_plugin.evidence.comparison import Comparison, compare_cines
from echo_plugin.evidence.explain import Explanation, explain_defect
from echo_plugin.host.child_process import SERVER_PID_VARIABLE, end_with_server
from echo_plugin.host.datastore import ORIGINAL, EchoDatastore
from echo_plugin.host.dicom_archive import DicomArchive
from echo_plugin.host.folders import file_digest, log_file, move_log, served_folder, served_models
from echo_plugin.host.infer_tasks import DEFECT, SEPTAL_BOXES, SIMILAR_CASES, VIEW, CineBatchInfer, CineInferTask
from echo_plugin.host.keepers import GalleryKeeper, ScoreKeeper
from echo_plugin.host.next_cine import NextCine, WaitingCines, choose_cine, strategies
from echo_plugin.host.pacs import Pacs, authorization_from_environment
from echo_plugin.host.pacs_folder import PacsFolder
from echo_plugin.host.reports import ReportingPipeline, Reports
from echo_plugin.host.train import AutoFinetune, CineTrainer, submissions_wanted, trainers
from echo_plugin.io.cine_file import read_cine

logger = logging.getLogger(__name__)

TASKS = {"septal_boxes": SEPTAL_BOXES, "defects": DEFECT, "views": VIEW, "similar_cases": SIMILAR_CASES}


class EchoApp(MONAILabelApp):
    """What MONAI Label serves.

    Parameters
    ----------
    app_dir
        The app folder; the starter weights are in its ``model`` folder.
    studies
        The study folder; see ``folders`` for what is kept in it and where the rest is.
    conf
        ``models``: folder of published models; without it the study folder's own. ``device``: auto, cpu or cuda.
        ``cache``: where renditions are kept. ``pacs``: address of a DICOMweb archive with the cines.
        ``sr``: auto stores a report of all that is said. ``auto_finetune``: train the septal detector after so many
        submissions; 0: only on request.
    """

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str]) -> None:
        end_with_server()
        if studies.startswith(("http://", "https://")):
            msg = f"Studies {studies} is a DICOMweb address; `monailabel-echo serve --pacs` takes it."
            raise EchoError(msg)
        conf = dict(conf or {})
        self.device = conf.get("device") or "auto"
        self.cache_base = Path(conf["cache"]) if conf.get("cache") else None
        folder, asked = served_folder(Path(studies)), Path(conf["models"]) if conf.get("models") else None
        self.models_dir = served_models(folder, asked, Path(app_dir) / "model", self.cache_base)
        # None: the studies are in a folder, not in an archive
        self.pacs = Pacs(conf["pacs"], authorization_from_environment()) if conf.get("pacs") else None
        self.pipeline = ReportingPipeline(self.models_dir, device=self.device)
        super().__init__(
            app_dir=app_dir,
            studies=str(folder),
            conf=conf,
            name="Paediatric echo",
            description="Septal boxes, defects and views. Research only: not for clinical use.",
            version=__version__,
            # 3D Slicer predicts by itself, on each next sample, with the model of the first of these labels
            labels=[septum.value for septum in DETECTED_SEPTA],
        )
        self.gallery_keeper = GalleryKeeper(self.datastore().studies, self.pipeline)
        self.dicomweb = DicomArchive(self.datastore().studies)
        self.reports = Reports(self.dicomweb, self.pacs)
        self.reports_at_once = conf.get("sr") == "auto"
        self.pipeline.reports = self.reports if self.reports_at_once else None
        wanted = submissions_wanted(conf.get("auto_finetune"))
        self.auto_finetune = AutoFinetune(wanted, self.datastore(), self.trainers["septal_boxes"])

    def init_datastore(self) -> EchoDatastore:
        folder = None if self.pacs is None else PacsFolder(Path(self.studies), self.pacs)
        return EchoDatastore(Path(self.studies), self.cache_base, studies=folder)

    def init_infers(self) -> dict[str, CineInferTask]:
        self.tasks = {name: CineInferTask(about, self.pipeline, self._read_cine) for name, about in TASKS.items()}
        return self.tasks

    def init_trainers(self) -> dict[str, CineTrainer]:
        self.trainers = trainers(self.models_dir, self.datastore().cache, self.device)
        return self.trainers

    def init_strategies(self) -> dict[str, NextCine]:
        self.waiting = WaitingCines(self.datastore(), self.models_dir)
        self.score_keeper = ScoreKeeper(self.datastore(), self.waiting, self.models_dir, self.device)
        self.strategies = strategies(self.waiting)
        return self.strategies

    def init_batch_infer(self) -> CineBatchInfer:
        return CineBatchInfer()

    def datastore(self) -> EchoDatastore:
        store = self._datastore
        assert isinstance(store, EchoDatastore)
        return store

    def on_init_complete(self) -> None:
        # MONAI Label would start a clock for its sessions here, which are not offered.
        os.environ[SERVER_PID_VARIABLE] = str(os.getpid())
        if "echo_plugin.host.server" not in sys.modules:
            logger.warning(
                "MONAI Label's own server answers other web pages too and waits while it predicts;"
                " `monailabel-echo serve`, or --uvicorn_app echo_plugin.host.server:app, does not."
            )
        logger.info("%d cines in the study folder", len(self.datastore().list_images()))
        move_log(Path(self.app_dir), log_file(self.datastore().cache))
        self.gallery_keeper.start()
        self.score_keeper.start()

    def on_save_label(self, image_id: str, label_id: str) -> None:
        """Store what was submitted as a report too, and train, if that was asked for when the server started.

        The label is stored already: nothing that fails here may look as if it were lost.
        """
        self.waiting.submitted(label_id)
        try:
            self.auto_finetune.submitted()
        except Exception as exc:
            logger.error("Label of %s is stored, but no training was started (%s)", label_id, type(exc).__name__)
        if not self.reports_at_once:
            return
        try:
            self.reports.of_annotation(self.datastore().images.resolve(image_id))
        except (EchoError, OSError) as exc:
            logger.warning("Label of %s is stored, but became no report: %s", label_id, exc)
        except Exception as exc:
            logger.error("Label of %s is stored, but became no report (%s)", label_id, type(exc).__name__)

    def _read_cine(self, image: str | Path) -> tuple[Cine, Path]:
        if isinstance(image, Path):  # uploaded with the request; never text of a request
            return read_cine(image), image
        entry = self.datastore().images.entry(image)
        return self.datastore().images.read(entry.image_id), entry.path

    def compare(self, first: str, second: str) -> Comparison:
        """Return how alike the septa of two cines of the study folder are.

        Raises
        ------
        UnknownImageError, ModelNotFoundError
            If one of them is not there, or no models are published.
        """
        cines = [self._read_cine(self.datastore().images.resolve(image))[0] for image in (first, second)]
        with self.gallery_keeper.aside():
            return compare_cines(self.pipeline, *cines)

    def join_patient(self, image: str) -> PatientDefect | None:
        """Return what all cines of the patient of one say together; of a file of nobody known, what it says alone."""
        own = self.datastore().images.entry(image)
        entries = self.datastore().images.studies.entries() if own.patient_id else [own]
        same = [e for e in entries if e.patient_id == own.patient_id and e.error is None] or [own]
        with self.gallery_keeper.aside():
            return self.pipeline.combine([self.pipeline.embed(self._read_cine(e.image_id)[0]) for e in same])

    def explain(self, image: str, frame_index: int | None) -> Explanation:
        """Return what of a cine speaks for the defect that is predicted of it."""
        cine, _ = self._read_cine(self.datastore().images.resolve(image))
        with self.gallery_keeper.aside():
            return explain_defect(self.pipeline, cine, frame_index)

    def infer(self, request: Mapping[str, Any], datastore: EchoDatastore | None = None) -> dict[str, Any]:
        """Predict one cine: ``request`` holds ``model``, ``image`` and the task's own parameters.

        Raises
        ------
        ModelNotFoundError
            If there is no such task, or it has no weights.
        UnknownImageError
            If the image is not in the study folder; a path is no image.
        """
        datastore = datastore or self.datastore()
        task = self.tasks.get(str(request.get("model")))
        if task is None:
            msg = f"Model {str(request.get('model'))[:80]!r} is unknown; {', '.join(self.tasks)} are offered."
            raise ModelNotFoundError(msg)
        image = request.get("image")
        if not isinstance(image, Path):
            image = datastore.images.resolve(str(image or ""))
        with self.gallery_keeper.aside():
            file, answer = task({**request, "image": image})
        if request.get("save_label") and isinstance(image, str):
            datastore.save_label(image, file, ORIGINAL, {"model": request["model"], "params": answer})
        return {"label": file, "tag": ORIGINAL, "file": file, "params": answer}

    def next_sample(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Choose the next cine, as ``choose_cine`` does, and make its rendition for 3D Slicer."""
        images = self.datastore().images
        chosen = choose_cine(self.strategies, request, self.datastore(), images.rendition)
        if "id" not in chosen:
            return chosen
        path = images.rendition(chosen["id"])
        # The checksum keeps 3D Slicer from showing an older download of the same name.
        return {**chosen, "path": str(path), "checksum": f"SHA256:{file_digest(path)}"}
