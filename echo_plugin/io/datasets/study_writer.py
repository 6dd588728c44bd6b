# SPDX-License-Identifier: Apache-2.0
"""A study folder made of a data set: files linked or copied, patients.csv, labels, and what was left out.

Made anew in the place of an earlier import, it holds the files, patients.csv and labels that the data set has now.
What people did stays: every label that is not the import's own (those of cines that the data set no longer has lie in
``annotations`` until the cine is back), labels and cines that were taken out, and their patients.csv beside the new.

One patient may have two sources: the header of a DICOM file, and what the data set says of the file. A study folder
always believes a header before patients.csv. So a file whose header is silent must be given the id that the headers of
its patient have: with the data set's own id one patient would be two, and could be in training and test.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from echo_plugin.annotations import Annotation
from echo_plugin.durable import write_atomically
from echo_plugin.errors import AnnotationConflictError, AnnotationError, DataSetError, UnreadableCineError
from echo_plugin.io.annotation_store import digest_of_label
from echo_plugin.io.datasets.placed_files import PlacedCine, place_all, remove_placed
from echo_plugin.io.datasets.source_cine import IMPORT_FILE, ClassCount, DataSet, ImportReport, LeftOut
from echo_plugin.io.patients_file import PATIENTS_FILE, write_patients
from echo_plugin.io.study_folder import CineEntry, StudyFolder, is_moved_out
from echo_plugin.progress import Progress


@dataclass(frozen=True)
class _Taken:
    """A cine in the study folder that can be used; ``patient_id`` : None where nobody says; ``part`` : "" for none."""

    placed: PlacedCine
    entry: CineEntry
    patient_id: str | None = field(default=None, repr=False)
    part: str = ""


def make_study_folder(
    name: str,
    src: Path,
    out: Path,
    data_set: DataSet,
    *,
    is_copy: bool = False,
    is_replacing: bool = False,
    progress: Progress | None = None,
) -> ImportReport:
    """Make the study folder ``out`` of a data set and return what was taken and what was left out.

    ``is_copy`` : copy the files; else they are linked, so that ``src`` must stay where it is. ``is_replacing`` : an
    earlier import of the same data set in ``out`` is made anew; else it is refused.

    Raises
    ------
    DataSetError
        If ``out`` holds something, lies in ``src``, cannot be written to, or nothing can be taken.
    """
    _require_place(name, src, out, is_replacing=is_replacing)
    items = list(data_set.items)  # before anything is written: a table of the data set may be refused
    earlier_patients = None
    try:
        out.mkdir(parents=True, exist_ok=True)
        if is_replacing:
            remove_placed(out)
            earlier_patients = _set_aside(out / PATIENTS_FILE)
        write_atomically(out / IMPORT_FILE, json.dumps({"data_set": name}).encode())
        placed, left_out = place_all(items, out, is_copy=is_copy, progress=progress)
    except (OSError, ValueError) as exc:
        msg = f"Study folder {out} cannot be made ({exc}); a place that can be written to is needed."
        raise DataSetError(msg) from exc
    folder = StudyFolder(out)
    usable, notes = _usable(placed, folder, left_out, is_header_first=data_set.is_header_first)
    taken, torn = _with_parts(usable)
    write_patients(out / PATIENTS_FILE, [(t.entry.image_id, t.patient_id, t.part) for t in taken if t.patient_id])
    folder.refresh()
    boxes = [save_labels(folder, t.entry.image_id, t.placed, name, left_out) for t in taken]
    told = [*data_set.notes, *notes]
    if torn:
        told.append(f"The data set's split tears {torn} patients apart; it is not kept for them.")
    if earlier_patients is not None:
        if earlier_patients.read_bytes() == (out / PATIENTS_FILE).read_bytes():
            earlier_patients.unlink()
        else:
            told.append(f"{PATIENTS_FILE} was another one before; it is kept as {earlier_patients.name}.")
    report = _report(name, src, taken, boxes, is_copy=is_copy, left_out=left_out, notes=told)
    write_atomically(out / IMPORT_FILE, (json.dumps(report.to_json(), indent=1) + "\n").encode())
    return report


def _require_place(name: str, src: Path, out: Path, *, is_replacing: bool) -> None:
    """Refuse a folder that is no place for this import; nothing is written."""
    if not src.is_dir():
        msg = f"Data set {src} is no directory; the folder that was unpacked is accepted."
        raise DataSetError(msg)
    if out.resolve().is_relative_to(src.resolve()):
        msg = f"Study folder {out} lies in the data set itself; a folder outside of it is accepted."
        raise DataSetError(msg)
    if not out.exists() or (out.is_dir() and next(out.iterdir(), None) is None):
        return
    try:
        earlier = json.loads((out / IMPORT_FILE).read_text(encoding="utf-8"))["data_set"]
    except (OSError, ValueError, KeyError, TypeError):
        earlier = None
    if earlier != name:
        msg = f"Study folder {out} is not empty; an empty or new one is accepted."
        raise DataSetError(msg)
    if not is_replacing:
        msg = (
            f"Study folder {out} holds an import of {name} already; --replace makes it anew and keeps people's labels."
        )
        raise DataSetError(msg)


def _set_aside(path: Path) -> Path | None:
    """Give a file another name beside its own, and return that; None: there is none."""
    if not path.exists():
        return None
    number = 1
    while (beside := path.with_name(f"{path.stem}.before-{number}{path.suffix}")).exists():
        number += 1
    return path.rename(beside)


def _usable(
    placed: Sequence[PlacedCine], folder: StudyFolder, left_out: list[LeftOut], *, is_header_first: bool
) -> tuple[list[_Taken], tuple[str, ...]]:
    """Return the cines that can be used, by whom the headers and the data set say they are, and notes of that.

    The files of the others are taken out again.
    """
    entries = {os.path.normpath(entry.path): entry for entry in folder.entries()}
    found = [(p, entries.get(os.path.normpath(folder.root.joinpath(*p.place.parts)))) for p in placed]
    reasons = {p.place: reason for p, entry in found if (reason := _fault(entry, folder.root))}
    readable = [(p, entry) for p, entry in found if entry and p.place not in reasons]
    sources = [(entry.header_patient_id, p.cine.patient_id) for p, entry in readable]
    patients, notes = one_patient_each(sources)  # of contradicting headers too: what they may join must not be torn
    if not is_header_first:
        against = [readable[index][0].place for index in contradictions(sources)]
        reasons |= dict.fromkeys(against, "its header names another patient than the data set")
    for p in placed:
        if p.place in reasons:
            folder.root.joinpath(*p.place.parts).unlink(missing_ok=True)
            left_out.append(LeftOut(str(p.cine.place), reasons[p.place]))
    if len(reasons) == len(placed):
        told = "; ".join(sorted({item.reason for item in left_out})[:3])
        msg = f"Nothing of the data set can be taken; {len(left_out)} things were left out ({told})."
        raise DataSetError(msg)
    usable = [_Taken(p, entry, patient) for (p, entry), patient in zip(readable, patients, strict=True)]
    return [t for t in usable if t.placed.place not in reasons], notes


def _fault(entry: CineEntry | None, root: Path) -> str | None:
    if entry is None:
        return "it is no image file by its name"
    if is_moved_out(root, entry.image_id):
        return "it was taken out of the study folder"
    return entry.error


TwoSources = tuple[str | None, str | None]
"""The patient of one cine by its header and by the data set; None: not said."""


def contradictions(sources: Sequence[TwoSources]) -> list[int]:
    """Return the indices of the cines whose header's patients and the data set's do not stand one to one."""
    of_set, of_header = _headers_by_set_id(sources), _headers_by_set_id([(own, header) for header, own in sources])
    return [
        index
        for index, (header, own) in enumerate(sources)
        if header and own and (len(of_set[own]) > 1 or len(of_header[header]) > 1)
    ]


def one_patient_each(sources: Sequence[TwoSources]) -> tuple[list[str | None], tuple[str, ...]]:
    """Return the patient of every cine, in order, and notes of what was joined.

    A header says it; else the headers of the other files that the data set gives to the same patient, if they agree;
    else the data set, if there are none. Where they do not agree nobody knows, and None keeps the cine from learning.

    >>> one_patient_each([("anna", "p1"), (None, "p1"), (None, "p2")])[0]
    ['anna', 'anna', 'p2']
    """
    headers = _headers_by_set_id(sources)
    patients: list[str | None] = []
    joined = unknown = 0
    for header, own in sources:
        found = headers.get(own, set()) if own else set()
        is_silent = bool(own) and not header
        joined += is_silent and found not in (set(), {own}) and len(found) == 1
        unknown += is_silent and len(found) > 1
        patients.append(header or (own if not found else next(iter(found)) if len(found) == 1 else None))
    notes = []
    if joined:
        notes.append(f"{joined} cines without a patient in the header have the id that headers give their patient.")
    if unknown:
        notes.append(
            f"{unknown} cines have no patient: their own header is silent, and those of the files that the data set"
            " holds together with them name several."
        )
    return patients, tuple(notes)


def _headers_by_set_id(sources: Sequence[TwoSources]) -> Mapping[str, set[str]]:
    found: defaultdict[str, set[str]] = defaultdict(set)
    for header, own in sources:
        if header and own:
            found[own].add(header)
    return found


def _with_parts(usable: Sequence[_Taken]) -> tuple[list[_Taken], int]:
    """Return the cines with the part of their patient, and how many patients the data set's split tears apart."""
    parts: defaultdict[str | None, set[str]] = defaultdict(set)
    for t in usable:
        if t.patient_id and t.placed.cine.part:
            parts[t.patient_id].add(t.placed.cine.part)
    sole = {patient: next(iter(found)) for patient, found in parts.items() if len(found) == 1}
    return [replace(t, part=sole.get(t.patient_id, "")) for t in usable], len(parts) - len(sole)


