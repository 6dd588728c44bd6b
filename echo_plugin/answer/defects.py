# SPDX-License-Identifier: Apache-2.0
"""From the septal boxes of a cine to crops, from their embeddings to the defect; and one patient from several cines.

Crops: "walls": every septum has a square of its own, so that a hole of few millimetres is many pixels wide, and it says
only what that wall can have: an interatrial crop shows an ASD or a normal wall, never a VSD. "union": one square round
both septa, as the ASD/VSD paper crops. How embeddings are joined is in ``defect_rule``.

No answer is given where the embedding is far from every class centre, no septum was found, or the view does not show
the walls; a cine that the view classifier calls no standard view shows no wall that one could name. Such cines do not
count against one of the same patient that shows the hole; the figure of agreement says how alone that one stands.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from echo_plugin.anatomy import DEFECT_SEPTA, DETECTED_SEPTA, SEPTAL_VIEWS, Defect, Septum, View
from echo_plugin.annotations import DefectPrediction, SeptalBox, ViewPrediction
from echo_plugin.answer.boxes import choose_frames
from echo_plugin.answer.defect_rule import DefectRule
from echo_plugin.answer.prediction import CineEmbedding
from echo_plugin.answer.preprocess import CONTEXT_MARGIN, best_boxes, crop_square, septal_square, whole_square
from echo_plugin.cine import Cine, UltrasoundRegion
from echo_plugin.errors import ModelMismatchError
from echo_plugin.geometry import FloatArray
from echo_plugin.io.sector import tissue_region
from echo_plugin.model_card import DefectDecision, ModelCard
from echo_plugin.network_config import UNION, EmbedderConfig

LEAST_COVERAGE = 0.9
"""Part of the validation cines that must still be answered: a rule that is silent too often helps nobody."""
SURE_VIEW = 0.5
"""Probability of the view classifier from which on its view counts."""


def reason_to_abstain(
    limit_deg: float | None,
    nearest_angle_deg: float,
    septa: Sequence[Septum],
    view: ViewPrediction | None,
    *,
    is_whole_frame: bool,
) -> str | None:
    """Return why a cine gets no answer, as a phrase; None: it gets one.

    Parameters
    ----------
    limit_deg
        ``abstain_angle_deg`` of the card's decision.
    nearest_angle_deg
        Between the embedding and the nearest class centre.
    septa
        The walls that were found; UNSPECIFIED: both in one crop.
    view
        What the view classifier says; None: it was not asked.
    """
    if limit_deg is None:
        return None
    if is_whole_frame:
        return "no septum found"
    if view is not None and view.is_standard is False:
        return view.words
    walls = [None if septum is Septum.UNSPECIFIED else septum for septum in septa]
    if view is not None and not any(is_suitable(wall, view) for wall in walls):
        return f"view {view.view.value} does not show this septum"
    if nearest_angle_deg > limit_deg:
        return f"unlike every class ({nearest_angle_deg:.0f} deg from the nearest)"
    return None


def is_suitable(septum: Septum | None, view: ViewPrediction | None) -> bool:
    """Whether a view ordinarily images that wall (None: any wall); one that is not known, or not sure, may.

    ``view`` : None: it was not asked for.
    """
    if view is None or view.probability < SURE_VIEW:
        return True
    return any(view.view in SEPTAL_VIEWS[wall] for wall in ([septum] if septum else SEPTAL_VIEWS))


def coverage_curve(distances: FloatArray, is_right: NDArray[np.bool_]) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return ascending thresholds (N,), and the coverage and accuracy of answering at or below each of them.

    >>> [v.tolist() for v in coverage_curve(np.array([30.0, 10.0, 20.0]), np.array([False, True, True]))[1:]]
    [[0.3333333333333333, 0.6666666666666666, 1.0], [1.0, 1.0, 0.6666666666666666]]
    """
    order = np.argsort(distances, kind="stable")
    answered = np.arange(1, len(order) + 1)
    return distances[order], answered / len(order), np.cumsum(is_right[order]) / answered


