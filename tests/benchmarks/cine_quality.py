# SPDX-License-Identifier: Apache-2.0
"""Whether a cheap measure of a cine's frames follows the image quality that a phantom was drawn with.

    python tests/benchmarks/cine_quality.py STUDIES [--cines 200]

Rank correlation (Spearman) of nine measures of the middle frame, and of the one after it, with ``image_quality`` of
phantom.csv, on cines drawn by seed 0. A figure of quality would need one that follows it well.
"""

import argparse
import csv
import sys
from pathlib import Path

import numpy as np
from scipy.ndimage import laplace, sobel
from scipy.stats import spearmanr

from echo_plugin.answer.preprocess import to_model_input
from echo_plugin.io.study_folder import StudyFolder


def measures(frame: np.ndarray, following: np.ndarray) -> dict[str, float]:
    """Return nine measures of an (S, S) uint8 frame and its successor, within what is not black in both."""
    inside = (frame > 0) | (following > 0)
    grey, after = frame[inside].astype(float), following[inside].astype(float)
    shares = np.bincount(frame[inside], minlength=256) / max(inside.sum(), 1)
    low, middle, high = np.percentile(grey, [5, 50, 95])
    smooth = frame.astype(float)
    return {
        "brightness": grey.mean(),
        "deviation": grey.std(),
        "contrast": (high - low) / max(high + low, 1),
        "bright over median": high - middle,
        "clipped": float((grey > 250).mean()),
        "dark": float((grey < 10).mean()),
        "entropy": float(-(shares[shares > 0] * np.log(shares[shares > 0])).sum()),
        "sharpness": float(np.hypot(sobel(smooth, 0), sobel(smooth, 1))[inside].mean() / max(grey.mean(), 1)),
        "noise": float(laplace(smooth)[inside].std() / max(np.corrcoef(grey, after)[0, 1], 0.05)),
    }


def main() -> None:
    """Print each measure and its rank correlation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("studies", type=Path)
    parser.add_argument("--cines", type=int, default=200)
    options = parser.parse_args()
    with (options.studies / "phantom.csv").open(encoding="utf-8") as table:
        quality = {row["image_id"]: float(row["image_quality"]) for row in csv.DictReader(table)}
    folder, rng = StudyFolder(options.studies), np.random.default_rng(0)
    chosen = rng.choice(sorted(quality), min(options.cines, len(quality)), replace=False)
    found = []
    for image_id in chosen:
        cine = folder.read_cine(str(image_id))
        middle = cine.frame_count // 2
        pixels, _ = to_model_input(cine, [middle, min(middle + 1, cine.frame_count - 1)], 160)
        found.append(measures(*pixels.numpy()))
    truth = [quality[image_id] for image_id in chosen]
    for name in found[0]:
        rank = spearmanr([each[name] for each in found], truth).statistic
        sys.stdout.write(f"{name:20} {rank:+.2f}\n")
    sys.stdout.write(f"{len(chosen)} cines\n")


if __name__ == "__main__":
    from results_page import printed_page

    with printed_page("Measures of a cine beside the image quality of its phantom"):
        main()
