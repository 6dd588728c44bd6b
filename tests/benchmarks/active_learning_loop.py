# SPDX-License-Identifier: Apache-2.0
"""Annotate and train as a person would through 3D Slicer, and measure what each choice of the next cine is worth.

    python tests/benchmarks/active_learning_loop.py OUT [--visits 7] [--rounds 4] [--batch 4] [--seeds 5] [--epochs 8]

A laboratory that shows its pictures upside down, as many paediatric ones do, begins with the shipped detector, which
has never seen that. Its pool of phantom visits without labels (of each child the four-chamber and subcostal views and
four or five others, as recorded, about half of which show no septum) is served on loopback by the app's own server.
MONAI Label's client for 3D Slicer asks for the next sample, an oracle submits the phantom's true boxes on the frames
that the answer names, the app's trainer goes on from the published detector, and AP50 is measured on phantom patients
of another seed. All strategies of one seed begin with the same cines. The reference, ``all``, has every cine of the
pool labelled and trains for ``--all-epochs``, by default as many steps as the rounds together have.

Training and scoring, for which the server starts processes, run in this one through the functions that those processes
run: nothing else differs. Cines are scored for the strategies that read scores, and views named for ``failing_view``
alone. Each (strategy, seed) is kept when it is done; started again, the rest is done. Writes loop.json, loop.md and
loop.png to OUT after every seed.
"""

import argparse
import dataclasses
import json
import logging
import math
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pydicom
import torch

from echo_plugin.anatomy import DETECTED_SEPTA
from echo_plugin.annotations import Annotation
from echo_plugin.durable import write_atomically
from echo_plugin.io.cine_file import read_cine
from echo_plugin.io.markups import boxes_to_markups
from echo_plugin.io.sector import tissue_region
from echo_plugin.io.study_folder import StudyFolder
from echo_plugin.io.volume import rendition_geometry
from echo_plugin.measure.boxes import average_precision, match_detections
from echo_plugin.model_card import load_card
from echo_plugin.models.checkpoint import SEPTAL_DETECTOR, VIEW_CLASSIFIER, build_detector, load_published
from echo_plugin.phantom.study import write_phantom_study_folder
from echo_plugin.training.datasets import detection_frames, open_labelled_folder, prepare_detection, prepare_frames
from echo_plugin.training.detector import detect, true_boxes

REPOSITORY = Path(__file__).resolve().parents[2]
STRATEGIES = ("random", "first", "uncertainty", "diversity", "hybrid", "failing_view")
ALL = "all"
FRAMES_DRAWN = 3
READ_SCORES = ("uncertainty", "diversity", "hybrid", "failing_view")
CINES_PER_VISIT = 20 / 3
UPSIDE_DOWN = "upside_down"
STARTERS = REPOSITORY / "apps" / "echo" / "model"


def make_folders(out: Path, asked: argparse.Namespace) -> SimpleNamespace:
    """Return the folders: ``pool`` and ``held_out`` phantoms, upside down."""
    places = SimpleNamespace(pool=out / "pool", held_out=out / "held_out")
    for root, patients, seed in ((places.pool, asked.visits, 4100), (places.held_out, asked.held_out, 4200)):
        if not (root / UPSIDE_DOWN).is_file():
            write_phantom_study_folder(root, patients=patients, seed=seed, frames=asked.frames)
            for path in sorted(root.glob("*/*.dcm")):
                turn_over(path, root / "annotations")
            (root / UPSIDE_DOWN).touch()
    return places


def turn_over(path: Path, annotations: Path) -> None:
    """Turn the tissue region of a cine and its boxes upside down; what is around it stays."""
    cine = read_cine(path)
    region, pixels = tissue_region(cine), cine.read_frames(range(cine.frame_count)).copy()
    top, bottom = math.floor(region.y1), min(math.ceil(region.y2), cine.height)
    left, right = math.floor(region.x1), min(math.ceil(region.x2), cine.width)
    pixels[:, top:bottom, left:right] = pixels[:, top:bottom, left:right][:, ::-1]
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.PhotometricInterpretation = "RGB" if pixels.shape[-1] == 3 else "MONOCHROME2"
    if pixels.shape[-1] == 3:
        dataset.PlanarConfiguration = 0
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OB"
    dataset.save_as(path)
    label = annotations / f"{cine.image_id}.json"
    said = json.loads(label.read_text())
    for box in said["boxes"]:
        box["y1"], box["y2"] = top + bottom - box["y2"], top + bottom - box["y1"]
    label.write_text(json.dumps(said))


