# SPDX-License-Identifier: Apache-2.0
"""What ``predict`` says of the sample studies and of three made cines, kept: no rearrangement may change an answer.

In float32, the one format that every processor has. `python tests/golden/test_predict.py` writes the file anew.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from echo_plugin.answer.predict import EchoPipeline
from echo_plugin.answer.runtime import Runtime
from echo_plugin.cine import Cine, FramesInMemory, UltrasoundRegion
from echo_plugin.io.cine_file import read_cine

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).resolve().parents[2]
KEPT = Path(__file__).with_name("predict.json")
FRAMES = (0, 7, 14, 21)
TOLERANCE = 1e-4


def made_cines() -> list[Cine]:
    """A beating wall between two cavities, grey, twice as high as wide, and a still in colour with a region."""
    rng = np.random.default_rng(11)
    rows, columns = np.mgrid[:240, :320]
    frames = []
    for frame_index in range(24):
        beat = 1 + 0.1 * np.sin(2 * np.pi * frame_index / 12)
        sector = (np.abs(np.arctan2(columns - 160, rows + 1)) < 0.7) & (np.hypot(columns - 160, rows) < 235)
        wall = np.abs(columns - 160) < 9
        cavity = (((np.abs(columns - 160) - 48) / 34) ** 2 + ((rows - 120) / (70 * beat)) ** 2) < 1
        echo = np.where(cavity, 12, 70) + np.where(wall, 110, 0)
        frames.append(np.where(sector, np.clip(echo * rng.gamma(4, 0.25, rows.shape), 0, 255), 0))
    grey = np.asarray(frames).astype(np.uint8)[..., None]
    tall = np.repeat(grey[:, :, 60:260], 2, axis=1)
    colour = np.repeat(grey[:1], 3, axis=3)
    colour[0, 100:140, 165:185] = (200, 40, 20)
    times_ms = np.arange(24) * 40.0
    region = UltrasoundRegion(20, 0, 300, 238, 0.5, 0.5)
    return [
        Cine("made-grey", FramesInMemory(grey), times_ms),
        Cine("made-tall", FramesInMemory(tall), times_ms),
        Cine("made-colour", FramesInMemory(colour), regions=(region,)),
    ]


def answers() -> list[dict[str, Any]]:
    pipeline = EchoPipeline(ROOT / "apps" / "echo" / "model", device="cpu")
    exact = Runtime(torch.device("cpu"), torch.float32)
    for network in (pipeline, pipeline._detector, pipeline._embedder, pipeline._views):
        for name, value in vars(network).items():
            if isinstance(value, Runtime):
                setattr(network, name, exact)
    files = sorted((ROOT / "sample_studies").rglob("*.dcm"))
    said = []
    for cine, path in [*((read_cine(file), file.name) for file in files), *((c, c.image_id) for c in made_cines())]:
        shown = [frame_index for frame_index in FRAMES if frame_index < cine.frame_count]
        entry = pipeline.predict(cine, frame_indices=shown).to_json(cine, path)
        entry.pop("timings_ms")
        for model in entry["models"].values():
            model.pop("trained_on")
        said.append(entry)
    return said


def assert_same(said: Any, kept: Any, place: str) -> None:
    if isinstance(kept, dict):
        assert list(said) == list(kept), place
        for key in kept:
            assert_same(said[key], kept[key], f"{place}.{key}")
    elif isinstance(kept, list):
        assert len(said) == len(kept), place
        for number, (one, other) in enumerate(zip(said, kept, strict=True)):
            assert_same(one, other, f"{place}[{number}]")
    elif isinstance(kept, float):
        assert said == pytest.approx(kept, rel=TOLERANCE, abs=TOLERANCE), place
    else:
        assert said == kept, place


def test_every_answer_is_the_one_that_was_kept() -> None:
    said = json.loads(json.dumps(answers()))

    assert_same(said, json.loads(KEPT.read_text(encoding="utf-8")), "predict")


if __name__ == "__main__":
    KEPT.write_text(json.dumps(answers(), indent=1) + "\n", encoding="utf-8")
