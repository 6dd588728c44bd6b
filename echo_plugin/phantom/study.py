# SPDX-License-Identifier: Apache-2.0
"""A labelled study folder of synthetic children: DICOM cines, annotations and a table of how each came to be.

    OUT/phantom.json                     the arguments
    OUT/phantom.csv                      one row per cine, written last
    OUT/PHANTOM-<seed>-0001/IM_0001.dcm  cines in random order under neutral names
    OUT/annotations/<SOP UID>.json       true boxes on every frame, view, defect and size

Everything follows from the seed and the patient's index: the same arguments give the same bytes, however many processes
share the work, and the first ten of a hundred patients are the ten of ten. Every file appears whole or not at all, and
a run that was interrupted is completed by running it again.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import UTC, datetime, time
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
from pydicom.uid import generate_uid

from echo_plugin import __version__
from echo_plugin.anatomy import DEFECTS, PAEDIATRIC, Defect, Septum, View
from echo_plugin.annotations import Annotation, SeptalBox
from echo_plugin.durable import make_directory, remove_abandoned, write_atomically
from echo_plugin.io.annotation_store import annotation_to_json
from echo_plugin.io.study_index import ANNOTATIONS_DIRECTORY
from echo_plugin.phantom.bmode import PhantomCine, acquire_cine
from echo_plugin.phantom.dicom_writer import Encoding, InstanceIdentity, write_dicom_cine
from echo_plugin.phantom.heart import STUDY_DATE, sample_heart, sample_patient
from echo_plugin.phantom.screen import draw_overlay, sample_machine
from echo_plugin.progress import Progress

DEFAULT_ENCODINGS: Mapping[Encoding, float] = {
    Encoding.JPEG_COLOUR: 0.80,
    Encoding.JPEG_GREY: 0.06,
    Encoding.RLE_COLOUR: 0.04,
    Encoding.RAW_COLOUR: 0.03,
    Encoding.RAW_GREY: 0.03,
    Encoding.JPEG_2000: 0.04,
}
"""How often a machine stores each way; one machine always stores the same way."""

ALWAYS_RECORDED = (View.A4C, View.SUBCOSTAL_4C)
"""The views of every visit: those that show both septa."""
_OTHERS = tuple(view for view in PAEDIATRIC if view not in ALWAYS_RECORDED)
_PATIENTS_PER_DECK = 3
"""So many visits in a row show every paediatric view once."""

FIXED_COLUMNS = (
    "file",
    "image_id",
    "patient_id",
    "view",
    "defect",
    "defect_size_mm",
    "age_days",
    "sex",
    "heart_rate_bpm",
    "frames",
    "frame_time_ms",
    "height",
    "width",
    "mm_per_px_x",
    "mm_per_px_y",
    "encoding",
    "machine",
    "interatrial_boxes",
    "interventricular_boxes",
    "phases",
)
"""The first columns of phantom.csv; the facts of the imaging follow. ``phases`` : one per frame, joined by ';'."""

_ARGUMENTS, _TABLE, _ROWS = "phantom.json", "phantom.csv", ".phantom_rows"

# First numbers of the keys of StudyPlan.generator; after (_PATIENT, index) what is drawn once per patient, and cine n
# at _CINE + n.
_PATIENT, _VIEW_DECK, _DEFECT_DECK = 0, 1, 2
_HEART, _PERSON, _MACHINE, _ORDER, _CINE = 0, 1, 2, 3, 16


@dataclass(frozen=True)
class StudyPlan:
    """What all patients of a study folder have in common."""

    out: Path
    seed: int
    views: tuple[View, ...] | None
    frames: int
    defects: tuple[Defect, ...]
    encodings: tuple[tuple[Encoding, float], ...]

    def __post_init__(self) -> None:
        if self.seed < 0 or self.frames < 1:
            msg = f"Phantom study with seed {self.seed} and {self.frames} frames; a seed from 0 and frames from 1."
            raise ValueError(msg)
        if not self.defects or (self.views is not None and not self.views):
            msg = "Phantom study without a view or a defect to draw; at least one of each is accepted."
            raise ValueError(msg)
        weights = [weight for _, weight in self.encodings]
        if not weights or min(weights) < 0 or sum(weights) <= 0:
            msg = f"Phantom study with encoding weights {weights}; weights from 0, not all 0, are accepted."
            raise ValueError(msg)

    def patient_id(self, index: int) -> str:
        """Return the (0010,0020) *Patient ID* of the 0-based patient."""
        return f"PHANTOM-{self.seed}-{index + 1:04d}"

    def generator(self, *key: int) -> np.random.Generator:
        """Return the random numbers that belong to ``key``, independent of those of every other key."""
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key))

    def rows_file(self, index: int) -> Path:
        """Return where the table rows of the 0-based patient are kept, once it is complete."""
        return self.out / _ROWS / f"{self.patient_id(index)}.json"


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
) -> int:
    """Write, or complete, the study folder ``out`` and return how many cines it holds.

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
        If an argument is out of range, or ``out`` is not empty and was not made with the same arguments.
    """
    plan = StudyPlan(
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
    begin_or_continue(out, arguments)
    if not (out / _TABLE).exists():
        _image_missing_patients(plan, patients, jobs, progress or (lambda done, total, note: None))
        _write_table(plan, patients)
    return sum(len(patient_views(plan, index)) for index in range(patients))


def begin_or_continue(out: Path, arguments: Mapping[str, Any]) -> None:
    """Note in a new or empty folder what it is made with; one that was made with the same may be gone on with.

    Raises
    ------
    ValueError
        If ``out`` holds anything else.
    """
    record, text = out / _ARGUMENTS, json.dumps(arguments, indent=1) + "\n"
    if record.is_file() and record.read_text(encoding="utf-8") == text:
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        msg = f"{out} is not empty and was not made by the phantom with these arguments; a new folder is accepted."
        raise ValueError(msg)
    make_directory(out)
    write_atomically(record, text.encode())


def patient_defect(plan: StudyPlan, index: int) -> Defect:
    """Return the defect of the 0-based patient: each of the plan's defects once in every run of so many patients."""
    deck, card = divmod(index, len(plan.defects))
    return plan.defects[int(plan.generator(_DEFECT_DECK, deck).permutation(len(plan.defects))[card])]


