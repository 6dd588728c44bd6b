# SPDX-License-Identifier: Apache-2.0
"""Training the septal detector: focal loss and Smooth L1 on annotated frames, published with its figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from echo_plugin.anatomy import DETECTED_SEPTA
from echo_plugin.answer.preprocess import normalise
from echo_plugin.answer.runtime import choose_device
from echo_plugin.geometry import FloatArray
from echo_plugin.measure.boxes import FrameBoxes, average_precision, constant_boxes, detection_metrics, matched_boxes
from echo_plugin.measure.classes import Cohort
from echo_plugin.model_card import DetectorDecision, Metric, ModelCard
from echo_plugin.models.checkpoint import SEPTAL_DETECTOR
from echo_plugin.models.septal_detector import SeptalDetector
from echo_plugin.network_config import DetectorConfig
from echo_plugin.progress import Progress
from echo_plugin.training.augment import change_appearance, move_boxes, random_affines, spoil, visible_boxes, warp
from echo_plugin.training.datasets import (
    LabelledFolder,
    PreparedFrames,
    boxes_of,
    detection_frames,
    open_labelled_folder,
    prepare_detection,
    prepare_frames,
    unsought_of,
)
from echo_plugin.training.detector_recipes import (
    LEAST_SIDE_PX,
    OURS,
    DetectorRecipe,
    anchors_for,
    detector_recipe,
    epoch_batches,
    training_items,
    validation_items,
)
from echo_plugin.training.loop import Learned, lower_precision, move_to_device, run_epochs, state_path
from echo_plugin.training.options import DetectorOptions, OnEpoch
from echo_plugin.training.processes import first_process_first
from echo_plugin.training.provenance import Origin, build_card, data_key, origin_of, publish_learned, words_for_test
from echo_plugin.training.start import begun_training, load_start


def true_boxes(frames: PreparedFrames, items: Tensor) -> list[FrameBoxes]:
    """Return the annotated boxes of the frames ``items``, px of the input."""
    truths = []
    for target, unsought in zip(boxes_of(frames, items).double().numpy(), unsought_of(frames, items), strict=True):
        known = target[np.isfinite(target).all(axis=1)]
        labels = tuple(torch.where(unsought)[0].tolist())
        truths.append(FrameBoxes(known[:, :4], known[:, 4].astype(int), np.ones(len(known)), unsought=labels))
    return truths


@torch.no_grad()
def detect(model: nn.Module, pixels: Tensor, *, batch_size: int = 32) -> list[FrameBoxes]:
    """Return the detections on (N, S, S) uint8 frames, px of the input."""
    device = next(model.parameters()).device
    answers: list[FrameBoxes] = []
    for first in range(0, len(pixels), batch_size):
        inputs = normalise(pixels[first : first + batch_size].to(device)).contiguous(memory_format=torch.channels_last)
        with lower_precision(device):
            found = model.eval()(inputs)
        answers += [
            FrameBoxes(f["boxes"].double().cpu().numpy(), f["labels"].cpu().numpy(), f["scores"].double().cpu().numpy())
            for f in found
        ]
    return answers


def measure_on_validation(model: nn.Module, frames: PreparedFrames, items: Tensor) -> float:
    """Return the mean of AP50 and AP75 over the septa that the validation frames show."""
    answers, truths = detect(model, frames.pixels[items]), true_boxes(frames, items)
    values = []
    for label in range(len(DETECTED_SEPTA)):
        for iou in (0.5, 0.75):
            matched = matched_boxes(answers, truths, label, iou)
            values.append(average_precision(matched, np.ones((1, len(truths))))[0])
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def operating_score(model: nn.Module, frames: PreparedFrames, items: Tensor) -> float:
    """Return the score from which validation boxes have the best F1 at IoU 0.5; 0.3 where none is right."""
    answers, truths = detect(model, frames.pixels[items]), true_boxes(frames, items)
    best = []
    for label in range(len(DETECTED_SEPTA)):
        matched = matched_boxes(answers, truths, label)
        order = np.argsort(-matched.scores)
        hits, total = np.cumsum(matched.is_hit[order]), matched.truths.sum()
        f1 = 2 * hits / (np.arange(1, len(order) + 1) + total)
        if len(order) and hits[-1]:
            best.append(matched.scores[order][int(f1.argmax())])
    return float(np.clip(np.mean(best), 0.1, 0.6)) if best else 0.3


def measure_on_test(
    model: nn.Module, frames: PreparedFrames, items: Tensor, medians: FloatArray | None, split: str, seed: int
) -> dict[str, Metric]:
    """Return the figures on test patients; {}: there are none. ``medians`` : of the baseline, if any."""
    patients = tuple(frames.cines[int(cine)].patient_id for cine in frames.cine[items])
    if not patients:
        return {}
    return detection_metrics(
        Cohort(patients, split, seed), detect(model, frames.pixels[items]), true_boxes(frames, items), medians
    )


BATCH_SIZE, LEARNING_RATE, FRAMES_PER_CINE = 16, 1e-3, 8
SURE_OF_NOTHING = -30.0
"""A logit of background whose focal loss is 0."""


def train_detector(
    studies: Path,
    models: Path,
    options: DetectorOptions,
    on_epoch: OnEpoch | None = None,
    progress: Progress | None = None,
) -> ModelCard:
    """Train the septal detector on the annotated frames of ``studies`` and publish it to ``models``.

    Frames listed as annotated without a box teach what no septum looks like. Frames with a box of an unnamed septum
    are left out. Of fewer than three patients, or none but those the start learned from, the card has no metrics.

    Raises
    ------
    TrainingDataError
        If no patient has annotated frames to learn from.
    TrainingUnderWayError
        If the detector of that folder is being trained already.
    """
    labelled = open_labelled_folder(studies)
    with begun_training(options, SEPTAL_DETECTOR, models) as options:
        return _train(labelled, models, options, on_epoch, progress)


def _train(
    labelled: LabelledFolder,
    models: Path,
    options: DetectorOptions,
    on_epoch: OnEpoch | None,
    progress: Progress | None,
) -> ModelCard:
    torch.manual_seed(options.seed)
    recipe = detector_recipe(options.recipe)
    model = SeptalDetector(_network(options))
    start = load_start(model, SEPTAL_DETECTOR, models, options)
    cines = [cine for cine in labelled.cines if detection_frames(cine, 1)]
    origin = origin_of(cines, labelled, start, models, options.seed, may_be_unmeasured=True)
    frames, items = _prepared(origin, model.config.input_size_px, recipe, options, progress)
    model.use_anchors(anchors_for(start, frames, items["train"], recipe, options.seed))
    move_to_device(model, choose_device(options.device))
    kept = state_path(models, SEPTAL_DETECTOR), data_key(cines, origin.split, options, model.config)
    rate = LEARNING_RATE * start.rate_for(SEPTAL_DETECTOR)
    learned = _learn(model, frames, items, recipe, options, rate=rate, on_epoch=on_epoch, kept=kept)
    medians = constant_boxes(true_boxes(frames, items["train"]))
    metrics = measure_on_test(model, frames, items["test"], medians, words_for_test(labelled), options.seed)
    card = build_card(
        origin,
        learned,
        options,
        models,
        name=SEPTAL_DETECTOR,
        task="detection",
        architecture=f"RetinaNet, {model.config.backbone} FPN",
        classes=tuple(septum.value for septum in DETECTED_SEPTA),
        network=model.config,
        decision=DetectorDecision(operating_score(model, frames, items["validation"])),
        constant_boxes=tuple(
            tuple(box.tolist()) if np.isfinite(box).all() else None for box in medians / model.config.input_size_px
        ),
        validation={"AP": learned.best_metric},
        frames=len(items["train"]),
        metrics=metrics,
    )
    return publish_learned(models, learned, card)


def _network(options: DetectorOptions) -> DetectorConfig:
    """Return the network that the options ask for."""
    return DetectorConfig(
        backbone=options.backbone or DetectorConfig.backbone,
        input_size_px=options.image_size or DetectorConfig.input_size_px,
        is_standardised=True,
    )


def _prepared(
    origin: Origin, size_px: int, recipe: DetectorRecipe, options: DetectorOptions, progress: Progress | None
) -> tuple[PreparedFrames, dict[str, Tensor]]:
    """Return the annotated frames as the detector sees them, and which of them the recipe takes of each part."""
    parts = origin.parts("boxes")
    most = options.frames_per_cine or FRAMES_PER_CINE
    with first_process_first():
        frames = prepare_frames(
            origin.labelled,
            [(cine, detection_frames(cine, most)) for cine in origin.cines],
            prepare_detection(size_px),
            name=f"detector-{size_px}",
            cache_dir=options.cache_dir,
            progress=progress,
        )
    items = {part: frames.of(members) for part, members in frames.readable(parts).items()}
    items["train"] = training_items(frames, items["train"], recipe, options.seed)
    items["validation"] = validation_items(frames, items["validation"], recipe, options.seed)
    return frames, items


def _learn(
    model: SeptalDetector,
    frames: PreparedFrames,
    items: Mapping[str, Tensor],
    recipe: DetectorRecipe,
    options: DetectorOptions,
    *,
    rate: float,
    on_epoch: OnEpoch | None,
    kept: tuple[Path, str],
) -> Learned:
    """Train ``model`` in place; ``kept`` : where its state is kept, and what it is of."""
    is_measured = bool(torch.isfinite(boxes_of(frames, items["validation"])).any())
    return run_epochs(
        model,
        recipe.optimisation(options, rate),
        batches=epoch_batches(frames, items["train"], recipe, options.batch_size or BATCH_SIZE),
        loss=lambda m, chosen, g: detection_loss(m, frames, chosen, g, recipe),
        validate=(lambda m: measure_on_validation(m, frames, items["validation"])) if is_measured else None,
        seed=options.seed,
        on_epoch=on_epoch,
        should_stop=options.should_stop,
        state_path=kept[0],
        state_key=kept[1],
        log_dir=options.log_dir and options.log_dir / SEPTAL_DETECTOR,
    )


def detection_loss(
    model: SeptalDetector,
    frames: PreparedFrames,
    items: Tensor,
    generator: torch.Generator,
    recipe: DetectorRecipe = OURS,
) -> Tensor:
    """Return focal loss + Smooth L1 of the frames ``items``, moved and changed at random."""
    device = next(model.parameters()).device
    size = frames.pixels.shape[-1]
    pixels = frames.pixels[items].to(device).float().div_(255)[:, None]
    targets = boxes_of(frames, items)
    looks = torch.rand(len(items), generator=generator)
    if recipe.plain < 1:
        changed = change_appearance(pixels, generator)
        pixels = torch.where((looks < recipe.plain).to(device)[:, None, None, None], pixels, changed)
    affines = random_affines(len(items), size, recipe.motion, generator)
    pixels = warp(pixels, affines, size)
    boxes = visible_boxes(move_boxes(targets[:, :, :4], affines), size)
    spoiled = torch.where(looks > 1 - recipe.spoiled)[0]
    if len(spoiled):
        pixels[spoiled.to(device)] = spoil(pixels[spoiled.to(device)], generator)
        boxes[spoiled] = torch.nan
    wanted = []
    for frame_boxes, labels in zip(boxes, targets[:, :, 4], strict=True):
        there = torch.isfinite(frame_boxes).all(dim=1) & (
            (frame_boxes[:, 2:] - frame_boxes[:, :2]) > LEAST_SIDE_PX
        ).all(dim=1)
        wanted.append({"boxes": frame_boxes[there].to(device), "labels": labels[there].long().to(device)})
    inputs = normalise(pixels[:, 0] * 255).contiguous(memory_format=torch.channels_last)
    unsought = unsought_of(frames, items)
    unsought[spoiled] = False  # nothing is on these
    return _loss(model, inputs, wanted, unsought.to(device))


def _loss(model: SeptalDetector, inputs: Tensor, wanted: list[dict[str, Tensor]], unsought: Tensor) -> Tensor:
    """Return the sum of both losses; network in lower precision, boxes and losses in float32.

    ``unsought`` : (N, K) classes that nobody looked for on a frame; what the network says of them there costs nothing.
    """
    with lower_precision(inputs.device):
        features = list(model.backbone(inputs).values())
        outputs = model.head(features)
    outputs = {key: value.float() for key, value in outputs.items()}
    outputs["cls_logits"] = outputs["cls_logits"].masked_fill(unsought[:, None], SURE_OF_NOTHING)
    sizes = [(inputs.shape[2], inputs.shape[3])] * len(inputs)
    anchors = model.anchor_generator(ImageList(inputs, sizes), features)
    losses: dict[str, Tensor] = model.compute_loss(wanted, outputs, anchors)
    return losses["classification"] + losses["bbox_regression"]
