# SPDX-License-Identifier: Apache-2.0
"""``patients.csv`` of an import that is run again: what a person wrote into it stays, the rest follows the data set.

Three tables are compared: what the last import wrote (``.import_patients.csv``), what stands in ``patients.csv`` now,
and what the data set says now. A value that differs from the last import's is a person's, as is a line that is not from
an import, and a line that is gone. New cines of a patient whom the person gave another id get that id, and a person's
part of the split holds for all the patient's cines. Other columns, and the order of lines, are kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from echo_plugin.io.datasets.last_import import read_last_import, write_last_import
from echo_plugin.io.datasets.patients_table import Line, read_table, write_table
from echo_plugin.io.patients_file import PATIENTS_FILE


@dataclass(frozen=True)
class Said:
    """What the data set, or the header of the file, says of one cine.

    ``part`` : train, validation, test or "". ``own`` : the data set's own id of the patient, whoever ``patient`` is by
    the headers; None: it has none.
    """

    patient: str | None = field(repr=False)
    part: str = ""
    is_by_header: bool = False
    own: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class MergedPatients:
    """The table as it is now: ``patients`` by image id, ``parts`` by patient; ``notes`` : what a person must know."""

    patients: Mapping[str, str] = field(repr=False)
    parts: Mapping[str, str] = field(repr=False)
    notes: tuple[str, ...]


def merge_patients(out: Path, said: Mapping[str, Said]) -> MergedPatients:
    """Write what an import says into ``patients.csv`` of the folder ``out``, and return the table.

    ``said`` : by image id, every cine that the data set has now.

    Raises
    ------
    AnnotationError
        If ``patients.csv`` is malformed.
    """
    earlier = read_last_import(out)
    table = read_table(out / PATIENTS_FILE, {*said, *earlier.lines})
    now, last = (table.lines, earlier.lines) if table else ({}, {})
    patients = _merge_ids(said, now, last)
    lines = {image_id: now.get(image_id, Line("", "")) for image_id in [*now, *said]}
    lines = {i: Line(patients.get(i, line.patient) or "", line.part) for i, line in lines.items()}
    lines = {image_id: line for image_id, line in lines.items() if line.patient}
    merged, torn = _merge_parts(lines, said, now, last)
    write_table(out / PATIENTS_FILE, table, merged)
    remembered = _remembered(merged, now, last)  # after the table: without it, all that stands there is a person's
    sources = {i: (word.patient if word.is_by_header else None, word.own) for i, word in said.items()}
    write_last_import(out, remembered, {**earlier.sources, **sources})
    return MergedPatients(
        {image_id: line.patient for image_id, line in merged.items()},
        {line.patient: line.part for line in merged.values() if line.part},
        tuple(_notes(said, merged, now, last, torn)),
    )


def _merge_ids(said: Mapping[str, Said], now: Mapping[str, Line], last: Mapping[str, Line]) -> dict[str, str | None]:
    """Return the ids that the import decides; a cine that is not in it is a person's affair."""
    names = _renamed(said, now, last)
    decided: dict[str, str | None] = {}
    for image_id, word in said.items():
        is_ours = image_id in now and image_id in last and now[image_id].patient == last[image_id].patient
        if is_ours or (image_id not in now and image_id not in last):
            decided[image_id] = word.patient if word.is_by_header else names.get(word.patient or "", word.patient)
    return decided


def _renamed(said: Mapping[str, Said], now: Mapping[str, Line], last: Mapping[str, Line]) -> dict[str, str]:
    """Return the one other id that a person gave all cines of a patient of the last import."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for image_id, line in last.items():
        if image_id in now and not (image_id in said and said[image_id].is_by_header):
            found[line.patient].add(now[image_id].patient)
    return {patient: next(iter(ids)) for patient, ids in found.items() if len(ids) == 1}


def _merge_parts(
    lines: Mapping[str, Line], said: Mapping[str, Said], now: Mapping[str, Line], last: Mapping[str, Line]
) -> tuple[dict[str, Line], int]:
    """Return the lines with their parts, and how many patients the data set's own split tears apart."""
    by_person, by_moved, by_set, by_earlier = (defaultdict[str, set[str]](set) for _ in range(4))  # parts by patient
    ours = set()
    for image_id, line in lines.items():
        before, was = last.get(image_id), now.get(image_id)
        is_moved = was is not None and was.patient != line.patient
        is_by_person = was is not None and (before is None or line.part != before.part)
        if is_by_person and (before or line.part):  # of a cine that moves: chosen for the patient it had until now
            (by_moved if is_moved else by_person)[line.patient].add(line.part)
        if is_moved or not is_by_person:
            ours.add(image_id)
            found, part = (by_set, said[image_id].part) if image_id in said else (by_earlier, line.part)
            if part:
                found[line.patient].add(part)
    agreed = {patient: parts for patient, parts in by_moved.items() if len(parts) == 1}
    words = {**by_earlier, **by_set, **agreed, **by_person}
    sole = {patient: next(iter(parts)) for patient, parts in words.items() if len(parts) == 1}
    merged = {i: Line(x.patient, sole.get(x.patient, "") if i in ours else x.part) for i, x in lines.items()}
    return merged, len(words.keys() - sole.keys() - by_person.keys())


def _remembered(merged: Mapping[str, Line], now: Mapping[str, Line], last: Mapping[str, Line]) -> dict[str, Line]:
    """Return what the next import must take for an import's: not what a person changed, nor a person's own lines."""
    lines = {image_id: line for image_id, line in last.items() if image_id not in now}
    for image_id, line in merged.items():
        was, before = now.get(image_id), last.get(image_id)
        if was is None:
            lines[image_id] = line
        elif before is not None:
            patient = line.patient if was.patient == before.patient else before.patient
            is_ours = was.part == before.part or line.part != was.part
            lines[image_id] = Line(patient, line.part if is_ours else before.part)
    return lines


def _notes(
    said: Mapping[str, Said],
    merged: Mapping[str, Line],
    now: Mapping[str, Line],
    last: Mapping[str, Line],
    torn: int,
) -> Iterable[str]:
    changed = sum(image_id not in merged or merged[image_id].patient != line.patient for image_id, line in now.items())
    if changed:
        yield (
            f"{changed} cines had another patient in the last import; models trained before know them by the old id:"
            " train them anew."
        )
    if torn:
        yield f"The data set's split tears {torn} patients apart; it is not kept for them."
    differ = [i for i, word in said.items() if word.patient and i in merged and merged[i].patient != word.patient]
    against = sum(said[image_id].is_by_header for image_id in differ)
    if len(differ) > against:
        yield f"{len(differ) - against} cines have the patient that patients.csv gives them, not the data set's."
    if against:
        yield f"{against} lines of patients.csv name another patient than the header of their file, which goes first."
    gone = sum(image_id in last and image_id not in merged for image_id, word in said.items() if word.patient)
    if gone:
        yield f"{gone} cines stay without the line that was taken out of patients.csv."