class HeldOut:
    """The held-out frames, prepared once."""

    def __init__(self, root: Path) -> None:
        size = load_published(STARTERS, SEPTAL_DETECTOR)[0].input_size_px
        labelled = open_labelled_folder(root)
        choice = [(cine, frames) for cine in labelled.cines if (frames := detection_frames(cine, FRAMES_DRAWN))]
        self.frames = prepare_frames(labelled, choice, prepare_detection(size), name="held-out", cache_dir=None)
        self.truths = true_boxes(self.frames, torch.arange(len(self.frames.pixels)))

    def ap50(self, models: Path) -> float:
        """Return the published detector's AP50, mean over the septa."""
        card, _ = load_published(models, SEPTAL_DETECTOR)
        detector = self.loaded(models, card)
        found, values = detect(detector, self.frames.pixels), []
        for label in range(len(DETECTED_SEPTA)):
            wanted = [truth.of(label)[0] for truth in self.truths]
            matched = match_detections([answer.of(label) for answer in found], wanted, iou=0.5)
            values.append(average_precision(matched, np.ones((1, len(wanted))))[0])
        return float(np.nanmean(values))

    def loaded(self, models: Path, card) -> torch.nn.Module:
        detector = build_detector(card)
        detector.load_state_dict(load_published(models, SEPTAL_DETECTOR)[1])
        return detector.float()


def keep_pictures() -> None:
    """Prepare the frames that are scored once; the server does so again for every new model, to the same pixels."""
    from echo_plugin.acquisition import uncertainty

    kept, prepare = {}, uncertainty.to_model_input

    def prepared(cine, frame_indices, size_px, **options):
        key = (cine.image_id, tuple(frame_indices), size_px)
        if key not in kept:
            kept[key] = prepare(cine, frame_indices, size_px, **options)
        return kept[key]

    uncertainty.to_model_input = prepared


class Site:
    """One hospital: a copy of the pool without labels, served, with the weak detector published."""

    def __init__(self, folder: Path, places: SimpleNamespace, asked: argparse.Namespace, *, names_views: bool) -> None:
        from monailabel.config import settings
        from monailabel.interfaces.utils.app import app_instance, clear_cache

        self.truth = StudyFolder(places.pool)
        self.studies, self.models, self.asked = folder / "studies", folder / "models", asked
        shutil.copytree(places.pool, self.studies, ignore=shutil.ignore_patterns("annotations", ".echo_*"))
        self.models.mkdir()
        for name in (SEPTAL_DETECTOR, *([VIEW_CLASSIFIER] if names_views else [])):
            for kind in ("safetensors", "json"):
                shutil.copy(STARTERS / f"{name}.{kind}", self.models)
        settings.MONAI_LABEL_APP_DIR = str(REPOSITORY / "apps" / "echo")
        settings.MONAI_LABEL_STUDIES = str(self.studies)
        settings.MONAI_LABEL_APP_CONF = {"models": str(self.models), "device": "cpu", "cache": str(folder / "cache")}
        clear_cache()
        self.app = app_instance()

    def score(self) -> None:
        """Do what the server's scoring process does."""
        from echo_plugin.acquisition.score_folder import score_folder

        score_folder(StudyFolder(self.studies), self.models, self.app.waiting.store, device="cpu")
        self.app.waiting.pool.calibrate_if_due()

    def train(self, seed: int, epochs: int) -> None:
        """Do what the server's training process does."""
        trainer = self.app.trainers["septal_boxes"]
        whole = type(trainer)._options
        trainer._options = lambda request: dataclasses.replace(whole(trainer, request), batch_size=8, device="cpu")
        self.app.train({"model": "septal_boxes", "epochs": epochs, "seed": seed})

    def submit(self, client, image_id: str, frames: list[int]) -> int:
        """Submit the true boxes on ``frames`` as markups, as 3D Slicer does; return how many frames that were."""
        truth = self.truth.annotation(image_id) or Annotation(image_id)
        chosen = sorted(set(frames) & set(truth.annotated_frames))[:FRAMES_DRAWN] or list(truth.annotated_frames[:1])
        boxes = [box for box in truth.boxes if box.frame_index in chosen]
        with tempfile.TemporaryDirectory() as folder:
            label = Path(folder) / "boxes.json"
            label.write_text(boxes_to_markups(boxes, rendition_geometry(self.truth.read_cine(image_id))))
            client.save_label(image_id, str(label), params={"annotated_frames": chosen})
        return len(chosen)


