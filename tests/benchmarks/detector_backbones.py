# SPDX-License-Identifier: Apache-2.0
"""The three backbones of the septal detector after the same time of training, and the ASD/VSD paper's protocol.

python tests/benchmarks/detector_backbones.py --studies STUDIES --held-out OTHERS --out DIR --minutes 60

STUDIES and OTHERS are study folders of different patients (``monailabel-echo phantom`` with two seeds); whom a row's
card lists as learned from is not measured. One row for each backbone by our recipe, AP50 on every annotated frame of
OTHERS; one more for each by the paper's recipe: 100 training images, a frame of as many cines. AP50 on 20 of those
frames, as many as the paper held out, stands beside it. Nobody has to be there: a row that is done is read from DIR,
one that was interrupted goes on when the same command is given again.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from echo_plugin.answer.preprocess import normalise
from echo_plugin.answer.runtime import Runtime, prepare_network
from echo_plugin.errors import TrainingDataError
from echo_plugin.evaluate.held_out import choose_held_out, metric_words
from echo_plugin.model_card import Metric, ModelCard, load_card
from echo_plugin.models.checkpoint import SEPTAL_DETECTOR, build_detector, load_published, load_state
from echo_plugin.training.datasets import PreparedFrames, detection_frames, prepare_detection, prepare_frames
from echo_plugin.training.detector import FRAMES_PER_CINE, measure_on_test, train_detector
from echo_plugin.training.detector_recipes import chosen_images, septa_shown
from echo_plugin.training.options import DetectorOptions

ASKED = ("studies", "minutes", "epochs", "image_size", "start", "seed")
HELD_OUT_IMAGES = 20
PAPER_MAP = 0.95
BACKBONES = {"MobileNetV3-Large": "mobilenet_v3_large", "ResNet-18": "resnet18", "ResNet-50": "resnet50"}
ROWS = {name: DetectorOptions(backbone=backbone) for name, backbone in BACKBONES.items()}
ROWS |= {f"{name}, the paper's recipe": replace(options, recipe="paper") for name, options in ROWS.items()}


def train_row(name: str, arguments: argparse.Namespace) -> tuple[ModelCard, Path]:
    """Train one row into a folder of its own, unless that is done; return its card and that folder."""
    models = arguments.out / name.replace(" ", "_").replace("'", "").replace(",", "")
    require_same(models / "asked.json", {key: str(getattr(arguments, key)) for key in ASKED})
    card_path = models / f"{SEPTAL_DETECTOR}.json"
    if not card_path.is_file():
        chosen = ROWS[name]
        options = replace(
            chosen,
            start=arguments.start,
            epochs=arguments.epochs or (10_000 if chosen.recipe == "ours" else None),
            patience=0,
            max_minutes=arguments.minutes,
            image_size=arguments.image_size,
            seed=arguments.seed,
            device=arguments.device,
            cache_dir=arguments.out / "frames",
            log_dir=models / "logs",
            command=" ".join(["python tests/benchmarks/detector_backbones.py", *sys.argv[1:]]),
        )

        def say(status: object) -> None:
            sys.stderr.write(f"{name}: {status}\n")

        train_detector(arguments.studies, models, options, on_epoch=say)
    return load_card(models, SEPTAL_DETECTOR), models


def require_same(path: Path, asked: dict[str, str]) -> None:
    """Keep what a row is trained with, or compare it with what is kept.

    Raises
    ------
    TrainingDataError
        If the row was trained with other arguments.
    """
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else asked
    if kept != asked:
        other = ", ".join(f"{key} {kept.get(key)}" for key in asked if kept.get(key) != asked[key])
        msg = f"The row in {path.parent.name} was trained with {other}; give the same arguments or another --out."
        raise TrainingDataError(msg)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asked) + "\n", encoding="utf-8")


def held_out_frames(studies: Path, models: Path, size_px: int) -> PreparedFrames:
    """Return the annotated frames of the patients whom the detector in ``models`` has not learned from.

    Raises
    ------
    TrainingDataError
        If it has learned from all of them, or its card does not say from whom.
    """
    held_out = choose_held_out(
        studies,
        models,
        [SEPTAL_DETECTOR],
        patients=None,
        wants=lambda cine: bool(detection_frames(cine, FRAMES_PER_CINE)),
    )
    if held_out.left_out:
        sys.stderr.write(f"{held_out.left_out} patients of {studies} are left out: they were learned from.\n")
    choice = [(cine, detection_frames(cine, FRAMES_PER_CINE)) for cine in held_out.cines]
    name = f"detector-{size_px}"
    return prepare_frames(held_out.labelled, choice, prepare_detection(size_px), name=name, cache_dir=None)


def milliseconds_per_frame(card: ModelCard, models: Path, frames: PreparedFrames, repeats: int = 40) -> float:
    """Return the median time of one frame alone on the CPU, as predictions run it."""
    _, state = load_published(models, card.name)
    model = build_detector(card)
    load_state(model, state, card)
    runtime = Runtime.on("cpu")
    model = prepare_network(model, runtime)
    inputs = normalise(frames.pixels[:1], runtime.dtype).contiguous(memory_format=torch.channels_last)
    times = []
    with torch.inference_mode():
        for _ in range(repeats):
            before = time.perf_counter()
            model(inputs)
            times.append(1000 * (time.perf_counter() - before))
    return sorted(times)[repeats // 2]


def row(name: str, arguments: argparse.Namespace) -> dict[str, object]:
    """Return the figures of one row."""
    card, models = train_row(name, arguments)
    frames = held_out_frames(arguments.held_out, models, card.input_size_px)
    _, state = load_published(models, card.name)
    model = build_detector(card)
    load_state(model, state, card)
    items = torch.arange(len(frames.pixels))
    few = chosen_images(items, septa_shown(frames) > 0, frames.cine, HELD_OUT_IMAGES, arguments.seed)
    metric, of_few = (
        measure_on_test(model, frames, chosen, None, "held out", arguments.seed)["AP50"] for chosen in (items, few)
    )
    return {
        "row": name,
        "AP50": asdict(metric),
        "patients": metric.patients,
        "frames": len(items),
        "of_few": asdict(of_few),
        "training_frames": card.training.frames,
        "epochs": card.training.epochs,
        "minutes": round((card.training.wall_time_s or 0) / 60, 1),
        "ms": round(milliseconds_per_frame(card, models, frames), 1),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows in Markdown, the paper's own figure last."""
    lines = [
        f"| detector | trained on | minutes (epochs) | AP50 of {HELD_OUT_IMAGES} held-out images [95 % CI] (patients)"
        " | AP50 of all held-out frames [95 % CI] | frames (patients) | CPU ms per frame |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        few = Metric(**r["of_few"])
        lines.append(
            f"| {r['row']} ({r['parameters'] / 1e6:.1f} M) | {r['training_frames']} frames | {r['minutes']}"
            f" ({r['epochs']}) | {metric_words(few)} ({few.patients}) | {metric_words(Metric(**r['AP50']))}"
            f" | {r['frames']} ({r['patients']}) | {r['ms']} |"
        )
    lines.append(f"| the paper's own figure | 100 images of patients | (50) | {PAPER_MAP} (mAP) | | | |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train and measure every row; the table goes to stdout, figures and table to the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60.0, help="of training, for each row")
    parser.add_argument("--epochs", type=int, help="at most; default: as many as the time allows, the paper's 50")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--start", default="scratch", help="scratch, imagenet or a file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    rows = []
    for name in arguments.rows:
        rows.append(row(name, arguments))
        (arguments.out / "detector_backbones.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        (arguments.out / "detector_backbones.md").write_text(table(rows), encoding="utf-8")
    sys.stdout.write(table(rows))


if __name__ == "__main__":
    from results_page import printed_page

    with printed_page("Backbones of the detector"):
        main()
