# SPDX-License-Identifier: Apache-2.0
"""A labelled study folder of synthetic children: DICOM cines, annotations and a table of how each came to be.

    OUT/phantom.json                     the arguments; marks the folder as this module's own
    OUT/phantom.csv                      one row per cine, written last
    OUT/PHANTOM-<seed>-0001/IM_0001.dcm  cines in random order under neutral names
    OUT/annotations/<SOP UID>.json       true boxes on every frame, view, defect and size

The same arguments give the same bytes, however many processes share the work. Every file appears whole or not at all,
and a run that was interrupted is completed by running it again.

The mark of a folder of phantoms: what it was made with, so that nothing else is ever written into it.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

from echo_plugin import __version__
from echo_plugin.anatomy import DEFECTS, Defect, View
from echo_plugin.durable import make_directory, remove_abandoned, write_atomically
from echo_plugin.io.annotation_store import annotation_from_json
from echo_plugin.io.study_index import ANNOTATIONS_DIRECTORY
from echo_plugin.phantom.dicom_writer import Encoding
from echo_plugin.phantom.study_patient import FIXED_COLUMNS, PatientPlan, cine_count, image_patient
from echo_plugin.progress import Progress

_MARKER = "phantom.json"


def claim_folder(out: Path, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that ``out`` was made with; a new or empty folder is marked with ``arguments``.

    Raises
    ------
    ValueError
        If ``out`` holds something that is not of the phantom.
    """
    marker = out / _MARKER
    if marker.exists():
        found: dict[str, Any] = json.loads(marker.read_text(encoding="utf-8"))
        return found
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        msg = f"{out} is not empty and was not made by the phantom; an empty or new folder is accepted."
        raise ValueError(msg)
    make_directory(out)
    write_atomically(marker, (json.dumps(arguments, indent=1) + "\n").encode())
    return dict(arguments)


DEFAULT_ENCODINGS: Mapping[Encoding, float] = {
    Encoding.JPEG_COLOUR: 0.80,
    Encoding.JPEG_GREY: 0.06,
    Encoding.RLE_COLOUR: 0.04,
    Encoding.RAW_COLOUR: 0.03,
    Encoding.RAW_GREY: 0.03,
    Encoding.JPEG_2000: 0.04,
}
"""How often a machine stores each way; one machine always stores the same way."""

_TABLE = "phantom.csv"
_ROWS = ".phantom_rows"


@dataclass(frozen=True)
class PhantomStudySummary:
    """What a phantom study folder holds: counts of ``patients``, ``cines``, of cines by view, patients by defect."""

    folder: Path
    patients: int
    cines: int
    cines_by_view: Mapping[View, int]
    patients_by_defect: Mapping[Defect, int]


def write_phantom_study_folder(
    out: Path,
    *,
    patients: int,
    seed: int,
    views: Sequence[View] | None = None,
    frames: int = 32,
    jobs: int = 1,
    progress: Progress | None = None,
    defects: Sequence[Defect] = DEFECTS,
    encodings: Mapping[Encoding, float] = DEFAULT_ENCODINGS,
) -> PhantomStudySummary:
    """Write, or complete, the study folder ``out`` and return what it holds.

    Parameters
    ----------
    views : each patient gets one cine of each; None: A4C, SC-4C and four or five of the other paediatric views, so
        that three patients in a row have all of them.
    defects : each run of so many patients has these, in random order.
    encodings : weights of the ways to store pixels, drawn once per patient.
    jobs : processes side by side; the result does not depend on it.

    Raises
    ------
    ValueError
        If an argument is out of range, or ``out`` holds something else or phantoms of other arguments.
    """
    plan = PatientPlan(
        out=out,
        seed=seed,
        views=None if views is None else tuple(views),
        frames=frames,
        defects=tuple(defects),
        encodings=tuple((encoding, float(weight)) for encoding, weight in encodings.items()),
    )
    if patients < 1 or jobs < 1:
        msg = f"Phantom study of {patients} patients with {jobs} jobs; at least one of each is accepted."
        raise ValueError(msg)
    _claim(out, plan, patients)
    if not (out / _TABLE).exists():
        _image_missing_patients(plan, patients, jobs, progress or (lambda done, total, note: None))
        _write_table(out, [row for index in range(patients) for row in _read_rows(plan, index)])
    return summarise_phantom_study(out)