def run(strategy: str, seed: int, site: Site, client, held_out: HeldOut) -> dict:
    """Return the curve of one strategy and one seed: labelled frames and cines, AP50, before and after each round."""
    asked, started = site.asked, time.perf_counter()
    counts, curve, chosen = {"frames": 0, "cines": 0}, [], []
    curve.append({**counts, "ap50": held_out.ap50(site.models)})
    rounds = 1 if strategy == ALL else asked.rounds
    for number in range(rounds):
        if number and strategy in READ_SCORES:
            site.score()
        # every strategy begins with the same cines: nothing is known of the pool's labels yet
        now = "random" if number == 0 or strategy == ALL else strategy
        for step in range(10**6 if strategy == ALL else asked.batch):
            sample = client.next_sample(now, {"client_id": "oracle", "seed": 10_000 * seed + 100 * number + step})
            if "id" not in sample:
                break
            counts["frames"] += site.submit(client, sample["id"], sample.get("frames", []))
            counts["cines"] += 1
            chosen.append(sample["id"])
        site.train(seed, asked.all_epochs if strategy == ALL else asked.epochs)
        curve.append({**counts, "ap50": held_out.ap50(site.models)})
    return {
        "strategy": strategy, "seed": seed, "curve": curve, "chosen": chosen, "pool_cines": len(site.truth.image_ids()),
        "wall_s": round(time.perf_counter() - started, 1),
    }  # fmt: skip


def serve() -> str:
    """Serve the app of the settings on a free port of loopback; return its address."""
    import uvicorn

    from echo_plugin.host.server import app

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="warning"))
    threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


