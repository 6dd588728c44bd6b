# SPDX-License-Identifier: Apache-2.0
"""The prediction tasks: cine in, markups file for 3D Slicer and JSON for everybody else out; one cine, or many.

A task is typed ``detection`` whatever it predicts, because that is the one type of MONAI Label whose result 3D Slicer's
module loads as markups; a ``classification`` is counted there, but cannot be selected.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monailabel.interfaces.tasks.batch_infer import BatchInferTask
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from echo_plugin.anatomy import DEFECT_SEPTA, DEFECTS, DETECTED_SEPTA, PAEDIATRIC
from echo_plugin.annotations import SeptalBox
from echo_plugin.answer.batch import parse_frames
from echo_plugin.answer.predict import EchoPipeline
from echo_plugin.answer.prediction import CinePrediction
from echo_plugin.cine import Cine
from echo_plugin.errors import EchoError, UnreadableCineError
from echo_plugin.host.datastore import ORIGINAL, EchoDatastore
from echo_plugin.io.markups import PointLabel, boxes_to_markups
from echo_plugin.io.sector import tissue_region
from echo_plugin.io.volume import rendition_geometry
from echo_plugin.model_card import load_card

logger = logging.getLogger(__name__)

ReadCine = Callable[[str | Path], tuple[Cine, Path]]
"""Return the cine of an image id, or of a file just uploaded, with the path it came from."""


@dataclass(frozen=True)
class Shown:
    """What 3D Slicer draws of a prediction: boxes, and one line of text on every frame.

    The caption stands beside the first of the boxes ``beside`` on a frame, on frames without any in the corner.
    """

    boxes: tuple[SeptalBox, ...] = ()
    caption: str | None = None
    beside: tuple[SeptalBox, ...] = ()


@dataclass(frozen=True)
class TaskDescription:
    """Identity of a task: ``model`` is the published name, ``predicts`` what the pipeline is asked for.

    ``labels`` : what is told apart by the starter; a published model's card names its own.
    """

    title: str
    model: str
    labels: Sequence[str]
    predicts: tuple[str, ...]
    show: Callable[[CinePrediction], Shown]


class CineInferTask(InferTask):
    """One prediction of a cine, as MONAI Label calls it.

    The request is ``{"image": image id, "frames": "all" | "0,5,9" | [0, 5, 9]}``; other entries are the host's.
    """

    def __init__(self, about: TaskDescription, pipeline: EchoPipeline, read_cine: ReadCine) -> None:
        super().__init__(
            type=InferType.DETECTION,
            labels=list(about.labels),
            dimension=2,
            description=about.title,
            config={"frames": "all"},
        )
        self.about = about
        self.pipeline = pipeline
        self._read_cine = read_cine

    def is_valid(self) -> bool:
        # Always listed: without weights the answer names them, and boxes can still be submitted from 3D Slicer.
        return True

    def get_path(self, validate: bool = True) -> str | None:
        """Return the path of the published weights; None when there are none."""
        path = self.pipeline.models_dir / f"{self.about.model}.safetensors"
        return str(path) if path.is_file() or not validate else None

    def info(self) -> dict[str, Any]:
        facts = super().info()
        facts["type"] = InferType.DETECTION.value
        try:
            card = load_card(self.pipeline.models_dir, self.about.model)
        except EchoError as exc:
            facts["description"] = f"{self.about.title}. {exc}"
        else:
            facts["labels"] = list(card.classes)
            facts["description"] = f"{self.about.title}. Learned from: {card.trained_on}. {card.intended_use}"
        return facts

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Return the path of a markups file, which is the caller's to delete, and the JSON of the prediction.

        Raises
        ------
        UnknownImageError, UnreadableCineError
            If there is no such cine or it cannot be decoded.
        ModelNotFoundError, ModelMismatchError
            If no usable weights are published.
        ValueError
            If ``frames`` is malformed.
        """
        image = request["image"]
        frame_indices = parse_asked_frames(request.get("frames"))
        cine, path = self._read_cine(image)
        prediction = predict_cine(self.pipeline, cine, self.about.predicts, frame_indices)
        answer = prediction.to_json(cine, Path(path.name))  # folders are often named after patients
        logger.info("%s of %s in %s ms", self.about.model, cine.image_id, answer["timings_ms"])
        return self._write_markups(prediction, cine), answer

    def _write_markups(self, prediction: CinePrediction, cine: Cine) -> str:
        shown = self.about.show(prediction)
        labels = _on_every_frame(shown.caption, shown.beside, cine) if shown.caption else ()
        text = boxes_to_markups(shown.boxes, rendition_geometry(cine), point_labels=labels)
        with tempfile.NamedTemporaryFile("w", suffix=".mrk.json", encoding="utf-8", delete=False) as stream:
            stream.write(text)
        return stream.name


def predict_cine(
    pipeline: EchoPipeline, cine: Cine, tasks: Sequence[str], frame_indices: Sequence[int] | None = None
) -> CinePrediction:
    """Return what the models say of a cine; whatever else goes wrong is told as the cine's fault, in one sentence.

    Raises
    ------
    UnreadableCineError
        For what nobody thought of; the log has its insides.
    """
    try:
        return pipeline.predict(cine, tasks=tasks, frame_indices=frame_indices)
    except (EchoError, ValueError, IndexError):
        raise  # these name the cine already
    except Exception as exc:
        msg = f"Cine {cine.image_id} could not be predicted ({type(exc).__name__}); the server's log says more."
        logger.exception(msg)
        raise UnreadableCineError(msg) from exc


