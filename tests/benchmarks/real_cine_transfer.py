# SPDX-License-Identifier: Apache-2.0
"""How detector and view classifier do on the real four-chamber cine beside the checkout, and without a heart.

One cine is an anecdote, not a figure: this tells a detector that has learned the phantom's look from one that has
learned septa. The cine is measured as it is, shifted, scaled and mirrored, beside the answer that ignores the pixels
(the median box of the training frames); a sure box on a picture without a heart is a false alarm.

python tests/benchmarks/real_cine_transfer.py --models apps/echo/model [--data ../shared/data]
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from echo_plugin.anatomy import DETECTED_SEPTA, Septum, View
from echo_plugin.answer.preprocess import normalise, to_model_input
from echo_plugin.cine import Cine
from echo_plugin.errors import ModelMismatchError
from echo_plugin.geometry import FloatArray, transform_boxes
from echo_plugin.io.cine_file import read_cine
from echo_plugin.measure.boxes import FrameBoxes, best_overlaps, constant_answer, constant_boxes_px
from echo_plugin.models.checkpoint import (
    SEPTAL_DETECTOR,
    VIEW_CLASSIFIER,
    build_detector,
    build_view_classifier,
    load_published,
    load_state,
)
from echo_plugin.models.septal_detector import SeptalDetector
from echo_plugin.training.augment import warp

ROOT = Path(__file__).resolve().parents[2]
CINE = "color3d_jpeg_baseline.dcm"
WITHOUT_HEART = (
    "OBXXXX1A_rle_2frame.dcm",
    "US1_J2KI.dcm",
    "gdcm-US-ALOKA-16.dcm",
    "US-YBR_FULL_422-EVRLE.dcm",
)


COPIES: dict[str, tuple[float, float, float, bool]] = {
    "plain": (1.0, 0.0, 0.0, False),
    "shifted left": (1.0, -0.15, 0.0, False),
    "shifted right": (1.0, 0.15, 0.05, False),
    "shifted down": (1.0, 0.05, 0.12, False),
    "smaller": (0.75, 0.0, 0.0, False),
    "larger": (1.25, 0.0, 0.0, False),
    "mirrored": (1.0, 0.0, 0.0, True),
    "mirrored, shifted, smaller": (0.85, 0.12, -0.08, True),
}
"""Scale about the middle, shift as a part of the side (x, y), and whether left and right are exchanged."""


def read_reference_boxes(path: Path) -> dict[int, FrameBoxes]:
    """Return hand-drawn boxes, px of the file, by 0-based frame index, of {"boxes": [{frame_index, septum, xyxy}]}."""
    frames: dict[int, list[tuple[list[float], int]]] = {}
    for row in json.loads(path.read_text(encoding="utf-8"))["boxes"]:
        label = DETECTED_SEPTA.index(Septum(row["septum"]))
        frames.setdefault(int(row["frame_index"]), []).append((row["xyxy"], label))
    return {
        index: FrameBoxes(
            np.array([box for box, _ in rows], dtype=np.float64),
            np.array([label for _, label in rows]),
            np.ones(len(rows)),
        )
        for index, rows in sorted(frames.items())
    }


def measure_transfer(
    models: Path, cine: Cine, reference: dict[int, FrameBoxes], controls: Sequence[Cine] = ()
) -> dict[str, Any]:
    """Return by copy of the cine the mean IoU of each septum, the constant answer's, and the mean score; and controls.

    ``controls`` : cines without a heart; the cine itself, blurred beyond recognition, is added to them.
    """
    card, state = load_published(models, SEPTAL_DETECTOR)
    detector = build_detector(card)
    load_state(detector, state, card)
    detector.eval()
    size = card.input_size_px
    medians = constant_boxes_px(card)
    if medians is None:
        msg = f"Model {card.name}: its card has no constant boxes to compare with; train it anew."
        raise ModelMismatchError(msg)
    pixels, mapping = to_model_input(cine, list(reference), size)
    truths = [FrameBoxes(mapping.to_model(t.boxes), t.labels, t.scores) for t in reference.values()]
    copies = {}
    for name, (scale, dx, dy, is_mirrored) in COPIES.items():
        affine = _affine(size, scale, dx, dy, is_mirrored=is_mirrored)
        moved = warp(pixels.float()[:, None], torch.from_numpy(affine).float().expand(len(pixels), 2, 3), size)
        wanted = [FrameBoxes(transform_boxes(t.boxes, affine), t.labels, t.scores) for t in truths]
        copies[name] = _overlaps(_detect(detector, moved[:, 0]), wanted, medians)
    blurred = interpolate(avg_pool2d(pixels.float()[:, None], size // 12), size=(size, size), mode="bilinear")[:, 0]
    empty = {"blurred": blurred}
    for control in controls:
        frames = np.linspace(0, control.frame_count - 1, min(control.frame_count, 4)).astype(int).tolist()
        empty[control.image_id] = to_model_input(control, frames, size)[0].float()
    return {
        "model": f"{card.name} {card.version}, trained on {card.trained_on}",
        "sha256": card.sha256,
        "frames": len(truths),
        "copies": copies,
        "highest score without a heart": {
            name: max([float(s) for answer in _detect(detector, frames) for s in answer.scores], default=0.0)
            for name, frames in empty.items()
        },
    }


@torch.no_grad()
def measure_view_share(models: Path, cine: Cine, view: View) -> dict[str, Any]:
    """Return what share of a cine's clips, one beginning at each frame, is called ``view``, and its mean probability.

    A cine shorter than a clip gives one clip, its last frame repeated.
    """
    card, state = load_published(models, VIEW_CLASSIFIER)
    classifier = build_view_classifier(card)
    load_state(classifier, state, card)
    classifier.eval()
    pixels, _ = to_model_input(cine, range(cine.frame_count), card.input_size_px)
    length = classifier.config.frames_per_clip
    starts = torch.arange(max(cine.frame_count - length, 0) + 1)
    clips = (starts[:, None] + torch.arange(length)).clamp(max=cine.frame_count - 1)
    probabilities = torch.cat([classifier(normalise(pixels[part])).softmax(dim=1) for part in torch.split(clips, 16)])
    place = card.classes.index(view.value)
    return {
        "model": f"{card.name} {card.version}, trained on {card.trained_on}",
        "sha256": card.sha256,
        "clips": len(clips),
        "share": float((probabilities.argmax(dim=1) == place).float().mean()),
        "mean_probability": float(probabilities[:, place].mean()),
    }


def _affine(size: int, scale: float, dx: float, dy: float, *, is_mirrored: bool) -> FloatArray:
    flip = -1.0 if is_mirrored else 1.0
    linear = np.diag([scale * flip, scale])
    middle = np.full(2, size / 2)
    return np.column_stack([linear, middle + np.array([dx, dy]) * size - linear @ middle])


@torch.no_grad()
def _detect(detector: SeptalDetector, frames: Tensor) -> list[FrameBoxes]:
    found = detector(normalise(frames))
    assert isinstance(found, list)
    return [
        FrameBoxes(f["boxes"].double().numpy(), f["labels"].numpy().astype(int), f["scores"].double().numpy())
        for f in found
    ]


def _overlaps(
    answers: Sequence[FrameBoxes], truths: Sequence[FrameBoxes], medians: FloatArray
) -> dict[str, dict[str, float]]:
    result = {}
    for label, septum in enumerate(DETECTED_SEPTA):
        scores = [float(a.of(label)[1].max(initial=0.0)) for a in answers]
        result[septum.value] = {
            "mean_iou": float(np.nanmean(best_overlaps(answers, truths, label))),
            "constant_iou": float(np.nanmean(best_overlaps([constant_answer(medians)] * len(truths), truths, label))),
            "mean_score": float(np.mean(scores)),
        }
    return result


def measure(models: Path, data: Path) -> dict[str, object]:
    """Return the figures of `measure_transfer` for the real cine."""
    reference = read_reference_boxes(ROOT / "tests" / "real_reference_boxes.json")
    controls = [read_cine(data / name, image_id=Path(name).stem) for name in WITHOUT_HEART]
    cine = read_cine(data / CINE)
    return measure_transfer(models, cine, reference, controls) | {"A4C": measure_view_share(models, cine, View.A4C)}


def main() -> None:
    """Print the figures as JSON, and a table on stderr."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=ROOT / "apps" / "echo" / "model")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    arguments = parser.parse_args()
    result = measure(arguments.models, arguments.data)
    for copy, septa in result["copies"].items():
        figures = "   ".join(
            f"{name} IoU {s['mean_iou']:.3f} (constant {s['constant_iou']:.3f}) score {s['mean_score']:.2f}"
            for name, s in septa.items()
        )
        sys.stderr.write(f"{copy:28} {figures}\n")
    view = result["A4C"]
    sys.stderr.write(f"called A4C: {view['share']:.0%} of {view['clips']} clips, mean {view['mean_probability']:.2f}\n")
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    from results_page import printed_page

    with printed_page("A real four-chamber cine"):
        main()