def summarise_phantom_study(folder: Path) -> PhantomStudySummary:
    """Return the counts of a finished phantom study folder from its table."""
    with (folder / _TABLE).open(encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    defect_of_patient = {row["patient_id"]: Defect(row["defect"]) for row in rows}
    return PhantomStudySummary(
        folder=folder,
        patients=len(defect_of_patient),
        cines=len(rows),
        cines_by_view=dict(Counter(View(row["view"]) for row in rows)),
        patients_by_defect=dict(Counter(defect_of_patient.values())),
    )


def _claim(out: Path, plan: PatientPlan, patients: int) -> None:
    """Mark ``out`` as the folder of these arguments, or refuse it."""
    arguments = {
        "made_by": "monailabel-echo phantom",
        "version": __version__,
        "patients": patients,
        "seed": plan.seed,
        "views": None if plan.views is None else [view.value for view in plan.views],
        "frames": plan.frames,
        "defects": [defect.value for defect in plan.defects],
        "encodings": {encoding.value: weight for encoding, weight in plan.encodings},
    }
    found = claim_folder(out, arguments)
    other = sorted(key for key in arguments if found.get(key) != arguments[key])
    if other:
        was = ", ".join(f"{key} {found.get(key)!r}" for key in other)
        msg = f"{out} holds phantoms made with {was}; repeat those arguments or name another folder."
        raise ValueError(msg)


def _rows_file(plan: PatientPlan, index: int) -> Path:
    return plan.out / _ROWS / f"{plan.patient_id(index)}.json"


def _read_rows(plan: PatientPlan, index: int) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = json.loads(_rows_file(plan, index).read_text(encoding="utf-8"))
    return rows


def _image_patient(plan: PatientPlan, index: int) -> int:
    """Write one patient's files, last of all the rows that say it is complete; return the patient's index."""
    rows = []
    rows_file, folder = _rows_file(plan, index), plan.out / plan.patient_id(index)
    for directory in (folder, plan.out / ANNOTATIONS_DIRECTORY, rows_file.parent):
        make_directory(directory)
    remove_abandoned(folder)  # of a run that was killed; nobody else writes here
    for file in image_patient(plan, index):
        write_atomically(file.dicom_path, file.dicom)
        if not _is_corrected(file.annotation_path):
            write_atomically(file.annotation_path, file.annotation)
        rows.append(file.row)
    write_atomically(rows_file, (json.dumps(rows) + "\n").encode())
    return index


def _is_corrected(annotation_path: Path) -> bool:
    """Whether a person has saved a later annotation than the phantom's first revision."""
    if not annotation_path.exists():
        return False
    return annotation_from_json(annotation_path.read_text(encoding="utf-8"), source=annotation_path.name).revision > 1


def _image_missing_patients(plan: PatientPlan, patients: int, jobs: int, report: Progress) -> None:
    missing = [index for index in range(patients) if not _rows_file(plan, index).exists()]
    total = sum(cine_count(plan, index) for index in range(patients))
    done = total - sum(cine_count(plan, index) for index in missing)
    report(done, total, "")
    for index in _each_finished(plan, missing, jobs):
        done += cine_count(plan, index)
        report(done, total, plan.patient_id(index))


def _each_finished(plan: PatientPlan, indices: list[int], jobs: int) -> Iterator[int]:
    """Image the patients, yielding the index of each as it is done."""
    if jobs == 1 or len(indices) <= 1:
        for index in indices:
            yield _image_patient(plan, index)
        return
    # spawn: a fork of a process that runs threads (torch, a server) may hang
    executor = ProcessPoolExecutor(
        min(jobs, len(indices)), mp_context=get_context("spawn"), initializer=_end_with_the_parent
    )
    try:
        for future in as_completed([executor.submit(_image_patient, plan, index) for index in indices]):
            yield future.result()
    finally:
        executor.shutdown(cancel_futures=True)


def _end_with_the_parent() -> None:
    """Let this worker end when the command that started it is killed: nobody would collect what it makes."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def _write_table(out: Path, rows: list[dict[str, str]]) -> None:
    """Write phantom.csv and remove the rows it was made from."""
    facts = sorted({key for row in rows for key in row} - set(FIXED_COLUMNS))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=[*FIXED_COLUMNS, *facts], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(out / _TABLE, text.getvalue().encode())
    for leftover in (out / _ROWS).iterdir():
        leftover.unlink()
    (out / _ROWS).rmdir()
