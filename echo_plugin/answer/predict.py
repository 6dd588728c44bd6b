# SPDX-License-Identifier: Apache-2.0
"""One cine in; its view, septal boxes and defect out: the published models joined to the pixels."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from echo_plugin.anatomy import DETECTED_SEPTA
from echo_plugin.annotations import SeptalBox, ViewPrediction
from echo_plugin.answer.boxes import TrackOptions, link_boxes
from echo_plugin.answer.defect_rule import DefectRule
from echo_plugin.answer.defects import PatientDefect, answer, combine_cines, crops_of, cut_crops, join_crops
from echo_plugin.answer.gallery import KeptGallery, NearestCase
from echo_plugin.answer.prediction import RAW_BOXES, TASKS, CineEmbedding, CinePrediction, Progress, require_askable
from echo_plugin.answer.preprocess import normalise, to_model_input
from echo_plugin.answer.runtime import PublishedNetwork, Runtime
from echo_plugin.answer.views import answer_view, choose_clips
from echo_plugin.cine import Cine, UltrasoundRegion
from echo_plugin.errors import ModelNotFoundError
from echo_plugin.geometry import clip_boxes
from echo_plugin.io.sector import tissue_region
from echo_plugin.model_card import DefectDecision, ModelCard, ViewDecision, load_card
from echo_plugin.models.checkpoint import (
    DEFECT_EMBEDDER,
    SEPTAL_DETECTOR,
    VIEW_CLASSIFIER,
    build_detector,
    build_embedder,
    build_view_classifier,
)


def rows_on_cpu(results: Sequence[dict[str, Tensor]]) -> list[NDArray[np.float64]]:
    """Return for each frame (N, 6): XYXY, score, class id; all frames leave the device in one copy."""
    rows = [torch.cat([r["boxes"], r["scores"][:, None], r["labels"][:, None].float()], dim=1) for r in results]
    return np.split(torch.cat(rows).double().cpu().numpy(), np.cumsum([len(part) for part in rows])[:-1])


def septal_boxes(frame_index: int, corners: NDArray[np.float64], rows: NDArray[np.float64]) -> list[SeptalBox]:
    """Return the boxes of one frame with an area; ``corners`` (N, 4) are px of the file."""
    return [
        SeptalBox(frame_index, x1, y1, x2, y2, DETECTED_SEPTA[int(label)], min(score, 1.0))
        for (x1, y1, x2, y2), (score, label) in zip(corners.tolist(), rows[:, 4:].tolist(), strict=True)
        if x1 < x2 and y1 < y2
    ]


VIEW_CLIPS = 3
BATCH_FRAMES = {"cpu": 8, "cuda": 64}
"""Frames in the detector at once: larger batches leave a CPU's cache (tests/benchmarks/benchmark_pipeline.py)."""
NEAREST_CASES = 5