def parse_asked_frames(frames: object) -> tuple[int, ...] | None:
    """Return the 0-based frame indices of ``"0,5,9"`` or ``[0, 5, 9]``; None, for ``"all"`` or nothing: every frame.

    Raises
    ------
    ValueError
        If it is anything else.
    """
    if frames is None:
        return None
    return parse_frames(",".join(map(str, frames)) if isinstance(frames, list) else str(frames))


def _on_every_frame(caption: str, beside: Sequence[SeptalBox], cine: Cine) -> tuple[PointLabel, ...]:
    """Return the caption for each frame: a slice view shows a point on its own frame only, its text to the right."""
    region = tissue_region(cine)
    x = region.x1 + 0.04 * (region.x2 - region.x1)
    y = region.y1 + 0.08 * (region.y2 - region.y1)
    places = {box.frame_index: (box.x2, (box.y1 + box.y2) / 2) for box in reversed(beside)}
    return tuple(PointLabel(caption, frame, *places.get(frame, (x, y))) for frame in range(cine.frame_count))


def show_defect(prediction: CinePrediction) -> Shown:
    """Return the defect with probability and angle, as ``ASD 0.91 (41 deg)``, beside its wall; no ROI to submit."""
    defect = prediction.defect
    if defect is None:
        return Shown()
    caption = f"{defect.defect.value} {defect.probability:.2f} ({defect.angles_deg[defect.defect]:.0f} deg)"
    if defect.abstained is not None:
        return Shown(caption=f"abstained: {defect.abstained}")
    if defect.is_whole_frame:
        caption += ", no septum found: whole frames were compared"
    own = tuple(box for box in prediction.boxes if box.septum in DEFECT_SEPTA.get(defect.defect, ()))
    return Shown(caption=caption, beside=own or prediction.boxes)


DEFECT = TaskDescription(
    title="Septal defect: Normal, ASD or VSD",
    model="defect_embedder",
    labels=[defect.value for defect in DEFECTS],
    predicts=("boxes", "defect"),
    show=show_defect,
)


def show_boxes(prediction: CinePrediction) -> Shown:
    """Return the boxes as ROIs; without any, a text that says so: Slicer refuses a file without markups."""
    return Shown(boxes=tuple(prediction.boxes), caption=None if prediction.boxes else "no septum found")


SEPTAL_BOXES = TaskDescription(
    title="Boxes on the atrial and ventricular septum",
    model="septal_detector",
    labels=[septum.value for septum in DETECTED_SEPTA],
    predicts=("boxes",),
    show=show_boxes,
)


def show_similar_cases(prediction: CinePrediction) -> Shown:
    """Return the defects of the cases with their similarity as text, such as ``similar: ASD 0.93, Normal 0.71``."""
    if prediction.has_no_septum:
        return Shown(caption="no septum found to compare")
    if not prediction.nearest:
        return Shown(caption="no past cases to compare with yet")
    cases = [f"{near.case.defect.value} {near.similarity:z.2f}" for near in prediction.nearest]
    return Shown(caption=f"similar: {', '.join(cases)}")


SIMILAR_CASES = TaskDescription(
    title="Most similar past cases of other patients",
    model="defect_embedder",
    labels=[defect.value for defect in DEFECTS],
    predicts=("nearest",),
    show=show_similar_cases,
)


def show_view(prediction: CinePrediction) -> Shown:
    """Return the view with its probability as text, such as ``A4C 0.97``, and what speaks against it."""
    return Shown() if prediction.view is None else Shown(caption=prediction.view.words)


VIEW = TaskDescription(
    title="Echocardiographic view",
    model="view_classifier",
    labels=[view.value for view in PAEDIATRIC],
    predicts=("view",),
    show=show_view,
)


def require_batch(request: Mapping[str, Any], datastore: EchoDatastore) -> list[str]:
    """Return the ids of the images that a batch is about, sorted.

    Raises
    ------
    AnnotationError, ValueError
        If a parameter of the request is malformed.
    """
    parse_asked_frames(request.get("frames"))
    limit = request.get("max_batch_size") or 0
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 0:
        msg = f"Batch inference: max_batch_size is {str(limit)[:40]!r}; 0 (no limit) or a whole number is accepted."
        raise ValueError(msg)
    return sorted(BatchInferTask().get_images(request, datastore))[: limit or None]


class CineBatchInfer(BatchInferTask):
    """Predict many cines, one after the other.

    MONAI Label sends ``device``, ``multi_gpu``, ``gpus`` and ``max_workers`` with every request and divides by the
    number of GPUs. The pipeline was told its device when the server started and holds one model, so these have no say.
    """

    def __call__(
        self, request: Mapping[str, Any], datastore: EchoDatastore, infer: Callable[..., dict[str, Any]]
    ) -> dict[str, Any]:
        """Return per image id a summary of its prediction, or ``{"error": sentence}``.

        MONAI Label writes what is returned into its log as one line; the predictions themselves are in the datastore.
        """
        image_ids = require_batch(request, datastore)
        results: dict[str, Any] = {}
        for number, image_id in enumerate(image_ids, start=1):
            asked = {**request, "image": image_id, "save_label": True, "label_tag": ORIGINAL}
            try:
                result = infer(asked, datastore)
            except (EchoError, ValueError) as exc:
                logger.warning("Cine %d of %d failed: %s", number, len(image_ids), exc)
                results[image_id] = {"error": str(exc)}
                continue
            Path(result["file"]).unlink(missing_ok=True)
            results[image_id] = _summary(result["params"])
            logger.info("Cine %d of %d predicted", number, len(image_ids))
        return results


def _summary(answer: Mapping[str, Any]) -> dict[str, Any]:
    view, defect = answer["view"], answer["defect"]
    return {"boxes": len(answer["boxes"]), "view": view and view["view"], "defect": defect and defect["defect"]}