def choose_angle(angles_deg: FloatArray, is_right: NDArray[np.bool_], least_coverage: float = LEAST_COVERAGE) -> float:
    """Return the threshold, deg, of the best accuracy that still answers ``least_coverage``; the largest of equals."""
    thresholds, coverage, accuracy = coverage_curve(angles_deg, is_right)
    allowed = np.flatnonzero(coverage >= least_coverage - 1e-9)
    best = allowed[np.flatnonzero(accuracy[allowed] >= accuracy[allowed].max() - 1e-9)[-1]]
    return 180.0 if best == len(thresholds) - 1 else float((thresholds[best] + thresholds[best + 1]) / 2)


@dataclass(frozen=True)
class SeptalCrop:
    """One square that is embedded: px of the file; ``septum`` : the wall; None: both, or the whole frame.

    ``score`` : of the detector, for weighing; 1 for boxes drawn by a person and for whole frames.
    """

    frame_index: int
    square: tuple[float, float, float, float]
    septum: Septum | None
    score: float
    is_whole_frame: bool = False

    @property
    def box(self) -> SeptalBox:
        """The square as a box that viewers can draw."""
        return SeptalBox(self.frame_index, *self.square, self.septum or Septum.UNSPECIFIED, self.score)


def choose_crops(
    boxes: Mapping[int, Sequence[SeptalBox]],
    frame_indices: Sequence[int],
    count: int,
    *,
    cropping: str,
    margin: float = CONTEXT_MARGIN,
) -> list[SeptalCrop]:
    """Return the crops of a cine by frame; empty when no septum was boxed.

    ``boxes`` : by frame index, as `preprocess.best_boxes` gives them. ``count`` : at most so many frames of each wall,
    of each equal part of the cine the best scored.
    """
    if cropping == UNION:
        chosen = choose_frames(boxes, frame_indices, count) if boxes else {}
        return [_crop(frame, found, None, margin) for frame, found in chosen.items()]
    crops = []
    for septum in DETECTED_SEPTA:
        own = {f: [b for b in found if b.septum is septum] for f, found in boxes.items()}
        own = {f: found for f, found in own.items() if found}
        if own:
            chosen = choose_frames(own, frame_indices, count)
            crops += [_crop(frame, found, septum, margin) for frame, found in chosen.items()]
    return sorted(crops, key=lambda crop: crop.frame_index)


def whole_frames(cine: Cine, region: UltrasoundRegion, frame_indices: Sequence[int], count: int) -> list[SeptalCrop]:
    """Return ``count`` whole frames evenly spread: what is embedded when no septum was found."""
    square = whole_square(cine, region)
    return [SeptalCrop(f, square, None, 1.0, is_whole_frame=True) for f in choose_frames({}, frame_indices, count)]


