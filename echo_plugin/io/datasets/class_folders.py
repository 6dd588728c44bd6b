# SPDX-License-Identifier: Apache-2.0
"""Any set with one folder per class: ``<class>/[<patient>/...]file``, of videos, pictures or DICOM files.

A class is a view (A4C, PSAX-AV, ...) or a defect (Normal, ASD, VSD); capitals, blanks, "-" and "_" do not matter. So
the first-trimester set (FEFT: aorta, atrioventricular flows, V sign, X sign, other) is read too. A folder train, val or
test above the classes is kept as the split.

Who the patient is: the DICOM header says it, or ``patients.csv`` beside the classes (path or image_id, patient_id), or
else the folder between class and file, by this layout's definition. Never the name of a file: without any of the three
a cine has no patient id, and cannot be learned from before somebody gives it one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path, PurePosixPath

from echo_plugin.anatomy import Defect, View
from echo_plugin.cine import escape_path
from echo_plugin.errors import DataSetError
from echo_plugin.io.datasets.source_cine import PARTS, DataSet, LeftOut, SourceCine
from echo_plugin.io.patients_file import PATIENTS_FILE, read_patients
from echo_plugin.io.study_index import is_image_name

_FETAL_NAMES = {
    "aorta": View.FETAL_AORTA,
    "avflows": View.FETAL_AV_FLOWS,
    "avflow": View.FETAL_AV_FLOWS,
    "atrioventricularflows": View.FETAL_AV_FLOWS,
    "atrioventricularflow": View.FETAL_AV_FLOWS,
    "vsign": View.FETAL_V_SIGN,
    "xsign": View.FETAL_X_SIGN,
}


def read_class_folders(src: Path) -> DataSet:
    """Return the cines of a set that has one folder per class.

    Raises
    ------
    DataSetError
        If no folder is named like a view or a defect.
    """
    patients = read_patients(src / PATIENTS_FILE)
    roots: list[tuple[Path, str | None]] = [(src, None)]
    roots += [(path, PARTS[path.name.lower()]) for path in _folders(src) if path.name.lower() in PARTS]
    classes = [(folder, part) for root, part in roots for folder in _folders(root)]
    classes = [(folder, part) for folder, part in classes if folder.name.lower() not in PARTS]
    if not any(class_of(folder.name) for folder, _ in classes):
        found = ", ".join(sorted(folder.name for folder, _ in classes)[:8]) or "none"
        accepted = ", ".join([*(view.value for view in View), *(defect.value for defect in Defect)])
        msg = f"Folder {src.name!r} has no folder of a class (found: {found}); {accepted} are accepted."
        raise DataSetError(msg)
    loose = _loose(src, [root for root, _ in roots])
    return DataSet(chain(_cines(src, classes, patients), loose), is_header_first=True)


def class_of(name: str) -> View | Defect | None:
    """Return the view or defect that a folder is named by; None: neither.

    >>> class_of("psax av"), class_of("V_sign"), class_of("asd"), class_of("misc")
    (<View.PSAX_AV: 'PSAX-AV'>, <View.FETAL_V_SIGN: 'FETAL-V-SIGN'>, <Defect.ASD: 'ASD'>, None)
    """
    names: dict[str, View | Defect] = {_plain(d.value): d for d in Defect} | _FETAL_NAMES
    names |= {_plain(word): view for view in View for word in (view.name, view.value)}
    return names.get(_plain(name))


def _cines(
    src: Path, classes: list[tuple[Path, str | None]], patients: dict[str, str]
) -> Iterator[SourceCine | LeftOut]:
    for folder, part in classes:
        label = class_of(folder.name)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        if label is None:
            yield LeftOut(str(folder.relative_to(src)), "its name is neither a view nor a defect", max(len(files), 1))
            continue
        for path in files:
            place = PurePosixPath(*path.relative_to(src).parts)
            between = path.relative_to(folder).parts[:-1]
            if not is_image_name(path.name) or any(name.startswith(".") for name in between):
                yield LeftOut(str(place), "its name is none of a video, picture or DICOM file")
                continue
            patient = patients.get(escape_path(place)) or (between[0] if between else None)
            view = label if isinstance(label, View) else None
            defect = label if isinstance(label, Defect) else None
            yield SourceCine(place, path, patient, view, defect, part)


def _loose(src: Path, roots: list[Path]) -> Iterator[LeftOut]:
    for root in roots:
        for path in sorted(root.iterdir()):
            if path.is_file() and path.suffix and is_image_name(path.name):
                yield LeftOut(path.relative_to(src).as_posix(), "it is in no folder of a class")


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