def save_labels(folder: StudyFolder, image_id: str, placed: PlacedCine, name: str, left_out: list[LeftOut]) -> int:
    """Save what the data set ``name`` says of a cine unless a person has spoken; return how many boxes it now has."""
    cine, weak, author = placed.cine, placed.weak, f"import {name}"
    if weak.problem:
        left_out.append(LeftOut(f"{cine.place} (boxes)", weak.problem))
    try:
        revisions, current = folder.history(image_id), folder.annotation(image_id)
    except AnnotationError as exc:
        left_out.append(LeftOut(f"{cine.place} (labels)", str(exc)))
        return 0
    if current is None and revisions:
        left_out.append(LeftOut(f"{cine.place} (labels)", "a person took back what was said of it"))
        return 0
    if current is not None and current.author != author:
        return 0
    frames = tuple(sorted({box.frame_index for box in weak.boxes}))
    full = Annotation(image_id, weak.boxes, frames, cine.view, cine.defect)
    try:
        _save(folder, full, current, author)
    except (AnnotationError, UnreadableCineError) as exc:
        if not weak.boxes:
            raise
        left_out.append(LeftOut(f"{cine.place} (boxes)", str(exc)))
        _save(folder, replace(full, boxes=(), annotated_frames=()), current, author)
        return 0
    return len(weak.boxes)