def cut_crops(
    cine: Cine,
    crops: Sequence[SeptalCrop],
    size_px: int,
    *,
    region: UltrasoundRegion | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return (N, S, S) uint8 grey: the pixels of the crops; each frame is decoded once."""
    if not crops:
        return torch.zeros((0, size_px, size_px), dtype=torch.uint8, device=device)
    region = region or tissue_region(cine)
    frames = sorted({crop.frame_index for crop in crops})
    pixels = dict(zip(frames, cine.read_frames(frames), strict=True))
    return torch.stack(
        [crop_square(pixels[crop.frame_index], crop.square, size_px, region=region, device=device) for crop in crops]
    )


def can_show(septum: Septum | None, defect: Defect) -> bool:
    """Whether a crop of this wall (None: of both) can show that defect; Normal always."""
    return septum is None or defect is Defect.NORMAL or septum in DEFECT_SEPTA[defect]


def shown_classes(crops: Sequence[SeptalCrop], classes: Sequence[Defect]) -> Tensor:
    """Return (N, K) bool: which of the classes each crop can show."""
    rows = [[can_show(crop.septum, defect) for defect in classes] for crop in crops]
    return torch.tensor(rows, dtype=torch.bool).reshape(len(crops), len(classes))


def imaged_septa(septa: Iterable[Septum], view: View | None) -> tuple[Septum, ...]:
    """Return those of the boxed septa that ``view`` ordinarily images; all of them where no view was said."""
    boxed = set(septa)
    return tuple(s for s in DETECTED_SEPTA if s in boxed and (view is None or view in SEPTAL_VIEWS[s]))


def _crop(frame_index: int, boxes: Sequence[SeptalBox], septum: Septum | None, margin: float) -> SeptalCrop:
    score = max(1.0 if box.score is None else box.score for box in boxes)
    return SeptalCrop(frame_index, septal_square(boxes, margin), septum, score)


DEFECT_FRAMES = 10
"""At most so many frames of a wall are embedded, each the best of its part of the cine: neighbours say the same."""


def crops_of(
    card: ModelCard, cine: Cine, boxes: Sequence[SeptalBox], frames: Sequence[int], region: UltrasoundRegion
) -> list[SeptalCrop]:
    """Return what the embedder of ``card`` looks at; whole frames when no septum was boxed."""
    crops = choose_crops(
        best_boxes(boxes),
        frames,
        DEFECT_FRAMES,
        cropping=card.network_as(EmbedderConfig).cropping,
        margin=card.decision_as(DefectDecision).context_margin,
    )
    return crops or whole_frames(cine, region, frames, DEFECT_FRAMES)


class JoinedCrops(NamedTuple):
    """``embedding`` (1, D) and ``logits`` (1, K) of a cine; ``evidence`` (K,) : what its walls say of the patient."""

    embedding: Tensor
    logits: Tensor
    evidence: Tensor


def join_crops(
    rule: DefectRule, classes: Sequence[str], crops: Sequence[SeptalCrop], each: Tensor, view: ViewPrediction | None
) -> JoinedCrops:
    """Return what the (N, D) embeddings ``each`` of the crops of a cine say together.

    Crops are weighed by detection scores. A wall that the view, if it is sure, does not ordinarily image says nothing
    of the patient.
    """
    scores = torch.tensor([crop.score for crop in crops], device=each.device)
    shown = shown_classes(crops, [Defect(name) for name in classes]).to(each.device)
    septa = [crop.septum for crop in crops]
    walls, can_show = rule.pool_walls(each, scores, shown, septa)
    is_imaged = torch.tensor([is_suitable(septum, view) for septum in dict.fromkeys(septa)], device=each.device)
    said = rule.evidence(walls, can_show & is_imaged[:, None])
    return JoinedCrops(*rule.pool_cine(walls, can_show), said.sum(dim=0))


def answer(
    rule: DefectRule,
    names: Sequence[str],
    crops: Sequence[SeptalCrop],
    joined: JoinedCrops,
    view: ViewPrediction | None,
) -> DefectPrediction:
    """Return what the crops of a cine say; a defect that none of its walls can show has no probability.

    ``view`` : None where it was not asked for.
    """
    classes = [Defect(name) for name in names]
    is_possible = shown_classes(crops, classes).any(dim=0).to(joined.logits.device)
    logits = joined.logits.masked_fill(~is_possible, -torch.inf)
    angles = np.degrees(rule.embedder.angles(joined.embedding)[0].double().cpu().numpy()).tolist()
    named = dict(zip(classes, rule.probabilities(logits)[0].tolist(), strict=True))
    is_whole_frame = crops[0].is_whole_frame
    septa = [crop.septum or Septum.UNSPECIFIED for crop in crops]
    return DefectPrediction(
        max(named, key=lambda defect: named[defect]),
        named,
        dict(zip(classes, angles, strict=True)),
        tuple(dict.fromkeys(crop.frame_index for crop in crops)),
        crops=() if is_whole_frame else tuple(crop.box for crop in crops),
        is_whole_frame=is_whole_frame,
        abstained=reason_to_abstain(
            rule.decision.abstain_angle_deg, min(angles), septa, view, is_whole_frame=is_whole_frame
        ),
    )


@dataclass(frozen=True)
class PatientDefect:
    """The defect of a patient: ``probabilities`` sum to 1; ``cines`` of ``asked`` were answered.

    ``agreement`` : part 0..1 of the answered cines that can show the patient's defect and call it so; with Normal, of
    all answered ones; None: no cine can show it. ``similarity`` : mean cosine between the embeddings of cines, -1..1;
    None: fewer than two.
    """

    defect: Defect
    probabilities: dict[Defect, float]
    cines: int
    asked: int
    agreement: float | None
    similarity: float | None

    @property
    def probability(self) -> float:
        """The probability of the patient's defect."""
        return self.probabilities[self.defect]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON-ready answer; no key of it names the patient."""
        return {
            "defect": self.defect.value,
            "probability": self.probability,
            "probabilities": {defect.value: p for defect, p in self.probabilities.items()},
            "cines": self.cines,
            "asked": self.asked,
            "agreement": self.agreement,
            "similarity": self.similarity,
        }

    def describe(self) -> str:
        """Return the answer in words."""
        words = f"{self.defect.value} {self.probability:.2f} from {self.cines} of {self.asked} cines"
        if self.agreement is None:
            return f"{words}; none of them can show it."
        return f"{words}; {self.agreement:.0%} of those that can show it say so."


NO_ANSWER = "No answer: none of the {asked} cines shows a septum well enough."


def combine_cines(cines: Sequence[CineEmbedding]) -> PatientDefect | None:
    """Return the defect of one patient from the answers to its cines; None: no cine was answered.

    What the walls of all cines say is added up (``DefectRule.evidence``).

    Raises
    ------
    ModelMismatchError
        If a training published another network between two of the cines: their evidence cannot be added.
    """
    if len({cine.embedder.sha256 for cine in cines}) > 1:
        msg = f"The models were replaced while {len(cines)} cines of a patient were read; ask for them again."
        raise ModelMismatchError(msg)
    kept = [cine for cine in cines if cine.defect.abstained is None]
    if not kept:
        return None
    classes = [Defect(name) for name in kept[0].embedder.classes]
    said = np.sum([cine.evidence for cine in kept], axis=0)
    odds = np.exp(said - said.max())
    vectors = np.stack([cine.vector for cine in kept]).astype(np.float64)
    return _patient(classes, (odds / odds.sum()).tolist(), [cine.defect for cine in kept], len(cines), vectors)


def _patient(
    classes: Sequence[Defect],
    probabilities: Sequence[float],
    kept: Sequence[DefectPrediction],
    asked: int,
    vectors: FloatArray,
) -> PatientDefect:
    named = dict(zip(classes, probabilities, strict=True))
    defect = max(named, key=lambda name: named[name])
    able = [prediction for prediction in kept if _shows(prediction, defect)]
    agreement = float(np.mean([prediction.defect is defect for prediction in able])) if able else None
    return PatientDefect(defect, named, len(kept), asked, agreement, _mean_similarity(vectors))


def _shows(prediction: DefectPrediction, defect: Defect) -> bool:
    """Whether one of the walls that were embedded can show the defect; whole frames can show any."""
    septa = {None if crop.septum is Septum.UNSPECIFIED else crop.septum for crop in prediction.crops}
    return not septa or any(can_show(septum, defect) for septum in septa)


def _mean_similarity(vectors: FloatArray) -> float | None:
    """Return the mean cosine between different rows of (C, D); None for fewer than two."""
    if len(vectors) < 2:
        return None
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    first, second = np.triu_indices(len(unit), k=1)
    return float((unit @ unit.T)[first, second].mean())
