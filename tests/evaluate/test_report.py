# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json

import numpy as np
from matplotlib.figure import Figure

from echo_plugin.anatomy import DEFECTS, Defect, Septum
from echo_plugin.annotations import DefectPrediction, SeptalBox
from echo_plugin.cine import Cine, FramesInMemory, UltrasoundRegion
from echo_plugin.evaluate.report import describe_machine, embedded_picture, render_markdown, write_report
from echo_plugin.model_card import Metric


def test_text_beside_the_tissue_is_in_no_picture_of_what_was_embedded() -> None:
    pixels = np.full((1, 100, 100, 1), 255, dtype=np.uint8)  # a name may be burned in anywhere
    pixels[0, 20:60, 30:90] = 90
    cine = Cine("cine", FramesInMemory(pixels), regions=(UltrasoundRegion(30, 20, 90, 60),))
    crop = SeptalBox(0, 20.0, 10.0, 70.0, 60.0, Septum.INTERATRIAL, 0.9)
    share, angles = dict.fromkeys(DEFECTS, 1 / len(DEFECTS)), dict.fromkeys(DEFECTS, 60.0)

    picture = embedded_picture(cine, DefectPrediction(Defect.ASD, share, angles, (0,), (crop,)), 50)

    assert picture.max() == 90
    assert picture[:10].max() == picture[:, :10].max() == 0


REPORT = {
    "task": "detector",
    "model": {"name": "septal_detector", "version": "3", "trained_on": "phantoms only", "sha256": ""},
    "on_phantoms": True,
    "split": "phantoms that were not learned from",
    "patients": 12,
    "patients_left_out": 4,
    "cines": 30,
    "seed": 2,
    "command": "monailabel-echo evaluate detector --studies held_out --models DIR --out DIR --seed 2",
    "metrics": {
        "AP50": dataclasses.asdict(Metric(0.9, 0.8, 0.95, patients=12, split="test", baseline=0.25)),
        "frames": dataclasses.asdict(Metric(0.5, None, None, patients=12, split="test")),
    },
    "tables": [
        {"title": "By view", "note": "", "columns": ["group", "AP50"], "rows": [["A|4C", "0.9 [0.8, 1.0]"]]},
        {"title": "By age", "note": "Not known.", "columns": ["group"], "rows": []},
    ],
}


def test_a_page_for_the_manual_has_every_figure_with_what_it_is_worth(tmp_path) -> None:
    report = write_report(tmp_path, REPORT, {"FROC": Figure()}, title="Septal boxes")

    page = render_markdown(json.loads((tmp_path / "report.json").read_text()))

    assert page.startswith("# Septal boxes\n") and page.endswith("\n") and "Results on phantoms" in page
    assert f"| date | {report['date']} |" in page and f"| machine | {describe_machine()} |" in page
    assert f"| command | {REPORT['command']} |" in page
    assert "12 patients, 30 cines: phantoms that were not learned from (4 patients" in page
    assert "seed 2" in page
    assert "| AP50 | 0.900 | 0.800 to 0.950 | 0.250 | 12 |" in page
    assert "| frames | 0.500 | – | – | 12 |" in page
    assert "| A\\|4C | 0.9 [0.8, 1.0] |" in page
    assert page.endswith("## By age\n\nNot known.\n")
    html = (tmp_path / "report.html").read_text()
    assert "0.800 to 0.950" in html and REPORT["command"] in html and "data:image/png" in html


def test_a_machine_is_told_with_its_cores() -> None:
    assert " core" in describe_machine()
