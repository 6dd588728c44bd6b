# SPDX-License-Identifier: Apache-2.0
"""What pre-training without labels is worth on fetal views, by how many patients are labelled (phantoms).

    monailabel-echo phantom RUNS/train --fetal --patients 200 --seed 11 --frames 3
    monailabel-echo phantom RUNS/test --fetal --patients 60 --seed 12 --frames 2
    monailabel-echo train mae --images RUNS/train --models RUNS/models --backbone vit_micro_patch8 --image-size 64
    python tests/benchmarks/fetal_views.py RUNS --picture curve.png

The autoencoder learned from the training patients of its own split; of those, 1, 10 and 100 % are labelled here, by
whole patients, and as large a part of the validation patients chooses the epoch. Everything is measured on the patients
of the second folder, whom nothing has seen. All networks get the fetal paper's recipe, but for small ones: 64 px,
batches of 32, a learning rate of 1e-3, and so few steps (STEPS, the same for all) that a laptop does them in minutes.
Each run is kept in RUNS/fetal_views.json when it is done; started again, the rest is done.
"""

import argparse
import csv
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch

from echo_plugin.anatomy import FETAL_5
from echo_plugin.io.cine_file import read_cine
from echo_plugin.models.checkpoint import VIEW_CLASSIFIER
from echo_plugin.models.view_classifier import ViewClassifier
from echo_plugin.preprocess import crop_square, to_model_input
from echo_plugin.training.clips import ClipTable, clip_logits
from echo_plugin.training.linear_probe import encoder_features, probe
from echo_plugin.training.options import TrainOptions
from echo_plugin.training.provenance import known_parts
from echo_plugin.training.start_weights import Start, load_start
from echo_plugin.training.view_stages import learn_stage, stages_of
from echo_plugin.training.views import view_config

SIZE_PX, VIT, BATCH = 64, "vit_micro_patch8", 32
STEPS = {0.01: 100, 0.1: 250, 1.0: 500}
METHODS = {"ResNet-18": ("resnet18", "scratch"), "ViT": (VIT, "scratch"), "ViT + MAE": (VIT, "mae")}
PLAN = [
    *((method, fraction, "frame", 0) for fraction in (0.1, 0.01) for method in ("ViT + MAE", "ViT", "ResNet-18")),
    *((method, 0.1, "frame", seed) for seed in (1, 2) for method in ("ViT + MAE", "ViT")),
    *((method, 1.0, "frame", 0) for method in ("ViT + MAE", "ViT", "ResNet-18")),
    *((method, 0.1, "crop", 0) for method in ("ViT + MAE", "ResNet-18")),
    *((method, 0.01, "frame", seed) for seed in (1, 2) for method in METHODS),
    *(("ResNet-18", 0.1, "frame", seed) for seed in (1, 2)),
    *((method, 0.1, "crop", seed) for seed in (1, 2) for method in ("ViT + MAE", "ResNet-18")),
    *((method, 1.0, "frame", seed) for seed in (1, 2) for method in METHODS),
]


@dataclass(frozen=True)
class Stills:
    """``pixels`` (N, S, S) uint8, ``labels`` (N,), ``patients`` (N,) names."""

    pixels: torch.Tensor
    labels: np.ndarray
    patients: np.ndarray


def read_stills(folder: Path, seen: str) -> Stills:
    """Return the stills of a fetal phantom folder: the whole frame, or the square round the heart with a margin."""
    with (folder / "phantom.csv").open(encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    kept = folder / f".{seen}-{SIZE_PX}.npy"
    if not kept.exists():
        squares = []
        for row in rows:
            cine = read_cine(folder / row["file"])
            if seen == "frame":
                squares.append(to_model_input(cine, [0], SIZE_PX)[0][0])
            else:
                x1, y1, x2, y2 = (float(corner) for corner in row["focus"].split(";"))
                squares.append(crop_square(cine.pixels[0], (x1, y1, x2, y2), SIZE_PX))
        np.save(kept, torch.stack(squares).numpy())
    labels = np.array([[view.value for view in FETAL_5].index(row["view"]) for row in rows])
    return Stills(torch.from_numpy(np.load(kept)), labels, np.array([row["patient_id"] for row in rows]))


def labelled_part(patients: list[str], fraction: float, seed: int) -> list[str]:
    """Return the patients that are labelled: at least two, the smaller parts inside the larger ones."""
    order = np.random.default_rng(seed).permutation(sorted(patients))
    return order[: max(2, round(fraction * len(order)))].tolist()


def run(train: Stills, test: Stills, models: Path, method: str, fraction: float, seed: int) -> dict:
    """Return the accuracy of one fine-tuning on the test patients, and that of a linear probe of its beginning."""
    torch.manual_seed(seed)
    backbone, start = METHODS[method]
    options = TrainOptions(
        backbone=backbone,
        image_size=SIZE_PX,
        recipe="usf-mae",
        batch_size=BATCH,
        start=start,
        seed=seed,
        device="cpu",
        learning_rate=1e-3,
    )
    model = ViewClassifier(replace(view_config(options, len(FETAL_5)), is_standardised=True))
    load_start(model, VIEW_CLASSIFIER, models, options)
    known = known_parts(sorted(set(train.patients)), Start(), models)
    parts = {}
    for part in ("train", "validation"):
        chosen = labelled_part([p for p, its in known.items() if its == part], fraction, seed)
        parts[part] = torch.from_numpy(np.flatnonzero(np.isin(train.patients, chosen)))
    N = len(train.labels)
    table = ClipTable(train.pixels, torch.arange(N)[:, None], torch.from_numpy(train.labels), torch.arange(N), parts)
    learned_from = parts["train"].numpy()
    probed = probe(
        encoder_features(model, train.pixels[learned_from]),
        train.labels[learned_from],
        encoder_features(model, test.pixels),
    )
    epochs = max(2, round(STEPS[fraction] / max(1, len(learned_from) / BATCH)))
    options = replace(options, epochs=epochs)
    began = time.process_time()
    learned = learn_stage(model, table, options, stages_of(options, "mean", is_going_on=False)[0])
    M = len(test.labels)
    everything = torch.arange(M)
    of_test = ClipTable(test.pixels, everything[:, None], torch.from_numpy(test.labels), everything, {})
    answers = clip_logits(model, of_test, everything).argmax(axis=1)
    right = answers == test.labels
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
                        if key.startswith(f"{method}|") and "|frame|" in key)  # fmt: skip
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
    parser.add_argument("--only-draw", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    kept = asked.runs / "fetal_views.json"
    results = json.loads(kept.read_text()) if kept.exists() else {}
    for method, fraction, seen, seed in () if asked.only_draw else PLAN:
        key = f"{method}|{fraction}|{seen}|{seed}"
        if key not in results:
            train, test = (read_stills(asked.runs / part, seen) for part in ("train", "test"))
            results[key] = run(train, test, asked.runs / "models", method, fraction, seed)
            kept.write_text(json.dumps(results, indent=1))
        print(key, results[key], flush=True)
    if asked.picture:
        draw(results, asked.picture)


if __name__ == "__main__":
    main()