def patient_views(plan: StudyPlan, index: int) -> tuple[View, ...]:
    """Return the views of the 0-based patient in the order of recording, which is random and so tells nothing."""
    views = plan.views
    if views is None:
        deck, first = divmod(index, _PATIENTS_PER_DECK)
        shuffled = plan.generator(_VIEW_DECK, deck).permutation(len(_OTHERS))
        views = (*ALWAYS_RECORDED, *(_OTHERS[card] for card in shuffled[first::_PATIENTS_PER_DECK]))
    order = plan.generator(_PATIENT, index, _ORDER).permutation(len(views))
    return tuple(views[number] for number in order)


def _image_missing_patients(plan: StudyPlan, patients: int, jobs: int, progress: Progress) -> None:
    counts = [len(patient_views(plan, index)) for index in range(patients)]
    missing = [index for index in range(patients) if not plan.rows_file(index).exists()]
    total = sum(counts)
    done = total - sum(counts[index] for index in missing)
    progress(done, total, "")
    for index in _each_finished(plan, missing, jobs):
        done += counts[index]
        progress(done, total, plan.patient_id(index))


def _each_finished(plan: StudyPlan, indices: list[int], jobs: int) -> Iterator[int]:
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


def _image_patient(plan: StudyPlan, index: int) -> int:
    """Write one patient's cines and, last, the rows that say they are complete; return the patient's index."""
    heart = sample_heart(plan.generator(_PATIENT, index, _HEART), defect=patient_defect(plan, index))
    patient = sample_patient(
        plan.generator(_PATIENT, index, _PERSON),
        patient_id=plan.patient_id(index),
        age_days=heart.age_days,
        body_surface_m2=heart.body_surface_m2,
    )
    rng = plan.generator(_PATIENT, index, _MACHINE)
    machine, encoding = sample_machine(rng), _sample_encoding(plan, rng)
    visit = {"patient_id": patient.patient_id, "age_days": str(patient.age_days), "sex": patient.sex}
    visit |= {"machine": machine.model, "encoding": encoding.value}
    folder, rows_file = plan.out / patient.patient_id, plan.rows_file(index)
    for directory in (folder, plan.out / ANNOTATIONS_DIRECTORY, rows_file.parent):
        make_directory(directory)
    remove_abandoned(folder)  # of a run that was killed; nobody else writes here
    rows, seconds = list[dict[str, str]](), 8 * 3600 + 300
    for number, view in enumerate(patient_views(plan, index), start=1):
        rng = plan.generator(_PATIENT, index, _CINE + number)
        seconds += int(rng.integers(20, 90))
        cine = acquire_cine(heart, view, rng, frames=plan.frames)
        identity = _identify(plan, index, number, seconds)
        screen = draw_overlay(cine, machine, patient, clock=identity.clock, rng=rng)
        dicom = io.BytesIO()
        write_dicom_cine(dicom, cine, screen, patient=patient, machine=machine, identity=identity, encoding=encoding)
        path = folder / f"IM_{number:04d}.dcm"
        _write_cine(plan.out, path, dicom.getvalue(), annotate(cine, identity.sop_instance_uid))
        file = path.relative_to(plan.out).as_posix()
        rows.append(_facts(cine) | visit | {"file": file, "image_id": identity.sop_instance_uid})
    write_atomically(rows_file, (json.dumps(rows) + "\n").encode())
    return index


