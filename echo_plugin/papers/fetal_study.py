# SPDX-License-Identifier: Apache-2.0
"""A labelled study folder of first-trimester stills: every view of ``anatomy.FETAL_5``, by patient.

    OUT/phantom.json                     the arguments
    OUT/phantom.csv                      one row per still, written last; ``focus`` is the square round the heart, px
    OUT/patients.csv                     who is on which picture
    OUT/FETAL-<seed>-0001/IM_0001.png    stills in random order under neutral names
    OUT/annotations/<image id>.json      the view

The same arguments give the same bytes, and the first ten patients of a hundred are the ten of ten.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from datetime import UTC, datetime, time
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from echo_plugin import __version__
from echo_plugin.anatomy import FETAL_5, View
from echo_plugin.annotations import Annotation
from echo_plugin.cine import escape_path
from echo_plugin.durable import make_directory, write_atomically
from echo_plugin.io.annotation_store import annotation_to_json
from echo_plugin.io.patients_file import PATIENTS_FILE, write_patients
from echo_plugin.io.study_index import ANNOTATIONS_DIRECTORY
from echo_plugin.papers.fetal_heart import FetalStill, draw_fetal_still, sample_fetal_patient
from echo_plugin.phantom.contact_sheet import SheetRow, draw_contact_sheet
from echo_plugin.phantom.heart import STUDY_DATE
from echo_plugin.phantom.study import begin_or_continue
from echo_plugin.progress import Progress

_COLUMNS = ("file", "image_id", "patient_id", "view", "height", "width", "focus")
_STREAM = 0xFE7A1
"""Keeps these random numbers apart from those of the children."""


def write_fetal_study_folder(
    out: Path, *, patients: int, seed: int, stills: int, progress: Progress | None = None
) -> int:
    """Write the study folder ``out`` and return how many pictures it holds; ``stills`` of each view per patient.

    Raises
    ------
    ValueError
        If an argument is out of range, or ``out`` is not empty and was not made with the same arguments.
    """
    if patients < 1 or stills < 1 or seed < 0:
        msg = f"Fetal phantoms of {patients} patients with {stills} stills of a view, seed {seed}; from 1, 1 and 0."
        raise ValueError(msg)
    arguments = {"kind": "fetal", "version": __version__, "patients": patients, "seed": seed, "frames": stills}
    begin_or_continue(out, arguments)
    if (out / "phantom.csv").exists():
        return patients * stills * len(FETAL_5)
    make_directory(out / ANNOTATIONS_DIRECTORY)
    rows = []
    for index in range(patients):
        patient_id = f"FETAL-{seed}-{index + 1:04d}"
        make_directory(out / patient_id)
        for number, still in enumerate(draw_patient(seed, index, stills), start=1):
            rows.append(_write_still(out, patient_id, number, still))
        if progress:
            progress(index + 1, patients, patient_id)
    write_patients(out / PATIENTS_FILE, [(row["image_id"], row["patient_id"], None) for row in rows])
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, fieldnames=_COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_atomically(out / "phantom.csv", text.getvalue().encode())
    return len(rows)


def draw_patient(seed: int, index: int, stills: int) -> Iterator[FetalStill]:
    """Yield the stills of one fetus, ``stills`` of each view in random order."""
    rng = np.random.default_rng([_STREAM, seed, index])
    patient = sample_fetal_patient(rng)
    for place in rng.permutation(stills * len(FETAL_5)):
        yield draw_fetal_still(patient, FETAL_5[place % len(FETAL_5)], rng)


def write_fetal_sheet(study: Path, png: Path, *, columns: int = 6) -> None:
    """Write a PNG with a row of stills for each view of a fetal study folder, each of another patient where it can."""
    with (study / "phantom.csv").open(encoding="utf-8", newline="") as table:
        facts = list(csv.DictReader(table))
    rows = []
    for view in FETAL_5:
        of_view = [row for row in facts if row["view"] == view.value]
        chosen = [of_view[i] for i in np.unique(np.linspace(0, len(of_view) - 1, columns).astype(int))]
        pictures = tuple(np.asarray(Image.open(study / row["file"])) for row in chosen)
        captions = tuple(row["file"] for row in chosen)
        rows.append(SheetRow(view.value, pictures, ((),) * len(chosen), captions))
    png.parent.mkdir(parents=True, exist_ok=True)
    draw_contact_sheet(rows).save(png)


def _write_still(out: Path, patient_id: str, number: int, still: FetalStill) -> dict[str, str]:
    """Write picture and label, unless a person has corrected the label; return the row of the table."""
    relative = f"{patient_id}/IM_{number:04d}.png"
    image_id = escape_path(PurePosixPath(relative))
    png = io.BytesIO()
    Image.fromarray(still.pixels).save(png, "PNG")
    write_atomically(out / relative, png.getvalue())
    label = out / ANNOTATIONS_DIRECTORY / f"{image_id}.json"
    if not label.exists():
        write_atomically(label, annotation_to_json(_label(image_id, still.view)).encode())
    H, W, _ = still.pixels.shape
    focus = ";".join(str(corner) for corner in still.focus)
    values = (relative, image_id, patient_id, still.view.value, str(H), str(W), focus)
    return dict(zip(_COLUMNS, values, strict=True))


def _label(image_id: str, view: View) -> Annotation:
    saved_at = datetime.combine(STUDY_DATE, time(18, 0), tzinfo=UTC)
    return Annotation(image_id, view=view, author="phantom", saved_at=saved_at, revision=1)
