# SPDX-License-Identifier: Apache-2.0
"""What pre-training without labels is worth on fetal views, by how many patients are labelled (phantoms).

    monailabel-echo phantom RUNS/train --fetal --patients 200 --seed 11 --frames 3
    monailabel-echo phantom RUNS/test --fetal --patients 60 --seed 12 --frames 2
    python tests/benchmarks/fetal_views.py RUNS --picture curve.png

Patients of the first folder are split once, 70 % to learn from and 15 % to validate; the autoencoder sees them without
labels, then 1, 10 and 100 % of them are labelled, whole patients at a time, and as large a part of the validation
patients chooses the epoch. Everything is measured on the patients of the second folder, whom nothing has seen.
All networks get the fetal paper's recipe, but small enough for a laptop's processor: 32 px, batches of 32, a learning
rate of 1e-3, and few steps (STEPS, the same for all). "crop" is the square round the heart, which the phantom knows.
With --size 64 a shorter plan is run at that size. Each run is kept in RUNS/fetal_views.json (or fetal_views_64.json)
when it is done; started again, the rest is done.
"""

import argparse
import csv
import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch

from echo_plugin.anatomy import FETAL_5
from echo_plugin.answer.preprocess import GREY_MEAN, GREY_STD, crop_square, to_model_input
from echo_plugin.io.cine_file import read_cine
from echo_plugin.models.masked_autoencoder import MaskedAutoencoder
from echo_plugin.models.view_classifier import ViewClassifier
from echo_plugin.models.vit import load_vit
from echo_plugin.training.mae import learn_mae, mae_config
from echo_plugin.training.mae_frames import UnlabelledFrames
from echo_plugin.training.options import MaeOptions, ViewOptions
from echo_plugin.training.splits import split_by_patient
from echo_plugin.training.view_stages import ClipTable, clip_logits, learn_stage, stages_of
from echo_plugin.training.views import encoder_features, linear_probe, view_config

VIT, BATCH, MASK_RATIO = "vit_micro_patch8", 32, 0.5
STEPS = {32: {0.01: 150, 0.1: 400, 1.0: 800}, 64: {0.1: 400, 1.0: 1600}}
"""By side of the picture, px, and labelled part."""
METHODS = {"ResNet-18": "resnet18", "ViT": VIT, "ViT + MAE": VIT}
SHORT_PLAN = [
    *((method, 0.1, "crop", 0) for method in METHODS),
    ("ResNet-18", 1.0, "crop", 0),
    *((method, 0.1, "crop", 1) for method in ("ViT + MAE", "ViT")),
    *((method, 1.0, "crop", 0) for method in ("ViT + MAE", "ViT")),
]
PLAN = [
    *((method, 0.1, "crop", 0) for method in ("ViT + MAE", "ViT", "ResNet-18")),
    *((method, 0.1, "crop", seed) for seed in (1, 2) for method in ("ViT + MAE", "ViT")),
    *((method, 0.01, "crop", 0) for method in METHODS),
    *((method, 1.0, "crop", 0) for method in METHODS),
    *((method, fraction, "crop", seed) for seed in (1, 2) for fraction in (0.1, 0.01, 1.0) for method in METHODS),
    *((method, 0.1, "frame", seed) for seed in (0, 1, 2) for method in ("ResNet-18", "ViT + MAE", "ViT")),
    *((method, 1.0, "frame", 0) for method in METHODS),
]


@dataclass(frozen=True)
class Stills:
    """``pixels`` (N, S, S) uint8, ``labels`` (N,), ``patients`` (N,) names."""

    pixels: torch.Tensor
    labels: np.ndarray
    patients: np.ndarray


