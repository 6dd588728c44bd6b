# SPDX-License-Identifier: Apache-2.0
"""CardiacNet (ECCV 2024): apical four-chamber cines with atrial septal defect or pulmonary hypertension, with masks.

    [CardiacNet/]CardiacNet-ASD/{ASD,Non-ASD}/NNN_image.nii.gz and NNN_label.nii.gz, CardiacNet-PAH/{PAH,Non-PAH}/...
    NNN_image.nii can also be a folder that holds <stem>_image.nii, with "patient-<id>" in the stem

The patient is that of ``patient-<id>``, the data set's own naming and the only place where it says; a number NNN
counts cines, and files without more have no patient id here. Masks are taken to be those of the same authors'
CardiacUDA (1 left ventricle, 2 left atrium, 3 right atrium, 4 right ventricle): a mask whose chambers do not lie so is
not used. Arrays may be stored (row, column, frame); where the mask shows it, the cine is written anew, upright.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from echo_plugin.anatomy import Defect, View
from echo_plugin.errors import DataSetError, UnreadableCineError
from echo_plugin.io.cine_file import read_cine
from echo_plugin.io.datasets.source_cine import DataSet, LeftOut, SourceCine, WeakBoxes
from echo_plugin.io.datasets.weak_boxes import septa_between_chambers

GROUPS: dict[str, Defect | None] = {
    "CardiacNet-ASD/ASD": Defect.ASD,
    "CardiacNet-ASD/Non-ASD": Defect.NORMAL,
    "CardiacNet-PAH/PAH": None,
    "CardiacNet-PAH/Non-PAH": None,
}
NOTES = (
    "Non-ASD is taken as Normal; the data set says no more than that these hearts have no atrial septal defect.",
    "PAH and Non-PAH carry no septal defect.",
    "Boxes follow from the masks of the four chambers, numbered as in the same authors' CardiacUDA.",
)
_SUFFIXES = (".nii.gz", ".nii")
_PATIENT = re.compile(r"patient[-_]?([A-Za-z0-9]+)", re.IGNORECASE)


def read_cardiacnet(src: Path) -> DataSet:
    """Return the cines of CardiacNet.

    Raises
    ------
    DataSetError
        If none of its four groups is there.
    """
    for place in ("", "CardiacNet"):
        groups = [group for group in GROUPS if (src / place / group).is_dir()]
        if groups:
            return DataSet(_cines(src / place, groups), NOTES)
    msg = (
        f"Folder {src.name!r} is not laid out as CardiacNet; CardiacNet-ASD/ASD/NNN_image.nii.gz and so on is accepted."
    )
    raise DataSetError(msg)


def _cines(root: Path, groups: list[str]) -> Iterator[SourceCine | LeftOut]:
    for group in groups:
        taken, masks = set(), set()
        for path in sorted((root / group).iterdir()):
            name = _without_suffix(path.name)
            if name is None or not name.endswith("_image"):
                if name is None or not name.endswith("_label"):
                    yield LeftOut(f"{group}/{path.name}", "it is neither NNN_image nor NNN_label")
                continue
            images = [path] if path.is_file() else sorted(p for p in path.iterdir() if _is_image(p))
            if not images:
                yield LeftOut(f"{group}/{path.name}", "the folder holds no *_image.nii")
            for image in images:
                taken.add(image.name)
                masks.add(labels := _labels(root / group, path, image))
                place = PurePosixPath(group, *image.relative_to(root / group).parts)
                yield _cine(image, place, labels, GROUPS[group])
        for mask in sorted((root / group).rglob("*_label.nii*")):
            if mask.is_file() and mask not in masks:
                yield LeftOut(f"{group}/{mask.relative_to(root / group).as_posix()}", "the mask has no image")
        if not taken:
            yield LeftOut(group, "the folder holds no cine")


def _cine(image: Path, place: PurePosixPath, labels: Path | None, defect: Defect | None) -> SourceCine:
    match = _PATIENT.search(image.name)
    boxes = None if labels is None else lambda: _boxes(labels)
    return SourceCine(place, image, match[1] if match else None, View.A4C, defect, weak_boxes=boxes)


def _labels(group: Path, entry: Path, image: Path) -> Path | None:
    """Return the mask of an image: beside it, or in the folder beside its folder."""
    name = image.name.replace("_image.", "_label.")
    places = [image.with_name(name), group / entry.name.replace("_image.", "_label.") / name]
    return next((path for path in places if path.is_file()), None)


def _boxes(path: Path) -> WeakBoxes:
    try:
        masks = read_cine(path).pixels[..., 0]
    except UnreadableCineError as exc:
        return WeakBoxes(problem=f"mask cannot be read: {exc}")
    return septa_between_chambers(masks, lv=1, la=2, ra=3, rv=4)


def _without_suffix(name: str) -> str | None:
    return next((name.removesuffix(suffix) for suffix in _SUFFIXES if name.endswith(suffix)), None)


def _is_image(path: Path) -> bool:
    name = _without_suffix(path.name)
    return path.is_file() and name is not None and name.endswith("_image")