def _sample_encoding(plan: StudyPlan, rng: np.random.Generator) -> Encoding:
    weights = np.array([weight for _, weight in plan.encodings])
    return plan.encodings[int(rng.choice(len(weights), p=weights / weights.sum()))][0]


def _write_cine(out: Path, path: Path, dicom: bytes, annotation: Annotation) -> None:
    write_atomically(path, dicom)
    label = out / ANNOTATIONS_DIRECTORY / f"{annotation.image_id}.json"
    if not label.exists():  # a person may have corrected that of an earlier run
        write_atomically(label, annotation_to_json(annotation).encode())


def _identify(plan: StudyPlan, index: int, number: int, seconds: int) -> InstanceIdentity:
    """Return UIDs that differ whenever the pixels may: other frames or views are other instances."""
    views = "default" if plan.views is None else ",".join(view.value for view in plan.views)
    defects = ",".join(defect.value for defect in plan.defects)
    encodings = ",".join(f"{encoding.value}={weight!r}" for encoding, weight in plan.encodings)
    arguments = [__version__, f"seed {plan.seed}", f"frames {plan.frames}", views, defects, encodings]

    def uid(*what: str) -> str:
        return str(generate_uid(entropy_srcs=["monailabel-echo phantom", *arguments, f"patient {index}", *what]))

    return InstanceIdentity(uid("study"), uid("series"), uid("cine", str(number)), number, seconds)


def annotate(cine: PhantomCine, image_id: str) -> Annotation:
    """Return the truth about a phantom cine as if a person had drawn it; corners to 0.01 px."""
    boxes = []
    for box in cine.boxes:
        x1, y1, x2, y2 = (round(float(corner), 2) for corner in box.xyxy)
        boxes.append(SeptalBox(int(box.frame_index), x1, y1, x2, y2, box.septum))
    return Annotation(
        image_id=image_id,
        boxes=tuple(boxes),
        annotated_frames=tuple(range(len(cine.pixels))),
        view=cine.view,
        defect=cine.defect,
        defect_size_mm=None if cine.defect_size_mm is None else round(float(cine.defect_size_mm), 2),
        is_defect_visible=None if cine.defect is Defect.NORMAL else bool(cine.facts.get("defect_in_plane", 0.0)),
        author="phantom",
        saved_at=datetime.combine(STUDY_DATE, time(18, 0), tzinfo=UTC),
        revision=1,
    )


def _facts(cine: PhantomCine) -> dict[str, str]:
    T, H, W = cine.pixels.shape
    known: dict[str, object] = {
        **cine.facts,
        "view": cine.view.value,
        "defect": cine.defect.value,
        "defect_size_mm": "" if cine.defect_size_mm is None else round(float(cine.defect_size_mm), 2),
        "heart_rate_bpm": float(cine.heart_rate_bpm),
        "frames": T,
        "frame_time_ms": float(cine.frame_time_ms),
        "height": H,
        "width": W,
        "mm_per_px_x": cine.region.mm_per_px_x,
        "mm_per_px_y": cine.region.mm_per_px_y,
        "interatrial_boxes": sum(box.septum is Septum.INTERATRIAL for box in cine.boxes),
        "interventricular_boxes": sum(box.septum is Septum.INTERVENTRICULAR for box in cine.boxes),
        "phases": ";".join(f"{phase:.4f}" for phase in cine.phases),
    }
    return {
        key: f"{value:.6g}" if isinstance(value, float | np.floating) else str(value) for key, value in known.items()
    }


def _write_table(plan: StudyPlan, patients: int) -> None:
    """Write phantom.csv and remove the rows it was made from."""
    rows: list[dict[str, str]] = []
    for index in range(patients):
        rows += json.loads(plan.rows_file(index).read_text(encoding="utf-8"))
    facts = sorted({key for row in rows for key in row} - set(FIXED_COLUMNS))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=[*FIXED_COLUMNS, *facts], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(plan.out / _TABLE, text.getvalue().encode())
    for leftover in (plan.out / _ROWS).iterdir():
        leftover.unlink()
    (plan.out / _ROWS).rmdir()
