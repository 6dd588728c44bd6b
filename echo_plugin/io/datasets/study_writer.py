# SPDX-License-Identifier: Apache-2.0
"""A study folder made of a data set: files linked or copied, patients.csv, annotations, and what was left out.

An import that was stopped, or whose source has grown, is run again into the same folder. What is there stays: files
that an earlier import put there, what a person wrote into patients.csv, and every annotation, those that a person took
back too.

What a data set says of a cine, saved as an annotation where nobody else has said anything.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from echo_plugin.annotations import Annotation
from echo_plugin.durable import write_atomically
from echo_plugin.errors import AnnotationConflictError, AnnotationError, DataSetError, UnreadableCineError
from echo_plugin.io.cine_file import read_cine
from echo_plugin.io.datasets.patients_merge import (
    Said,
    TwoSources,
    contradictions,
    merge_patients,
    one_patient_each,
    read_last_import,
)
from echo_plugin.io.datasets.placed_files import PlacedCine, forget_unjudged, links_in, place_all
from echo_plugin.io.datasets.source_cine import IMPORT_FILE, ClassCount, DataSet, ImportReport, LeftOut
from echo_plugin.io.patients_file import PATIENTS_FILE, read_patients
from echo_plugin.io.study_folder import CineEntry, StudyFolder, is_moved_out
from echo_plugin.progress import Progress


def save_labels(folder: StudyFolder, image_id: str, placed: PlacedCine, name: str, left_out: list[LeftOut]) -> int:
    """Save what the data set ``name`` says of a cine, and return how many boxes of it the folder has.

    Where an earlier import alone has spoken, and without boxes, those that the data set has now are added. Whatever
    else it says otherwise now is told in ``left_out``.
    """
    cine, weak, author = placed.cine, placed.weak, f"import {name}"
    if weak.problem:
        left_out.append(LeftOut(f"{cine.place} (boxes)", weak.problem))
    if cine.view is None and cine.defect is None and not weak.boxes:
        return 0
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
    if current is None:
        return _save(folder, image_id, placed, author, left_out)
    is_same = (current.view, current.defect) == (cine.view, cine.defect)
    if not is_same:
        left_out.append(LeftOut(f"{cine.place} (labels)", "those there are others than the data set's, and stay"))
    if weak.problem or set(current.boxes) == set(weak.boxes):
        return len(current.boxes)
    if is_same and len(revisions) == 1 and not current.boxes:
        return _save(folder, image_id, placed, author, left_out, current=current)
    told = "the boxes there are others than the data set's, and stay"
    left_out.append(LeftOut(f"{cine.place} (boxes)", told))
    return len(current.boxes)


def _save(
    folder: StudyFolder,
    image_id: str,
    placed: PlacedCine,
    author: str,
    left_out: list[LeftOut],
    *,
    current: Annotation | None = None,
) -> int:
    """Save an annotation in the place of ``current``, if nobody is faster; return the number of its boxes."""
    cine, weak = placed.cine, placed.weak
    frames = tuple(sorted({box.frame_index for box in weak.boxes}))
    full = Annotation(image_id, weak.boxes, frames, cine.view, cine.defect)
    try:
        folder.save_annotation(full, author=author, based_on_revision=current.revision if current else 0)
    except AnnotationConflictError:
        return 0
    except (AnnotationError, UnreadableCineError) as exc:
        if not weak.boxes:
            raise
        left_out.append(LeftOut(f"{cine.place} (boxes)", str(exc)))
        if current is None:
            plain = Annotation(image_id, view=cine.view, defect=cine.defect)
            folder.save_annotation(plain, author=author, based_on_revision=0)
        return 0
    return len(weak.boxes)


@dataclass(frozen=True)
class _Taken:
    """A cine in the study folder that can be used; ``patient_id`` : None where nobody says; ``part`` : "" for none."""

    placed: PlacedCine
    entry: CineEntry
    patient_id: str | None = field(default=None, repr=False)
    part: str = ""


def make_study_folder(
    name: str, src: Path, out: Path, data_set: DataSet, *, is_copy: bool = False, progress: Progress | None = None
) -> ImportReport:
    """Make the study folder ``out`` of a data set and return what was taken and what was left out.

    ``is_copy`` : copy the files, those too that an earlier import linked; else they are linked, so that ``src`` must
    stay where it is.

    Raises
    ------
    DataSetError
        If ``out`` holds something else, lies in ``src``, cannot be written to, or nothing can be taken.
    AnnotationError
        If ``patients.csv`` of an earlier import is malformed; nothing is changed then.
    """
    _require_place(name, src, out)
    read_patients(out / PATIENTS_FILE)
    items = list(data_set.items)  # before anything is written: a table of the data set may be refused
    _make_place(name, out)
    placed, left_out = place_all(items, out, is_copy=is_copy, progress=progress)
    folder = StudyFolder(out)
    usable, notes = _usable(placed, folder, left_out, is_header_first=data_set.is_header_first)
    taken, merge_notes = _as_merged(usable, out)
    folder.refresh()
    left_out += [item for t in taken for item in _other_frames(t)]
    boxes = [save_labels(folder, t.entry.image_id, t.placed, name, left_out) for t in taken]
    links = links_in(out)
    if links and is_copy:
        merge_notes.append(f"{links} files of the study folder are no part of this import and still links.")
    mended = sum(t.placed.is_mended for t in taken)
    if mended:
        merge_notes.append(f"{mended} links of an earlier import led nowhere any more, and were made anew.")
    told = [*data_set.notes, *notes, *merge_notes]
    report = _report(name, src, taken, boxes, is_copy=not links, left_out=left_out, notes=told)
    write_atomically(out / IMPORT_FILE, (json.dumps(report.to_json(), indent=1) + "\n").encode())
    return report


def _require_place(name: str, src: Path, out: Path) -> None:
    """Refuse a folder that is no place for this import; nothing is written."""
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


def _make_place(name: str, out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        marker = out / IMPORT_FILE
        if not marker.exists():
            write_atomically(marker, json.dumps({"data_set": name}).encode())
    except OSError as exc:
        msg = f"Study folder {out} cannot be made ({exc.strerror or exc}); a place that can be written to is needed."
        raise DataSetError(msg) from exc


def _usable(
    placed: Sequence[PlacedCine], folder: StudyFolder, left_out: list[LeftOut], *, is_header_first: bool
) -> tuple[list[_Taken], tuple[str, ...]]:
    """Return the cines that can be used, by whom the headers and the data set say they are, and notes of that.

    Of the others, the files that this import put there are taken out again.
    """
    entries = {os.path.normpath(entry.path): entry for entry in folder.entries()}
    found = [(p, entries.get(os.path.normpath(folder.root.joinpath(*p.place.parts)))) for p in placed]
    reasons = {p.place: reason for p, entry in found if (reason := _fault(p, entry, folder.root))}
    readable = [(p, entry) for p, entry in found if entry and p.place not in reasons]
    sources = [(entry.header_patient_id, p.cine.patient_id) for p, entry in readable]
    patients, notes = one_patient_each(  # of contradicting headers too: what they may join must not be torn
        [*sources, *_headers_gone(found, readable, folder.root)]
    )
    if not is_header_first:
        against = [readable[index][0].place for index in contradictions(sources)]
        reasons |= dict.fromkeys(against, "its header names another patient than the data set")
    _take_out(placed, reasons, folder.root, left_out)
    if len(reasons) == len(placed):
        told = "; ".join(sorted({item.reason for item in left_out})[:3])
        msg = f"Nothing of the data set can be taken; {len(left_out)} things were left out ({told})."
        raise DataSetError(msg)
    usable = [_Taken(p, entry, patient) for (p, entry), patient in zip(readable, patients, strict=False)]
    return [t for t in usable if t.placed.place not in reasons], notes


def _headers_gone(
    found: Sequence[tuple[PlacedCine, CineEntry | None]], readable: Sequence[tuple[PlacedCine, CineEntry]], root: Path
) -> list[TwoSources]:
    """Return whom headers name that are no longer there: of earlier imports, and of files that were taken out."""
    here = {entry.image_id for _, entry in readable}
    gone = dict(read_last_import(root).sources)
    gone |= {
        entry.image_id: (entry.header_patient_id, p.cine.patient_id)
        for p, entry in found
        if entry and entry.error is None
    }
    return [source for image_id, source in gone.items() if image_id not in here and None not in source]


def _take_out(
    placed: Sequence[PlacedCine], reasons: Mapping[PurePosixPath, str], root: Path, left_out: list[LeftOut]
) -> None:
    """Take out of the study folder the new files that there are reasons against, and report the others too."""
    for p in placed:
        if p.place not in reasons:
            continue
        if p.is_new:
            root.joinpath(*p.place.parts).unlink(missing_ok=True)
            left_out.append(LeftOut(str(p.cine.place), reasons[p.place]))
        else:
            left_out.append(LeftOut(str(p.cine.place), f"{reasons[p.place]}; the file of an earlier import stays"))
    forget_unjudged(root)


def _fault(placed: PlacedCine, entry: CineEntry | None, root: Path) -> str | None:
    if entry is None:
        return "it is no image file by its name"
    if placed.is_new and is_moved_out(root, entry.image_id):
        return "it was taken out of the study folder"
    return entry.error


def _other_frames(t: _Taken) -> Iterator[LeftOut]:
    """Tell of a cine that an earlier import packed, of which the data set has more or fewer frames by now."""
    if not t.placed.is_new and _frames_now(t.placed) not in (None, t.entry.frames):
        told = "the data set has another number of them; the file of an earlier import stays"
        yield LeftOut(f"{t.placed.cine.place} (frames)", told)


def _frames_now(placed: PlacedCine) -> int | None:
    """Return how many frames the data set has of a cine that is packed; None: of others, or nobody knows."""
    if placed.cine.frames:
        return len(placed.cine.frames)
    try:
        return read_cine(placed.cine.source).frame_count if placed.weak.is_transposed else None
    except UnreadableCineError:
        return None


def _as_merged(usable: Sequence[_Taken], out: Path) -> tuple[list[_Taken], list[str]]:
    """Return the cines with patients and parts as headers and patients.csv, now written, have them, and notes."""
    merged = merge_patients(
        out,
        {
            t.entry.image_id: Said(
                t.patient_id, t.placed.cine.part or "", t.entry.header_patient_id is not None, t.placed.cine.patient_id
            )
            for t in usable
        },
    )
    owners = [t.entry.header_patient_id or merged.patients.get(t.entry.image_id) for t in usable]
    taken = [
        replace(t, patient_id=patient, part=merged.parts.get(patient or "", ""))
        for t, patient in zip(usable, owners, strict=True)
    ]
    return taken, list(merged.notes)


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