def slicer_client(url: str, folder: Path):
    """Return the client of MONAI Label's module for 3D Slicer."""
    import importlib.util
    import sysconfig

    inside = Path("monailabel/plugins/slicer/MONAILabel/MONAILabelLib/client.py")
    unpacked = sorted(Path(sysconfig.get_path("purelib")).glob("monailabel-*.data/data"))
    path = next(base / inside for base in [*unpacked, Path(sys.prefix)] if (base / inside).is_file())
    spec = importlib.util.spec_from_file_location("monailabel_slicer_client", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.MONAILabelClient(url, str(folder), client_id="oracle")


def summarise(results: list[dict]) -> dict:
    """Return, by strategy, the mean curve with its spread, the area under it, and the labels for 95 % of all."""
    whole = [r["curve"][-1] for r in results if r["strategy"] == ALL]
    full, everything = np.mean([w["ap50"] for w in whole]), np.mean([w["frames"] for w in whole])
    about = {"full_ap50": float(full), "full_frames": float(everything), "strategies": {}}
    for strategy in sorted({r["strategy"] for r in results} - {ALL}):
        runs = [r for r in results if r["strategy"] == strategy]
        frames = np.array([[point["frames"] for point in r["curve"]] for r in runs], dtype=float)
        values = np.array([[point["ap50"] for point in r["curve"]] for r in runs])
        areas = ((values[:, 1:] + values[:, :-1]) / 2 * np.diff(frames, axis=1)).sum(axis=1)
        areas = areas / np.maximum(frames[:, -1] - frames[:, 0], 1)
        enough = values >= 0.95 * full
        reached = [float(row[good][0]) if good.any() else None for row, good in zip(frames, enough, strict=True)]
        about["strategies"][strategy] = {
            "seeds": len(runs), "frames": frames.mean(axis=0).tolist(), "ap50": values.mean(axis=0).tolist(),
            "sd": values.std(axis=0, ddof=min(1, len(runs) - 1)).tolist(),
            "area": float(areas.mean()), "area_sd": float(areas.std(ddof=min(1, len(runs) - 1))),
            "frames_for_95": reached if full > 0 else [None] * len(runs),
            "wall_s": float(np.mean([r["wall_s"] for r in runs])),
        }  # fmt: skip
        against = paired_with_random(results, runs)
        about["strategies"][strategy] |= {"above_random": against.mean(axis=0).tolist()} if len(against) else {}
        if len(against) > 1:
            about["strategies"][strategy]["above_random_error"] = (
                against.std(axis=0, ddof=1) / np.sqrt(len(against))
            ).tolist()
    return about


def paired_with_random(results: list[dict], runs: list[dict]) -> np.ndarray:
    """Return (seeds, points) by how much AP50 is above that of random with the same seed."""
    random = {r["seed"]: r for r in results if r["strategy"] == "random"}
    pairs = [(r, random[r["seed"]]) for r in runs if r["seed"] in random]
    return np.array([[p["ap50"] - q["ap50"] for p, q in zip(a["curve"], b["curve"], strict=True)] for a, b in pairs])


def as_table(about: dict, pool_cines: int) -> str:
    """Return the Markdown table."""
    lines = [
        f"Phantoms. Pool of {pool_cines} cines; all of it labelled ({about['full_frames']:.0f} frames) gives AP50"
        f" {about['full_ap50']:.3f}.",
        "",
        "| strategy | seeds | frames at the end | AP50 at the end | area under the curve | least above random"
        " | frames for 95 % of all | share of the labels | s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for strategy, s in sorted(about["strategies"].items(), key=lambda item: -item[1]["area"]):
        there = [frames for frames in s["frames_for_95"] if frames is not None]
        words = f"{np.mean(there):.0f} ({len(there)} of {s['seeds']} seeds)" if there else "not reached"
        share = f"{np.mean(there) / about['full_frames']:.0%}" if len(there) == s["seeds"] else "–"
        lowest = least_above_random(s)
        lines.append(
            f"| {strategy} | {s['seeds']} | {s['frames'][-1]:.0f} | {s['ap50'][-1]:.3f} ± {s['sd'][-1]:.3f}"
            f" | {s['area']:.3f} ± {s['area_sd']:.3f} | {lowest} | {words} | {share} | {s['wall_s']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def least_above_random(s: dict) -> str:
    """Return the lowest point of the curve against random's, with its standard error over the seeds."""
    if "above_random_error" not in s:
        return "–"
    lowest = int(np.argmin(s["above_random"]))
    return f"{s['above_random'][lowest]:+.3f} ± {s['above_random_error'][lowest]:.3f}"


def draw(about: dict, path: Path) -> None:
    """Draw AP50 against labelled frames with the spread over seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for strategy, s in about["strategies"].items():
        (line,) = axes.plot(s["frames"], s["ap50"], marker="o", label=strategy)
        low, high = np.array(s["ap50"]) - s["sd"], np.array(s["ap50"]) + s["sd"]
        axes.fill_between(s["frames"], low, high, color=line.get_color(), alpha=0.12)
    axes.axhline(about["full_ap50"], color="black", label=f"all {about['full_frames']:.0f} frames")
    axes.axhline(0.95 * about["full_ap50"], color="black", linestyle=":", label="95 % of it")
    axes.set(xlabel="labelled frames", ylabel="AP50 on held-out phantoms")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> int:
    """Run what is not there yet, and write the figures of what is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--strategies", default=",".join(STRATEGIES), type=lambda text: text.split(","))
    parser.add_argument("--all-epochs", type=int, help="default: as many steps as all rounds together")
    for name, number in {
        "visits": 7, "rounds": 4, "batch": 4, "seeds": 5, "epochs": 8, "frames": 3, "held-out": 9, "threads": 1,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=number)
    asked = parser.parse_args()
    logging.basicConfig(level="WARNING")
    torch.set_num_threads(asked.threads)
    if asked.all_epochs is None:  # round r learns from r batches
        steps = asked.epochs * asked.batch * asked.rounds * (asked.rounds + 1) / 2
        asked.all_epochs = math.ceil(steps / (asked.visits * CINES_PER_VISIT))
    out = asked.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    places = make_folders(out, asked)
    keep_pictures()
    held_out = HeldOut(places.held_out)
    settings = {k: str(v) for k, v in vars(asked).items() if k not in ("out", "seeds", "strategies", "threads")}
    settings |= {name: load_card(STARTERS, name).sha256 for name in (SEPTAL_DETECTOR, VIEW_CLASSIFIER)}
    client = None
    results = []
    for seed in range(asked.seeds):
        for strategy in [ALL, *asked.strategies]:
            kept = out / "runs" / f"{strategy}-{seed}.json"
            kept.parent.mkdir(exist_ok=True)
            if kept.is_file() and (done := json.loads(kept.read_text()))["settings"] == settings:
                results.append(done)
                continue
            with tempfile.TemporaryDirectory(dir=out) as folder:
                site = Site(Path(folder), places, asked, names_views=strategy == "failing_view")
                client = client or slicer_client(serve(), out)
                results.append({**run(strategy, seed, site, client, held_out), "settings": settings})
            write_atomically(kept, json.dumps(results[-1], indent=1).encode())
            last = results[-1]["curve"][-1]
            print(f"{strategy} seed {seed}: AP50 {last['ap50']:.3f} with {last['frames']} frames", flush=True)
        table = write_figures(out, settings, results)
    print(table)
    return 0


def write_figures(out: Path, settings: dict, results: list[dict]) -> str:
    """Write what was measured so far; return the table."""
    about = summarise(results)
    (out / "loop.json").write_text(json.dumps({"settings": settings, **about, "runs": results}, indent=1))
    table = as_table(about, results[0]["pool_cines"])
    (out / "loop.md").write_text(table)
    draw(about, out / "loop.png")
    return table


if __name__ == "__main__":
    from results_page import printed_page

    with printed_page("What a choice of the next cine is worth"):
        sys.exit(main())