def read_stills(folder: Path, seen: str, size_px: int) -> Stills:
    """Return the stills of a fetal phantom folder: the whole frame, or the square round the heart with a margin."""
    with (folder / "phantom.csv").open(encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    kept = folder / f".{seen}-{size_px}.npy"
    if not kept.exists():
        squares = []
        for row in rows:
            cine = read_cine(folder / row["file"])
            if seen == "frame":
                squares.append(to_model_input(cine, [0], size_px)[0][0])
            else:
                x1, y1, x2, y2 = (float(corner) for corner in row["focus"].split(";"))
                squares.append(crop_square(cine.pixels[0], (x1, y1, x2, y2), size_px))
        np.save(kept, torch.stack(squares).numpy())
    labels = np.array([[view.value for view in FETAL_5].index(row["view"]) for row in rows])
    return Stills(torch.from_numpy(np.load(kept)), labels, np.array([row["patient_id"] for row in rows]))


def labelled_part(patients: list[str], fraction: float, seed: int) -> list[str]:
    """Return the patients that are labelled: at least two, the smaller parts inside the larger ones."""
    order = np.random.default_rng(seed).permutation(sorted(patients))
    return order[: max(2, round(fraction * len(order)))].tolist()


def pretrained(train: Stills, parts: dict[str, torch.Tensor], runs: Path, seen: str, epochs: int) -> dict:
    """Return the weights of an autoencoder of the training and validation stills; kept in ``runs``."""
    size_px = train.pixels.shape[-1]
    name = f"mae_{seen}" if size_px == min(STEPS) else f"mae_{seen}_{size_px}"
    kept = runs / f"{name}.pt"
    if not kept.exists():
        torch.manual_seed(0)
        options = MaeOptions(
            backbone=VIT,
            image_size=size_px,
            batch_size=64,
            learning_rate=1.5e-3,
            epochs=epochs,
            device="cpu",
            mask_ratio=MASK_RATIO,
            pictures_every=10,
        )
        model = MaskedAutoencoder(mae_config(options))
        learned = learn_mae(
            model,
            UnlabelledFrames(train.pixels, torch.arange(len(train.labels))),
            parts,
            options,
            state_key=name,
            models=runs / name,
            on_epoch=lambda status: print(name, status.epoch, status.train_loss, status.metric, flush=True),
        )
        torch.save(learned.state, kept)
    return torch.load(kept, weights_only=True)


def patients_of(train: Stills) -> dict[str, list[str]]:
    """Return the patients of each part."""
    split = split_by_patient(dict.fromkeys(train.patients.tolist()), seed=0)
    return {"train": list(split.train), "validation": list(split.validation)}


def stills_of(train: Stills, patients: list[str]) -> torch.Tensor:
    """Return the places of some patients' stills."""
    return torch.from_numpy(np.flatnonzero(np.isin(train.patients, patients)))


def run(train: Stills, test: Stills, method: str, fraction: float, seed: int, mae: dict) -> dict:
    """Return the accuracy of one fine-tuning on the test patients, and that of a linear probe of its beginning."""
    torch.manual_seed(seed)
    options = ViewOptions(
        backbone=METHODS[method],
        image_size=train.pixels.shape[-1],
        recipe="usf-mae",
        batch_size=BATCH,
        learning_rate=1e-3,
        seed=seed,
        device="cpu",
    )
    config = replace(view_config(options, len(FETAL_5)), is_standardised=True)  # as the autoencoder was taught
    model = ViewClassifier(config)
    if method == "ViT + MAE":
        load_vit(model.backbone, mae, "The autoencoder", (GREY_MEAN, GREY_STD))
    parts = {
        part: stills_of(train, labelled_part(patients, fraction, seed)) for part, patients in patients_of(train).items()
    }
    everything = torch.arange(len(train.labels))
    table = ClipTable(train.pixels, everything[:, None], torch.from_numpy(train.labels), everything, parts)
    learned_from = parts["train"].numpy()
    probed = linear_probe(
        encoder_features(model, train.pixels[learned_from]),
        train.labels[learned_from],
        encoder_features(model, test.pixels),
    )
    epochs = max(2, round(STEPS[options.image_size][fraction] / max(1, len(learned_from) / BATCH)))
    options = replace(options, epochs=epochs)
    began = time.process_time()
    learned = learn_stage(model, table, options, stages_of(options, "mean", is_going_on=False)[0])
    everything = torch.arange(len(test.labels))
    of_test = ClipTable(test.pixels, everything[:, None], torch.from_numpy(test.labels), everything, {})
    right = clip_logits(model, of_test, everything).argmax(axis=1) == test.labels
    return {
        "accuracy": float(right.mean()),
        "recalls": [float(right[test.labels == k].mean()) for k in range(len(FETAL_5))],
        "probe": float((probed == test.labels).mean()),
        "labelled_stills": len(learned_from),
        "epochs": learned.epochs,
        "cpu_s": round(time.process_time() - began, 1),
    }


def draw(results: dict[str, dict], png: Path) -> None:
    """Draw accuracy by labelled part, a line for each method: mean, and every seed as a point."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 3.4), dpi=110)
    for method, colour in zip(METHODS, ("#7a7a7a", "#d08030", "#2060b0"), strict=True):
        points = sorted((float(key.split("|")[1]), r["accuracy"]) for key, r in results.items()
                        if key.startswith(f"{method}|") and "|crop|" in key)  # fmt: skip
        if not points:
            continue
        fractions = sorted({fraction for fraction, _ in points})
        means = [np.mean([a for f, a in points if f == fraction]) for fraction in fractions]
        axes.plot([100 * f for f in fractions], means, "-", color=colour, label=method)
        axes.plot([100 * f for f, _ in points], [a for _, a in points], ".", color=colour, alpha=0.6)
    axes.set(xscale="log", xlabel="labelled patients, %", ylabel="accuracy, held-out phantoms", ylim=(0.15, 1))
    axes.set_xticks([1, 10, 100], ["1", "10", "100"])
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(png)


def main() -> None:
    """Run what is missing of the plan; print every row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--epochs", type=int, default=60, help="of the pre-training")
    parser.add_argument("--size", type=int, choices=STEPS, default=32, help="of the pictures, px")
    parser.add_argument("--only-draw", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    is_usual = asked.size == min(STEPS)
    kept = asked.runs / ("fetal_views.json" if is_usual else f"fetal_views_{asked.size}.json")
    results = json.loads(kept.read_text()) if kept.exists() else {}
    plan = PLAN if is_usual else SHORT_PLAN
    for method, fraction, seen, seed in () if asked.only_draw else plan:
        key = f"{method}|{fraction}|{seen}|{seed}"
        if key not in results:
            train, test = (read_stills(asked.runs / part, seen, asked.size) for part in ("train", "test"))
            parts = {part: stills_of(train, patients) for part, patients in patients_of(train).items()}
            mae = pretrained(train, parts, asked.runs, seen, asked.epochs) if method == "ViT + MAE" else {}
            results[key] = run(train, test, method, fraction, seed, mae)
            kept.write_text(json.dumps(results, indent=1))
        print(key, results[key], file=sys.stderr, flush=True)
    print(table(results))
    if asked.picture:
        draw(results, asked.picture)


def table(results: dict[str, dict]) -> str:
    """Return the mean accuracy of each method over its seeds, with the least and the largest, in Markdown."""
    lines = [
        "| method | labelled patients | stills | seen | seeds | accuracy, held-out phantoms |",
        "|---|---|---|---|---|---|",
    ]
    settings = dict.fromkeys(tuple(key.split("|")[:3]) for key in results)
    for method, fraction, seen in sorted(settings, key=lambda one: (one[2], float(one[1]), one[0])):
        own = [r for key, r in results.items() if key.startswith(f"{method}|{fraction}|{seen}|")]
        values = [r["accuracy"] for r in own]
        words = f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"
        stills = own[0]["labelled_stills"]
        lines.append(f"| {method} | {float(fraction):.0%} | {stills} | {seen} | {len(own)} | {words} |")
    return "\n".join(lines)


if __name__ == "__main__":
    from results_page import printed_page

    with printed_page("Pre-training on fetal views"):
        main()
