# SPDX-License-Identifier: Apache-2.0
"""NED, the neonatal echocardiogram data set (ISBI 2025): 1,049 cines of 40 cases in 16 views.

Raw:        [neo-echoset-raw/][echos_video/]<case>/labels.csv (Filename, Classification) and <case>/*.mp4
Processed:  [neo-echoset/]<case>/<CLASS>/<video>/img_00001.jpg ...

The folder of a case is the patient: the data set's own definition, by which its authors make their folds. The processed
form has one picture for each frame and no frame rate; its frames are packed into one file without times.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path, PurePosixPath

from echo_plugin.anatomy import View
from echo_plugin.errors import DataSetError
from echo_plugin.io.datasets.source_cine import DataSet, LeftOut, NotTakenError, SourceCine, named_file, read_table

CLASSES = {
    "APICAL_5C": View.A5C,
    "APICAL_4C_LVRV": View.A4C,
    "APICAL_2C_LV": View.A2C,
    "APICAL_3C_LV": View.A3C_LV,
    "PLAX_LV": View.PLAX_LV,
    "PLAX_RV_IN": View.PLAX_RV_IN,
    "PLAX_RV_OUT": View.PLAX_RV_OUT,
    "PSAX_AV": View.PSAX_AV,
    "PSAX_MV": View.PSAX_MV,
    "PSAX_PAPS": View.PSAX_PM,
    "PSAX_APEX": View.PSAX_APEX,
    "APICAL_3C_RV": View.A3C_RV,
    # the spelling of the four rarer ones is not published: the paper's own words, with and without abbreviation
    "PA_BRANCH": View.PA_BRANCH,
    "PULMONARY_ARTERY_BRANCH": View.PA_BRANCH,
    "DUCTAL_CUT": View.DUCTAL_CUT,
    "AORTIC_ARCH": View.SUPRASTERNAL_ARCH,
    "SUBCOSTAL_IVC": View.SUBCOSTAL_IVC,
    "SUBCOSTAL_INFERIOR_VENA_CAVA": View.SUBCOSTAL_IVC,
}
"""The authors' names of the views."""

LAYOUT = "<case>/labels.csv with <case>/*.mp4, or <case>/<CLASS>/<video>/img_00001.jpg"
_PROCESSED_PLACES = ("", "neo-echoset")
_PROCESSED_PICTURES = "*/*/*/img_*.jp*g"
_PICTURE = re.compile(r"img_(\d+)\.jpe?g", re.IGNORECASE)


def read_ned(src: Path) -> DataSet:
    """Return the cines of NED, raw or processed; where both are there, the raw ones.

    Raises
    ------
    DataSetError
        If the folder is laid out otherwise.
    """
    for place in ("", "echos_video", "neo-echoset-raw/echos_video"):
        if next((src / place).glob("*/labels.csv"), None) is not None:
            return DataSet(chain(_raw(src / place), _passed_over(src)))
    for place in _PROCESSED_PLACES:
        if next((src / place).glob(_PROCESSED_PICTURES), None) is not None:
            return DataSet(
                _processed(src / place), ("Frames are packed into one file each; frame times are not known.",)
            )
    msg = f"Folder {src.name!r} is not laid out as NED; {LAYOUT} is accepted."
    raise DataSetError(msg)


def view_of_class(name: str) -> View:
    """Return the view of one of NED's class names.

    Raises
    ------
    NotTakenError
        If the name is none of them.
    """
    key = re.sub(r"[\s\-]+", "_", name.strip()).upper()
    if key not in CLASSES:
        msg = f"class {name!r} is none of NED's ({', '.join(CLASSES)})"
        raise NotTakenError(msg)
    return CLASSES[key]


def _raw(root: Path) -> Iterator[SourceCine | LeftOut]:
    for case in sorted(path for path in root.iterdir() if path.is_dir()):
        videos = sorted(path for path in case.iterdir() if path.suffix.lower() == ".mp4")
        if not (case / "labels.csv").is_file():
            if videos or not _is_processed(case):
                yield LeftOut(case.name, "the case has no labels.csv", max(len(videos), 1))
            continue
        try:
            rows = read_table(case / "labels.csv", ("Filename", "Classification"), label=f"{case.name}/labels.csv")
        except DataSetError as exc:  # the other cases are no worse for it
            yield LeftOut(case.name, str(exc), max(len(videos), 1))
            continue
        named = set()
        for row in rows:
            name = row["Filename"] if row["Filename"].lower().endswith(".mp4") else f"{row['Filename']}.mp4"
            try:
                if name in named:
                    msg = "labels.csv names it twice"
                    raise NotTakenError(msg)
                named.add(name)
                source, view = named_file(case, name), view_of_class(row["Classification"])
            except NotTakenError as exc:
                yield LeftOut(f"{case.name}/{name}", str(exc))
                continue
            yield SourceCine(PurePosixPath(case.name, name), source, case.name, view)
        for path in videos:
            if path.name not in named:
                yield LeftOut(f"{case.name}/{path.name}", "labels.csv does not name it")


def _passed_over(src: Path) -> Iterator[LeftOut]:
    """Yield the processed form of a set whose raw form is taken."""
    for place in _PROCESSED_PLACES:
        videos = {path.parent for path in (src / place).glob(_PROCESSED_PICTURES)}
        if videos:
            yield LeftOut(place or src.name, "the processed form beside the raw one, which is taken", len(videos))


def _is_processed(folder: Path) -> bool:
    """Whether it is a case of the processed form, or the folder of all its cases."""
    return any(next(folder.glob(f"{way}/img_*.jp*g"), None) is not None for way in ("*/*", "*/*/*"))


def _processed(root: Path) -> Iterator[SourceCine | LeftOut]:
    for video in sorted(path for path in root.glob("*/*/*") if path.is_dir()):
        case, kind = video.parts[-3], video.parts[-2]
        try:
            view, frames = view_of_class(kind), _ordered_frames(video)
        except NotTakenError as exc:
            yield LeftOut(f"{case}/{kind}/{video.name}", str(exc))
            continue
        yield SourceCine(PurePosixPath(case, kind, f"{video.name}.nrrd"), video, case, view, frames=frames)


def _ordered_frames(video: Path) -> tuple[Path, ...]:
    found = {int(match[1]): path for path in video.iterdir() if (match := _PICTURE.fullmatch(path.name))}
    if not found or sorted(found) != list(range(1, len(found) + 1)):
        msg = f"its {len(found)} pictures are not img_00001.jpg and so on without a gap"
        raise NotTakenError(msg)
    return tuple(found[number] for number in sorted(found))
