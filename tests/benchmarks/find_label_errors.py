# SPDX-License-Identifier: Apache-2.0
"""Put errors into 5 % of the labelled frames of phantoms and see whether the review finds them.

    python tests/benchmarks/find_label_errors.py STUDIES [--models DIR] [--seed 0] [--share 0.05] [--repeats 5]

STUDIES is a phantom study folder; it is not changed. Patients that the detector's card lists as learned from are left
out; without others, or without such a list, nothing is measured. Errors, in turn: a box shifted by 0.4 to 0.8 of its
sides, a box removed, the septa of the boxes swapped (a single box gets the other name), a box put where none is. Prints
precision at k (k: the number of wrong frames) and the area under the ROC curve over frames, for each kind and together,
with the mean over the repeats.
"""

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
from sklearn.metrics import roc_auc_score

from echo_plugin.acquisition.label_quality import JudgedCine, LabelJudge, label_quality, match_boxes
from echo_plugin.acquisition.uncertainty import calibrate
from echo_plugin.evaluate.held_out import choose_held_out
from echo_plugin.measure.boxes import FrameBoxes
from echo_plugin.models.checkpoint import SEPTAL_DETECTOR
from echo_plugin.training.datasets import detection_frames

ERRORS = ("shifted", "missing", "swapped", "extra")


def shifted(label: FrameBoxes, rng: np.random.Generator, size: int) -> FrameBoxes:
    boxes = label.boxes.copy()
    place = rng.integers(len(boxes))
    sides = boxes[place, 2:] - boxes[place, :2]
    step = sides * rng.uniform(0.4, 0.8, 2) * rng.choice([-1, 1], 2)
    boxes[place] += np.tile(step, 2)
    return dataclasses.replace(label, boxes=boxes)


def missing(label: FrameBoxes, rng: np.random.Generator, size: int) -> FrameBoxes:
    keep = np.arange(len(label.boxes)) != rng.integers(len(label.boxes))
    return FrameBoxes(label.boxes[keep], label.labels[keep], label.scores[keep])


def swapped(label: FrameBoxes, rng: np.random.Generator, size: int) -> FrameBoxes:
    return dataclasses.replace(label, labels=1 - label.labels)


def extra(label: FrameBoxes, rng: np.random.Generator, size: int) -> FrameBoxes:
    sides = size * rng.uniform(0.12, 0.35, 2)
    corner = rng.uniform(0, size - sides)
    box = np.concatenate([corner, corner + sides])
    absent = [septum for septum in (0, 1) if septum not in label.labels] or [0, 1]
    return FrameBoxes(
        np.vstack([label.boxes, box]), np.append(label.labels, rng.choice(absent)), np.append(label.scores, 1.0)
    )


MAKE = {"shifted": shifted, "missing": missing, "swapped": swapped, "extra": extra}


def spoil(labels: list[FrameBoxes], share: float, rng: np.random.Generator, size: int):
    """Return the labels with errors, and by frame the name of its error or an empty text."""
    spoiled, names = list(labels), np.array([""] * len(labels), dtype=object)
    for number, frame in enumerate(rng.permutation(len(labels))[: max(round(share * len(labels)), len(ERRORS))]):
        name = ERRORS[number % len(ERRORS)]
        if name != "extra" and not len(labels[frame].boxes):
            name = "extra"  # of a frame without a box nothing can be shifted, removed or swapped
        spoiled[frame] = MAKE[name](labels[frame], rng, size)
        names[frame] = name
    return spoiled, names


def look_at(studies: Path, models: Path) -> list[JudgedCine]:
    """Return the labelled cines of patients that the published detector did not learn from, as it sees them.

    Raises
    ------
    TrainingDataError
        If it learned from all of them, or its card does not say from whom.
    """
    held_out = choose_held_out(
        studies, models, (SEPTAL_DETECTOR,), patients=None, wants=lambda cine: bool(detection_frames(cine, 1))
    )
    if held_out.left_out:
        print(f"{held_out.left_out} patients are left out: the detector learned from them")
    judge = LabelJudge(models, device="cpu")
    return [judge.detect(held_out.labelled, cine) for cine in held_out.cines]


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", type=Path)
    parser.add_argument("--models", type=Path, default=Path(__file__).parents[2] / "apps" / "echo" / "model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()

    seen = look_at(asked.studies, asked.models)
    labels = [label for cine in seen for label in cine.labels]
    predictions = [answer for cine in seen for answer in cine.predictions]
    size = seen[0].input_size_px
    print(f"{len({c.cine.patient_id for c in seen})} patients, {len(seen)} cines, {len(labels)} frames")
    rows = []
    for repeat in range(asked.repeats):
        spoiled, names = spoil(labels, asked.share, np.random.default_rng([asked.seed, repeat]), size)
        calibration = calibrate(seen[0].operating_score, [match_boxes(spoiled, predictions)])
        quality = label_quality(spoiled, predictions, calibration)
        overall, is_wrong = quality.overall, names != ""
        k = int(is_wrong.sum())
        row = {"k": k, "precision at k": float(is_wrong[np.argsort(overall, kind="stable")[:k]].mean())}
        row["ROC AUC"] = float(roc_auc_score(is_wrong, -overall))
        for name in ERRORS:
            of_kind = (names == name) | ~is_wrong
            if (names == name).any():
                row[f"ROC AUC {name}"] = float(roc_auc_score(is_wrong[of_kind], -overall[of_kind]))
        rows.append(row)
    means = {key: float(np.mean([row[key] for row in rows if key in row])) for key in rows[0]}
    for key, value in means.items():
        values = [row[key] for row in rows if key in row]
        print(f"{key:<20}{value:8.3f}   {min(values):.3f} to {max(values):.3f}")
    if asked.json:
        asked.json.write_text(json.dumps({"means": means, "repeats": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    from results_page import printed_page

    with printed_page("How well errors in labels are found"):
        sys.exit(main())
