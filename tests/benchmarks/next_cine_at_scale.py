# SPDX-License-Identifier: Apache-2.0
"""Time the choice of the next cine in a study folder of many cines, with made-up scores.

    python tests/benchmarks/next_cine_at_scale.py [--cines 10000] [--labelled 3000] [--calls 20]

The cines are links to one small picture, 20 of a patient; scores are random, and every label is judged. Prints for each
strategy the median and the slowest of the calls in ms, for a call right after a submission and its judgement too, and
the times of the steps before: the first look at the folder, one that finds nothing new, the first reading of the
scores. Times are those of the processor (of a call: of its own thread), so that what else runs on the machine does not
count.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from echo_plugin.acquisition.score_store import Judgement
from echo_plugin.acquisition.uncertainty import FRAMES_SCORED, OVERLAPS_SHAPE, SCORES_SHAPE, CineScores
from echo_plugin.anatomy import View
from echo_plugin.annotations import Annotation
from echo_plugin.host.datastore import EchoDatastore
from echo_plugin.host.next_cine import WaitingCines, strategies
from echo_plugin.io.annotation_store import annotation_to_json


def make_folder(root: Path, cines: int, labelled: int) -> None:
    """Write the pictures, patients and labels."""
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32), np.uint8)).save(root / "picture.png")
    (root / "annotations").mkdir()
    rows = ["image_id,patient_id"]
    for number in range(cines):
        name = f"cine{number:05d}.png"
        os.link(root / "picture.png", root / name)
        rows.append(f"{name},patient{number // 20:05d}")
        if number < labelled:
            text = annotation_to_json(Annotation(name, annotated_frames=(0,), view=View.A4C, revision=1))
            (root / "annotations" / f"{name}.json").write_text(text)
    (root / "picture.png").unlink()
    (root / "patients.csv").write_text("\n".join(rows) + "\n")


def fill_scores(waiting: WaitingCines, image_ids: list[str]) -> None:
    """Put made-up scores into the store, as scoring would."""
    rng = np.random.default_rng(1)
    views = list(View)
    for image_id in image_ids:
        embedding = rng.normal(size=512).astype(np.float32)
        scores = CineScores(
            np.arange(FRAMES_SCORED),
            rng.uniform(size=SCORES_SHAPE),
            rng.uniform(size=OVERLAPS_SHAPE),
            embedding / np.linalg.norm(embedding),
            views[int(rng.integers(16))],
            float(rng.uniform()),
        )
        waiting.store.put("made-up", image_id, "0:0", scores)


def judge(waiting: WaitingCines, image_id: str, revision: int = 1) -> None:
    """Put a made-up judgement of a label into the store, as judging would: 24 frames, two septa on each."""
    rng = np.random.default_rng([2, zlib.crc32(image_id.encode()), revision])
    scores = rng.uniform(0.05, 1, 48)
    overlaps = np.where(rng.uniform(size=48) < scores, 0.8, np.nan)
    judged = np.column_stack([np.arange(48) % 2, scores, overlaps])
    quality, words = float(rng.uniform()), "a box seems to lie badly"
    waiting.store.judge(Judgement(image_id, revision, "made-up", quality, (0,), words, judged))


def main() -> int:
    """Print the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cines", type=int, default=10_000)
    parser.add_argument("--labelled", type=int, default=3_000)
    parser.add_argument("--calls", type=int, default=20)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # files may be looked for at the end
        root = Path(folder) / "studies"
        root.mkdir()
        make_folder(root, asked.cines, asked.labelled)
        started = time.process_time()
        store = EchoDatastore(root, Path(folder) / "cache")
        print(f"processor time: first look at {asked.cines} files: {time.process_time() - started:.2f} s")
        started = time.process_time()
        store.studies.refresh()
        print(f"look that finds nothing new: {time.process_time() - started:.2f} s")
        waiting = WaitingCines(store, root / "none")
        image_ids = store.list_images()
        fill_scores(waiting, image_ids)
        for image_id in image_ids[: asked.labelled]:
            judge(waiting, image_id)
        started = time.process_time()
        with waiting.pool.reading():
            print(f"first reading of scores, labels and judgements: {time.process_time() - started:.2f} s")
        started = time.process_time()
        waiting.pool.calibrate_if_due()
        print(f"calibration, in the background: {time.process_time() - started:.2f} s")
        for name, strategy in strategies(waiting).items():
            times, after = [], []
            strategy({"client_id": "warm-up"}, store)
            for call in range(asked.calls):
                for values in (times, after):
                    started = time.thread_time()
                    answer = strategy({"client_id": f"reader-{call}"}, store) or {}
                    values.append(1000 * (time.thread_time() - started))
                    if values is times and "id" in answer:
                        saved = store.studies.save_annotation(
                            Annotation(answer["id"], annotated_frames=(0,), view=View.A4C), author="reader"
                        )
                        judge(waiting, saved.image_id, saved.revision)
            print(
                f"{name:<14} median {statistics.median(times):6.1f} ms, slowest {max(times):6.1f} ms;"
                f" after a submission {statistics.median(after):6.1f} ms   {answer.get('reason', '')}"
            )
    return 0


if __name__ == "__main__":
    from results_page import printed_page

    with printed_page("The next cine among many"):
        sys.exit(main())
