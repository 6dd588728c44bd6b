# SPDX-License-Identifier: Apache-2.0
"""`info` tells what is installed without loading it."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

from echo_plugin.cli.main import describe_installation, format_installation
from echo_plugin.model_card import Metric, ModelCard, TrainingCohort
from echo_plugin.network_config import DetectorConfig

CARD = ModelCard(
    name="septal_detector",
    version="3",
    task="boxes",
    architecture="RetinaNet",
    classes=("interatrial", "interventricular"),
    network=DetectorConfig(input_size_px=256),
    cohort=TrainingCohort("phantoms only", patients=3, cines=9, digest="0"),
    metrics={"ap50": Metric(0.9, 0.8, 0.95, patients=12, split="test")},
)


def test_published_models_are_listed_with_their_figures(tmp_path: Path) -> None:
    (tmp_path / "septal_detector.json").write_text(json.dumps(dataclasses.asdict(CARD)))

    text = format_installation(describe_installation(tmp_path))

    assert "septal_detector 3 (RetinaNet): trained on phantoms only" in text
    assert "ap50 0.900 [0.800, 0.950], 12 patients, test" in text


def test_an_empty_folder_says_how_to_train(tmp_path: Path) -> None:
    text = format_installation(describe_installation(tmp_path))

    assert "none published; train one with" in text


def test_a_damaged_card_is_named_and_the_others_are_shown(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "septal_detector.json").write_text(json.dumps(dataclasses.asdict(CARD)))

    text = format_installation(describe_installation(tmp_path))

    assert "Card bad.json cannot be read" in text
    assert "septal_detector 3" in text


def test_info_loads_neither_torch_nor_numpy_nor_monai() -> None:
    code = (
        "import sys; from pathlib import Path; from echo_plugin.cli.main import describe_installation;"
        "describe_installation(Path('.'));"
        "print([m for m in ('torch', 'numpy', 'monai', 'pydicom') if m in sys.modules])"
    )

    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert loaded.strip() == "[]"
