# SPDX-License-Identifier: Apache-2.0
"""One synthetic child's visit: a heart, a machine, and the cines of the views that were recorded.

Everything follows from the seed and the patient's index alone, so that patients may be made in any order, by any
process, and the first ten of a hundred are the ten of ten.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, time
from pathlib import Path

import numpy as np
from pydicom.uid import generate_uid

from echo_plugin import __version__
from echo_plugin.anatomy import PAEDIATRIC, Defect, Septum, View
from echo_plugin.annotations import Annotation, SeptalBox
from echo_plugin.io.annotation_store import annotation_to_json
from echo_plugin.io.study_index import ANNOTATIONS_DIRECTORY
from echo_plugin.phantom.bmode import PhantomCine, acquire_cine
from echo_plugin.phantom.dicom_writer import Encoding, InstanceIdentity, write_dicom_cine
from echo_plugin.phantom.heart import sample_heart
from echo_plugin.phantom.patient import STUDY_DATE, sample_patient
from echo_plugin.phantom.screen import draw_overlay, sample_machine

ALWAYS_RECORDED = (View.A4C, View.SUBCOSTAL_4C)
"""The views of every visit: those that show both septa."""

_OTHERS = tuple(view for view in PAEDIATRIC if view not in ALWAYS_RECORDED)
_PATIENTS_PER_DECK = 3
"""So many visits in a row show every paediatric view once."""

_AUTHOR = "phantom"
_SAVED_AT = datetime.combine(STUDY_DATE, time(18, 0), tzinfo=UTC)

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


@dataclass(frozen=True)
class PatientPlan:
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


@dataclass(frozen=True)
class CineFiles:
    """The two files and the table row of one cine, not yet written."""

    dicom_path: Path
    dicom: bytes = field(repr=False)
    annotation_path: Path
    annotation: bytes = field(repr=False)
    row: dict[str, str]


# First numbers of the keys of PatientPlan.generator.
_PATIENT, _VIEW_DECK, _DEFECT_DECK = 0, 1, 2
# Second level, after (_PATIENT, index): what is drawn once per patient, and cine n at _CINE + n.
_HEART, _PERSON, _MACHINE, _ORDER, _CINE = 0, 1, 2, 3, 16


def patient_defect(plan: PatientPlan, index: int) -> Defect:
    """Return the defect of the 0-based patient: each of the plan's defects once in every run of so many patients."""
    deck, card = divmod(index, len(plan.defects))
    return plan.defects[int(plan.generator(_DEFECT_DECK, deck).permutation(len(plan.defects))[card])]


def patient_views(plan: PatientPlan, index: int) -> tuple[View, ...]:
    """Return the views of the 0-based patient in the order of recording, which is random and so tells nothing."""
    views = plan.views
    if views is None:
        deck, hand = divmod(index, _PATIENTS_PER_DECK)
        shuffled = plan.generator(_VIEW_DECK, deck).permutation(len(_OTHERS))
        views = (*ALWAYS_RECORDED, *(_OTHERS[card] for card in shuffled[hand::_PATIENTS_PER_DECK]))
    order = plan.generator(_PATIENT, index, _ORDER).permutation(len(views))
    return tuple(views[place] for place in order)


def cine_count(plan: PatientPlan, index: int) -> int:
    """Return how many cines the 0-based patient has."""
    return len(patient_views(plan, index))


def image_patient(plan: PatientPlan, index: int) -> Iterator[CineFiles]:
    """Yield the files of each cine of the 0-based patient, in the order of recording."""
    defect = patient_defect(plan, index)
    heart = sample_heart(plan.generator(_PATIENT, index, _HEART), defect=defect)
    patient = sample_patient(
        plan.generator(_PATIENT, index, _PERSON),
        patient_id=plan.patient_id(index),
        age_days=heart.age_days,
        body_surface_m2=heart.body_surface_m2,
    )
    machine_rng = plan.generator(_PATIENT, index, _MACHINE)
    machine = sample_machine(machine_rng)
    weights = np.array([weight for _, weight in plan.encodings])
    encoding = plan.encodings[int(machine_rng.choice(len(weights), p=weights / weights.sum()))][0]
    visit = {"patient_id": patient.patient_id, "age_days": str(patient.age_days), "sex": patient.sex}
    visit |= {"machine": machine.model, "encoding": encoding.value}
    seconds = 8 * 3600 + 300
    for number, view in enumerate(patient_views(plan, index), start=1):
        rng = plan.generator(_PATIENT, index, _CINE + number)
        seconds += int(rng.integers(20, 90))
        cine = acquire_cine(heart, view, rng, frames=plan.frames)
        identity = _identify(plan, index, number, seconds)
        screen = draw_overlay(cine, machine, patient, clock=identity.clock, rng=rng)
        dicom = io.BytesIO()
        write_dicom_cine(dicom, cine, screen, patient=patient, machine=machine, identity=identity, encoding=encoding)
        yield _cine_files(plan, cine, identity, dicom.getvalue(), _facts(cine) | visit)


def _cine_files(
    plan: PatientPlan, cine: PhantomCine, identity: InstanceIdentity, dicom: bytes, row: dict[str, str]
) -> CineFiles:
    image_id = identity.sop_instance_uid
    relative = f"{row['patient_id']}/IM_{identity.instance_number:04d}.dcm"
    return CineFiles(
        dicom_path=plan.out / relative,
        dicom=dicom,
        annotation_path=plan.out / ANNOTATIONS_DIRECTORY / f"{image_id}.json",
        annotation=annotation_to_json(annotate(cine, image_id)).encode(),
        row=row | {"file": relative, "image_id": image_id},
    )


def _identify(plan: PatientPlan, index: int, number: int, seconds: int) -> InstanceIdentity:
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
        author=_AUTHOR,
        saved_at=_SAVED_AT,
        revision=1,
    )


def _text(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float | np.floating) else str(value)


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
    return {key: _text(value) for key, value in known.items()}
