# SPDX-License-Identifier: Apache-2.0
"""A study folder made of a data set: files linked or copied, patients.csv, annotations, and what was left out.

An import that was stopped, or whose source has grown, is run again into the same folder: what is there stays, and an
annotation that is there is never touched.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from echo_plugin.annotations import Annotation
from echo_plugin.errors import AnnotationError, DataSetError, UnreadableCineError
from echo_plugin.io.atomic_file import write_atomically
from echo_plugin.io.datasets.import_report import IMPORT_FILE, ClassCount, ImportReport
from echo_plugin.io.datasets.packed_frames import pack_pictures, pack_transposed
from echo_plugin.io.datasets.source_cine import DataSet, LeftOut, NotTakenError, SourceCine, WeakBoxes
from echo_plugin.io.patients_file import PATIENTS_FILE, write_patients
from echo_plugin.io.study_folder import CineEntry, StudyFolder
from echo_plugin.progress import Progress

logger = logging.getLogger(__name__)


@dataclass
class _Taken:
    """A cine on its way into the study folder."""

    cine: SourceCine
    place: PurePosixPath
    weak: WeakBoxes = field(default_factory=WeakBoxes)
    entry: CineEntry | None = None


def make_study_folder(
    name: str, src: Path, out: Path, data_set: DataSet, *, is_copy: bool = False, progress: Progress | None = None
) -> ImportReport:
    """Make the study folder ``out`` of a data set and return what was taken and what was left out.

    ``is_copy`` : copy the files; else they are linked, so that ``src`` must stay where it is.

    Raises
    ------
    DataSetError
        If ``out`` holds something else, lies in ``src``, cannot be written to, or nothing can be taken.
    """
    _require_place(name, src, out)
    left_out: list[LeftOut] = []
    taken = _place_all(data_set, out, left_out, is_copy=is_copy, progress=progress)
    folder = StudyFolder(out)
    taken = _usable(taken, folder, left_out, is_header_first=data_set.is_header_first)
    notes = [*data_set.notes]
    parts = _parts_by_patient(taken, notes)
    rows = [(t.entry.image_id, patient, parts.get(patient)) for t in taken if t.entry and (patient := _patient(t))]
    write_patients(out / PATIENTS_FILE, rows)
    folder.refresh()
    boxes = [_annotate(folder, t, name, left_out) for t in taken]
    report = ImportReport(
        data_set=name,
        source=src.name,
        is_copy=is_copy,
        cines=len(taken),
        patients=len({_patient(t) for t in taken} - {None}),
        views=_counts((t.cine.view.value if t.cine.view else "", _patient(t)) for t in taken),
        defects=_counts((t.cine.defect.value if t.cine.defect else "", _patient(t)) for t in taken),
        parts=_counts((parts.get(_patient(t) or "", ""), _patient(t)) for t in taken),
        boxes=sum(boxes),
        boxed_cines=sum(count > 0 for count in boxes),
        without_patient=sum(_patient(t) is None for t in taken),
        left_out=left_out,
        notes=notes,
    )
    write_atomically(out / IMPORT_FILE, (json.dumps(report.to_json(), indent=1) + "\n").encode())
    return report


def _require_place(name: str, src: Path, out: Path) -> None:
    if not src.is_dir():
        msg = f"Data set {src} is no directory; the folder that was unpacked is accepted."
        raise DataSetError(msg)
    if out.resolve().is_relative_to(src.resolve()):
        msg = f"Study folder {out} lies in the data set itself; a folder outside of it is accepted."
        raise DataSetError(msg)
    if out.is_dir() and next(out.iterdir(), None) is not None:
        try:
            earlier = json.loads((out / IMPORT_FILE).read_text(encoding="utf-8"))["data_set"]
        except (OSError, ValueError, KeyError, TypeError):
            earlier = None
        if earlier != name:
            msg = f"Study folder {out} is not empty; an empty or new one, or an earlier import of {name}, is accepted."
            raise DataSetError(msg)
    try:
        out.mkdir(parents=True, exist_ok=True)
        marker = out / IMPORT_FILE
        if not marker.exists():
            write_atomically(marker, json.dumps({"data_set": name}).encode())
    except OSError as exc:
        msg = f"Study folder {out} cannot be made ({exc.strerror or exc}); a place that can be written to is needed."
        raise DataSetError(msg) from exc


def _place_all(
    data_set: DataSet, out: Path, left_out: list[LeftOut], *, is_copy: bool, progress: Progress | None
) -> list[_Taken]:
    items, taken, places = list(data_set.items), [], set()
    for number, item in enumerate(items):
        if progress is not None:
            progress(number, len(items), "placing files")
        if isinstance(item, LeftOut):
            left_out.append(item)
            continue
        weak = item.weak_boxes() if item.weak_boxes else WeakBoxes()
        place = item.place
        if weak.is_transposed:
            place = place.with_name(place.name.removesuffix(".gz").removesuffix(".nii") + ".nrrd")
        try:
            if place in places or place.parts[0] in ("annotations", PATIENTS_FILE, IMPORT_FILE):
                msg = "its place in the study folder is taken"
                raise NotTakenError(msg)
            _put(item, out.joinpath(*place.parts), is_transposed=weak.is_transposed, is_copy=is_copy)
        except NotTakenError as exc:
            left_out.append(LeftOut(str(item.place), str(exc)))
            continue
        places.add(place)
        taken.append(_Taken(item, place, weak))
    return taken


def _put(cine: SourceCine, target: Path, *, is_transposed: bool, is_copy: bool) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_symlink() or target.exists():
            is_same = not target.is_symlink() or target.readlink() == cine.source.absolute()
            if not is_same:
                msg = f"Study folder has {target.name!r} from another place; import into an empty folder."
                raise DataSetError(msg)
        elif cine.frames:
            pack_pictures(cine.frames, target)
        elif is_transposed:
            pack_transposed(cine.source, target)
        elif is_copy:
            partial = target.with_name(f".{target.name}.tmp")
            shutil.copyfile(cine.source, partial)
            partial.replace(target)
        else:
            target.symlink_to(cine.source.absolute())
    except OSError as exc:
        msg = (
            f"File {target.name!r} cannot be put into the study folder ({exc.strerror or exc});"
            " where links are not allowed, --copy copies."
        )
        raise DataSetError(msg) from exc


def _usable(
    taken: list[_Taken], folder: StudyFolder, left_out: list[LeftOut], *, is_header_first: bool
) -> list[_Taken]:
    """Return the cines that can be read and whose header does not contradict the data set; the others are taken out."""
    entries = {os.path.normpath(entry.path): entry for entry in folder.entries()}
    for t in taken:
        t.entry = entries.get(os.path.normpath(folder.root.joinpath(*t.place.parts)))
    refused: dict[int, str] = {}
    for t in taken:
        if t.entry is None:
            refused[id(t)] = "it is no image file by its name"
        elif t.entry.error:
            refused[id(t)] = t.entry.error
    if not is_header_first:
        readable = [t for t in taken if id(t) not in refused]
        refused |= {id(t): "its header names another patient than the data set" for t in _contradicting(readable)}
    for t in taken:
        if id(t) in refused:
            left_out.append(LeftOut(str(t.cine.place), refused[id(t)]))
            folder.root.joinpath(*t.place.parts).unlink(missing_ok=True)
    if len(refused) == len(taken):
        reasons = "; ".join(sorted({item.reason for item in left_out})[:3])
        msg = f"Nothing of the data set can be taken; {len(left_out)} things were left out ({reasons})."
        raise DataSetError(msg)
    return [t for t in taken if id(t) not in refused]


def _contradicting(taken: list[_Taken]) -> list[_Taken]:
    """Return the cines whose header's patients and the data set's do not stand one to one."""
    pairs = [(t, t.entry.patient_id, t.cine.patient_id) for t in taken if t.entry and t.entry.patient_id]
    of_header: dict[str, set[str]] = {}
    of_table: dict[str, set[str]] = {}
    for _, header, table in pairs:
        if header and table:
            of_header.setdefault(header, set()).add(table)
            of_table.setdefault(table, set()).add(header)
    return [t for t, h, p in pairs if h and p and (len(of_header[h]) > 1 or len(of_table[p]) > 1)]


def _patient(t: _Taken) -> str | None:
    return (t.entry.patient_id if t.entry else None) or t.cine.patient_id


def _parts_by_patient(taken: Iterable[_Taken], notes: list[str]) -> dict[str, str]:
    """Return the part of each patient; a patient whose cines are in several has none, and a note says how many."""
    parts: dict[str, set[str]] = {}
    for t in taken:
        patient = _patient(t)
        if patient and t.cine.part:
            parts.setdefault(patient, set()).add(t.cine.part)
    torn = [patient for patient, found in parts.items() if len(found) > 1]
    if torn:
        notes.append(f"The data set's split tears {len(torn)} patients apart; it is not kept for them.")
    return {patient: next(iter(found)) for patient, found in parts.items() if len(found) == 1}


def _annotate(folder: StudyFolder, t: _Taken, name: str, left_out: list[LeftOut]) -> int:
    """Save what the data set says of a cine, where nobody has said anything yet; return the number of boxes."""
    assert t.entry is not None
    image_id, boxes = t.entry.image_id, t.weak.boxes
    if t.weak.problem:
        left_out.append(LeftOut(f"{t.cine.place} (boxes)", t.weak.problem))
    if (t.cine.view is None and t.cine.defect is None and not boxes) or folder.annotation(image_id) is not None:
        return 0
    frames = tuple(sorted({box.frame_index for box in boxes}))
    try:
        folder.save_annotation(Annotation(image_id, boxes, frames, t.cine.view, t.cine.defect), author=f"import {name}")
    except (AnnotationError, UnreadableCineError) as exc:
        if not boxes:
            raise
        left_out.append(LeftOut(f"{t.cine.place} (boxes)", str(exc)))
        folder.save_annotation(Annotation(image_id, view=t.cine.view, defect=t.cine.defect), author=f"import {name}")
        return 0
    return len(boxes)


def _counts(pairs: Iterable[tuple[str, str | None]]) -> Mapping[str, ClassCount]:
    cines: dict[str, int] = {}
    patients: dict[str, set[str | None]] = {}
    for name, patient in pairs:
        cines[name] = cines.get(name, 0) + 1
        patients.setdefault(name, set()).add(patient)
    return {name: ClassCount(cines[name], len(patients[name] - {None})) for name in sorted(cines)}
