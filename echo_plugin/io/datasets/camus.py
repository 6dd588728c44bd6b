# SPDX-License-Identifier: Apache-2.0
"""CAMUS (Leclerc 2019): apical two- and four-chamber cines of 500 adults, with masks.

    [database_nifti/]patientNNNN/patientNNNN_{2CH,4CH}_half_sequence[_gt].nii.gz, ..._{ED,ES}[_gt].nii.gz
    [database_nifti/]patientNNNN/Info_{2CH,4CH}.cfg, with a line "FrameRate: ..."
    database_split/subgroup_{training,validation,testing}.txt

The folder is the patient, by the data set's own naming. The half sequence is taken; end diastole and end systole are
frames of it, and are taken as stills where there is none. Masks: 1 left ventricle, 2 myocardium, 3 left atrium. The
first axis of the arrays is the column, as ours. The file of a cine has no times, and is taken as it is: the FrameRate
beside it is not carried, and the notes say so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path, PurePosixPath

from echo_plugin.anatomy import View
from echo_plugin.errors import DataSetError, UnreadableCineError
from echo_plugin.io.cine_file import read_cine
from echo_plugin.io.datasets.source_cine import PARTS, DataSet, LeftOut, SourceCine, WeakBoxes
from echo_plugin.io.datasets.weak_boxes import septum_of_myocardium

VIEWS = {"2CH": View.A2C, "4CH": View.A4C}
_PATIENT = re.compile(r"patient\d{4}")
_RATE = re.compile(r"^\s*FrameRate\s*[:=]\s*\d", re.IGNORECASE | re.MULTILINE)
_STILLS = ("ED", "ES")


def read_camus(src: Path) -> DataSet:
    """Return the cines of CAMUS in its NIfTI form.

    Raises
    ------
    DataSetError
        If there is no patient folder, the form is the old one, or a patient is in two parts of the split.
    """
    for place in ("database_nifti", ""):
        folder = src / place
        folders = sorted(p for p in folder.glob("patient*") if p.is_dir())
        patients = [p for p in folders if _PATIENT.fullmatch(p.name)]
        if patients:
            break
    else:
        msg = f"Folder {src.name!r} is not laid out as CAMUS; database_nifti/patientNNNN/*.nii.gz is accepted."
        raise DataSetError(msg)
    if not any(next(p.glob("*.nii.gz"), None) for p in patients) and any(next(p.glob("*.mhd"), None) for p in patients):
        msg = f"Folder {src.name!r} holds CAMUS in its old form (.mhd); the NIfTI form, database_nifti, is accepted."
        raise DataSetError(msg)
    parts = _split(src)
    notes = ["Interventricular boxes of 4CH follow from the masks: myocardium left of the ventricle's long axis."]
    if not parts:
        notes.append("There is no database_split: no split is kept.")
    if rates := sum(_states_a_rate(p / f"Info_{chambers}.cfg") for p in patients for chambers in VIEWS):
        notes.append(
            f"{rates} Info_*.cfg state a FrameRate that the files of the cines do not carry: their frame times are not"
            " known here, and frames are chosen by number."
        )
    others = [LeftOut(p.name, "the folder is not named patientNNNN") for p in folders if p not in patients]
    return DataSet(chain(_cines(patients, parts), others), tuple(notes))


def _cines(patients: list[Path], parts: dict[str, str]) -> Iterator[SourceCine | LeftOut]:
    for folder in patients:
        for chambers, view in VIEWS.items():
            stem = f"{folder.name}_{chambers}"
            names = [f"{stem}_half_sequence"]
            stills = [f"{stem}_{phase}" for phase in _STILLS if (folder / f"{stem}_{phase}.nii.gz").is_file()]
            if not (folder / f"{names[0]}.nii.gz").is_file():
                names = stills
                if not stills:
                    yield LeftOut(stem, "neither a half sequence nor a still of this view is there")
            elif stills:
                yield LeftOut(stem, "ED and ES stills are frames of the half sequence that is taken", len(stills))
            for name in names:
                yield _cine(folder, name, view, parts.get(folder.name))


def _cine(folder: Path, name: str, view: View, part: str | None) -> SourceCine:
    masks = folder / f"{name}_gt.nii.gz"
    return SourceCine(
        PurePosixPath(folder.name, f"{name}.nii.gz"),
        folder / f"{name}.nii.gz",
        folder.name,
        view,
        part=part,
        weak_boxes=(lambda: _boxes(masks)) if view is View.A4C and masks.is_file() else None,
    )


def _boxes(path: Path) -> WeakBoxes:
    try:
        masks = read_cine(path).pixels[..., 0]
    except UnreadableCineError as exc:
        return WeakBoxes(problem=f"mask cannot be read: {exc}")
    return septum_of_myocardium(masks, ventricle=1, myocardium=2, atrium=3)


def _states_a_rate(info: Path) -> bool:
    try:
        return _RATE.search(info.read_text(encoding="utf-8-sig", errors="replace")) is not None
    except FileNotFoundError:
        return False


def _split(src: Path) -> dict[str, str]:
    """Return the part of every patient; {}: the data set's split is not there."""
    parts: dict[str, str] = {}
    for word in ("training", "validation", "testing"):
        path = src / "database_split" / f"subgroup_{word}.txt"
        if not path.is_file():
            continue
        for patient in path.read_text(encoding="utf-8-sig").split():
            if parts.setdefault(patient, PARTS[word]) != PARTS[word]:
                msg = f"{path.name} names a patient that another subgroup has; one part for each is accepted."
                raise DataSetError(msg)
    return parts