def _save(folder: StudyFolder, said: Annotation, current: Annotation | None, author: str) -> None:
    """Save what is said in the place of ``current``, if it is something else and nobody is faster."""
    before = Annotation(said.image_id) if current is None else current
    if digest_of_label(said) != digest_of_label(before):
        with suppress(AnnotationConflictError):
            folder.save_annotation(said, author=author, based_on_revision=before.revision)


def _report(
    name: str,
    src: Path,
    taken: Sequence[_Taken],
    boxes: Sequence[int],
    *,
    is_copy: bool,
    left_out: Sequence[LeftOut],
    notes: Sequence[str],
) -> ImportReport:
    cines = [(t.placed.cine, t.patient_id) for t in taken]
    return ImportReport(
        data_set=name,
        source=src.name,
        is_copy=is_copy,
        cines=len(taken),
        patients=len({t.patient_id for t in taken} - {None}),
        views=_counts((cine.view.value if cine.view else "", patient) for cine, patient in cines),
        defects=_counts((cine.defect.value if cine.defect else "", patient) for cine, patient in cines),
        parts=_counts((t.part, t.patient_id) for t in taken),
        boxes=sum(boxes),
        boxed_cines=sum(count > 0 for count in boxes),
        without_patient=sum(t.patient_id is None for t in taken),
        left_out=left_out,
        notes=notes,
    )


def _counts(pairs: Iterable[tuple[str, str | None]]) -> Mapping[str, ClassCount]:
    cines: dict[str, int] = {}
    patients: dict[str, set[str | None]] = {}
    for name, patient in pairs:
        cines[name] = cines.get(name, 0) + 1
        patients.setdefault(name, set()).add(patient)
    return {name: ClassCount(cines[name], len(patients[name] - {None})) for name in sorted(cines)}