class EchoPipeline:
    """The published models of one directory, run on one device; safe to call from several threads.

    Nothing is read before the first prediction; what is published later is used from the next prediction on.

    Parameters
    ----------
    models_dir
        Where models, and the gallery of past cases beside them, are published.
    device
        auto, cpu or cuda.
    track
        How boxes are linked over time; ``operating_score`` of a detector's card goes before the one given here.
    """

    def __init__(self, models_dir: Path, *, device: str = "auto", track: TrackOptions | None = None) -> None:
        self.models_dir = models_dir
        self.gallery = KeptGallery(models_dir)
        self.runtime = Runtime.on(device)
        self.track = track or TrackOptions()
        self._detector = PublishedNetwork(models_dir, SEPTAL_DETECTOR, build_detector, self.runtime)
        self._embedder = PublishedNetwork(models_dir, DEFECT_EMBEDDER, build_embedder, self.runtime)
        self._views = PublishedNetwork(models_dir, VIEW_CLASSIFIER, build_view_classifier, self.runtime)

    def cards(self) -> dict[str, ModelCard]:
        """Return the cards of the models that are published now, by published name; reads no weights."""
        found = {}
        for name in (SEPTAL_DETECTOR, DEFECT_EMBEDDER, VIEW_CLASSIFIER):
            with suppress(ModelNotFoundError):
                found[name] = load_card(self.models_dir, name)
        return found

    def reload_if_published(self) -> tuple[str, ...]:
        """Load what was published since the last time, and return its names; models that are not there are left out.

        For a server, before the first request: `predict` follows what is published by itself.
        """
        reloaded = []
        for network in (self._detector, self._embedder, self._views):
            with suppress(ModelNotFoundError):
                if network.is_outdated():
                    network.get()
                    reloaded.append(network.name)
        return tuple(reloaded)

    def predict(
        self, cine: Cine, *, tasks: Sequence[str] = TASKS, frame_indices: Sequence[int] | None = None
    ) -> CinePrediction:
        """Return what the models say about a cine.

        Parameters
        ----------
        cine
            Any cine; a single frame will do.
        tasks
            Of view, boxes, defect with the nearest cases, nearest alone; raw_boxes: every box of the detector, not
            linked over time. What a task needs is found unasked: boxes, and the view where the embedder's card says
            when to abstain and a view classifier is published.
        frame_indices
            0-based frames for boxes and defect; None: all. The view is that of the whole cine.

        Raises
        ------
        ModelNotFoundError, ModelMismatchError
            If a model that a task needs is not published, or does not fit its card.
        ValueError, IndexError
            If a task is unknown, no frame is named, or one is not in the cine.
        """
        require_askable(tasks, frame_indices)
        progress = Progress()
        with progress.timed("total"), torch.inference_mode():
            with progress.timed("region"):
                region = tissue_region(cine)
            frames = sorted(set(range(cine.frame_count) if frame_indices is None else frame_indices))
            view = self._predict_view(cine, region, progress) if self.is_view_needed(tasks) else None
            raw = self._detect(cine, region, frames, progress) if set(tasks) - {"view"} else []
            boxes = self._link(raw, frames, progress) if raw else ()
            defect, nearest = None, tuple[NearestCase, ...]()
            if {"defect", "nearest"} & set(tasks):
                found = self._predict_defect(cine, region, frames, boxes, view, progress)
                defect = found.defect
                with progress.timed("nearest"):
                    nearest = self._nearest(cine, found)
        has_no_septum = defect is not None and defect.is_whole_frame
        boxes, defect = boxes if "boxes" in tasks else (), defect if "defect" in tasks else None
        boxes = tuple(raw) if RAW_BOXES in tasks else boxes
        view = view if "view" in tasks else None
        return CinePrediction(boxes, view, defect, nearest, progress.models, progress.timings_ms, has_no_septum)

    def embed(self, cine: Cine) -> CineEmbedding:
        """Return the embedding of a cine with the models that made it; compares it with no past case.

        Raises
        ------
        ModelNotFoundError, ModelMismatchError
            If detector or embedder are not published, or do not fit their cards.
        """
        progress = Progress()
        with torch.inference_mode():
            region, frames = tissue_region(cine), range(cine.frame_count)
            view = self._predict_view(cine, region, progress) if self.is_view_needed(("defect",)) else None
            boxes = self._link(self._detect(cine, region, frames, progress), frames, progress)
            return self._predict_defect(cine, region, frames, boxes, view, progress)

    def combine(self, cines: Sequence[CineEmbedding]) -> PatientDefect | None:
        """Return the defect of a patient from what its cines say; None: none of them was answered."""
        return combine_cines(cines)

    def detect_septa(self, cine: Cine, frame_indices: Sequence[int] | None = None) -> tuple[SeptalBox, ...]:
        """Return every box the detector sees, not linked over time, best score first on each frame."""
        frames = list(range(cine.frame_count) if frame_indices is None else frame_indices)
        with torch.inference_mode():
            return tuple(self._detect(cine, tissue_region(cine), frames, Progress()))

    def is_view_needed(self, tasks: Sequence[str]) -> bool:
        """Whether the view is asked for, or must say if the defect can be seen in it."""
        if "view" in tasks or "defect" not in tasks:
            return "view" in tasks
        cards = self.cards()
        if not {VIEW_CLASSIFIER, DEFECT_EMBEDDER} <= cards.keys():
            return False
        return cards[DEFECT_EMBEDDER].decision_as(DefectDecision).abstain_angle_deg is not None

    def _link(
        self, candidates: Sequence[SeptalBox], frames: Sequence[int], progress: Progress
    ) -> tuple[SeptalBox, ...]:
        with progress.timed("link"):
            return link_boxes(candidates, frames, self.track.for_detector(progress.models["detector"]))

    def _detect(
        self, cine: Cine, region: UltrasoundRegion, frames: Sequence[int], progress: Progress
    ) -> list[SeptalBox]:
        found: list[SeptalBox] = []
        size = BATCH_FRAMES[self.runtime.device.type]
        with progress.timed("load"):
            card, detector = self._detector.get()
        progress.models["detector"] = card
        for start in range(0, len(frames), size):
            batch = frames[start : start + size]
            with progress.timed("read"):
                pixels, mapping = to_model_input(
                    cine, batch, card.input_size_px, region=region, device=self.runtime.device
                )
            with progress.timed("boxes"), self._detector.lock:
                each = rows_on_cpu(detector(self._floats(pixels)))
            for frame_index, rows in zip(batch, each, strict=True):
                corners = clip_boxes(mapping.to_pixels(rows[:, :4]), cine.width, cine.height)
                found += septal_boxes(frame_index, corners, rows)
        return found

    def _predict_view(self, cine: Cine, region: UltrasoundRegion, progress: Progress) -> ViewPrediction:
        with progress.timed("load"):
            card, classifier = self._views.get()
        progress.models["views"] = card
        clips = choose_clips(classifier.config, card.decision_as(ViewDecision).times, cine, VIEW_CLIPS)
        frames, place = np.unique(clips, return_inverse=True)
        with progress.timed("read"):
            pixels, _ = to_model_input(
                cine, frames.tolist(), card.input_size_px, region=region, device=self.runtime.device
            )
        with progress.timed("view"), self._views.lock:
            floats = self._floats(pixels)[torch.as_tensor(place.reshape(clips.shape), device=pixels.device)]
            return answer_view(classifier, card, floats, frames.tolist(), is_still=cine.frame_count == 1)

    def _predict_defect(
        self,
        cine: Cine,
        region: UltrasoundRegion,
        frames: Sequence[int],
        boxes: Sequence[SeptalBox],
        view: ViewPrediction | None,
        progress: Progress,
    ) -> CineEmbedding:
        """Return the defect, with what past cases and other cines of the patient are compared and joined by."""
        with progress.timed("load"):
            card, embedder = self._embedder.get()
        progress.models["defects"] = card
        with progress.timed("read"):
            crops = crops_of(card, cine, boxes, frames, region)
            pixels = cut_crops(cine, crops, card.input_size_px, region=region, device=self.runtime.device)
        with progress.timed("defect"), self._embedder.lock:
            rule = DefectRule.of(embedder, card)
            joined = join_crops(rule, card.classes, crops, embedder(self._floats(pixels)), view)
            prediction = answer(rule, card.classes, crops, joined, view)
            unit = torch.nn.functional.normalize(joined.embedding.float(), dim=1)[0].cpu().numpy()
            vector = rule.signature(rule.probabilities(joined.logits))[0].float().cpu().numpy()
        detector = progress.models["detector"]
        return CineEmbedding(vector, unit, joined.evidence.cpu().numpy(), prediction, card, detector)

    def _nearest(self, cine: Cine, found: CineEmbedding) -> tuple[NearestCase, ...]:
        """Return the nearest past cases; of a whole frame none: past cases are crops."""
        gallery = None if found.defect.is_whole_frame else self.gallery.of(found.embedder.sha256)
        if gallery is None:
            return ()
        return gallery.nearest(found.embedding, NEAREST_CASES, image_id=cine.image_id, patient_id=cine.patient_id)

    def _floats(self, pixels: Tensor) -> Tensor:
        return normalise(pixels, self.runtime.dtype)
