# SPDX-License-Identifier: Apache-2.0
"""The study folder that comes with the checkout is small, valid and what its page says."""

import csv
from pathlib import Path

import pytest

from echo_plugin.anatomy import DEFECTS, Septum
from echo_plugin.io.annotation_store import annotation_from_json
from echo_plugin.io.cine_file import read_cine

SAMPLES = Path(__file__).parents[2] / "sample_studies"


@pytest.fixture(scope="module")
def rows():
    with (SAMPLES / "phantom.csv").open(encoding="utf-8", newline="") as table:
        return list(csv.DictReader(table))


def test_the_samples_are_small():
    assert sum(path.stat().st_size for path in SAMPLES.rglob("*") if path.is_file()) < 6e6


def test_every_sample_can_be_read_and_belongs_to_a_row(rows):
    files = sorted(path.relative_to(SAMPLES).as_posix() for path in SAMPLES.rglob("*.dcm"))

    assert files == sorted(row["file"] for row in rows)
    for row in rows:
        cine = read_cine(SAMPLES / row["file"])
        assert (cine.image_id, cine.patient_id) == (row["image_id"], row["patient_id"])
        assert cine.frame_count == int(row["frames"]) >= 24


def test_every_defect_is_labelled_and_some_cines_are_not(rows):
    labels = {path.stem: annotation_from_json(path.read_text()) for path in SAMPLES.glob("annotations/*.json")}

    assert {label.defect for label in labels.values()} == set(DEFECTS)
    assert {box.septum for label in labels.values() for box in label.boxes} == {
        Septum.INTERATRIAL,
        Septum.INTERVENTRICULAR,
    }
    assert 2 <= len({row["image_id"] for row in rows} - set(labels)) < len(rows) / 2
    assert set(labels) <= {row["image_id"] for row in rows}
