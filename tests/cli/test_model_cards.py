# SPDX-License-Identifier: Apache-2.0
"""Cards as pages, and pages of measured figures: what the documentation shows of models."""

import dataclasses
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from echo_plugin.cli.pages import render_card, write_model_cards, write_results_page
from echo_plugin.model_card import STARTERS, Metric, ModelCard, Training, TrainingCohort, card_to_json, load_card
from echo_plugin.network_config import DetectorConfig
from tests.script import ROOT

CARD = ModelCard(
    name="septal_detector",
    version="3",
    task="detection",
    architecture="RetinaNet",
    classes=("interatrial", "interventricular"),
    network=DetectorConfig(input_size_px=192),
    cohort=TrainingCohort("phantoms only", 20, 90, "a" * 64, {"train": 14, "validation": 3, "test": 3}),
    metrics={
        "AP50": Metric(0.9, 0.8, 0.95, 3, "test patients", baseline=0.01),
        "AP50 interatrial": Metric(0.85, None, None, 3, "test patients"),
        "recall interatrial (patients)": Metric(0.7, 0.6, 0.8, 3, "test patients"),
    },
    training=Training(command="monailabel-echo train detector --studies a --models b"),
    limits="Trained on phantoms only.",
)


def test_the_shipped_pages_are_what_the_cards_render() -> None:
    for path in sorted(STARTERS.glob("*.json")):
        page = path.with_suffix(".md").read_text(encoding="utf-8")
        assert page == render_card(load_card(STARTERS, path.stem)), "`monailabel-echo info --markdown` writes it anew"


def test_a_page_says_task_data_split_figures_baselines_limits_and_licence() -> None:
    page = render_card(CARD)

    for words in (
        "# septal_detector 3",
        "not for clinical use",
        "| task | detection |",
        "| trained on | phantoms only |",
        "20 patients, 90 cines",
        "14 train, 3 validation, 3 test",
        "`monailabel-echo train detector --studies a --models b`",
        "| licence | Apache-2.0 |",
        "Trained on phantoms only.",
        "| AP50 | 0.900 | 0.800 to 0.950 | 0.010 | 3 | test patients |",
    ):
        assert words in page


def test_figures_of_a_class_stand_apart_and_those_of_patients_too() -> None:
    _, of_patients, of_cines = re.split(r"## By class", render_card(CARD))

    assert "| interatrial | recall | 0.700 | 0.600 to 0.800 | – |" in of_patients
    assert "| interatrial | AP50 | 0.850 | – | – |" in of_cines


def test_a_model_that_nobody_was_left_to_measure_says_so() -> None:
    assert "Nobody was left to measure" in render_card(dataclasses.replace(CARD, metrics={}))


def test_a_page_is_written_beside_each_card(tmp_path: Path) -> None:
    (tmp_path / "septal_detector.json").write_text(card_to_json(CARD))

    assert write_model_cards(tmp_path) == [tmp_path / "septal_detector.md"]
    assert (tmp_path / "septal_detector.md").read_text() == render_card(CARD)


def test_a_page_of_results_says_how_it_was_made(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["monailabel-echo", "reproduce", "views", "a folder"])

    write_results_page(tmp_path / "results" / "page.md", "Views", "| accuracy |\n|---|\n| 0.9 |")

    page = (tmp_path / "results" / "page.md").read_text()
    assert page.startswith("# Views\n")
    assert "| command | `monailabel-echo reproduce views 'a folder'` |" in page
    assert f"| date | {datetime.now(UTC).date()} |" in page
    assert re.search(r"\| machine \| .*\d+ cores? \|", page)
    assert page.endswith("| 0.9 |\n")


@pytest.mark.heavy
def test_a_benchmark_keeps_what_it_prints_as_a_page(tmp_path: Path) -> None:
    benchmark = ROOT / "tests" / "benchmarks" / "search_gallery.py"
    command = [sys.executable, benchmark, "--cases", "200", "--markdown", tmp_path / "search.md"]

    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout

    page = (tmp_path / "search.md").read_text()
    assert "python tests/benchmarks/search_gallery.py --cases 200" in page
    assert f"```\n{printed.strip()}\n```" in page
