# SPDX-License-Identifier: Apache-2.0
"""EchoNet-Dynamic and EchoNet-Pediatric (Stanford): videos in ``Videos/``, tables FileList.csv and VolumeTracings.csv.

EchoNet-Dynamic:    [EchoNet-Dynamic/]; FileName (no suffix), Split TRAIN/VAL/TEST; tracings FileName, X1, Y1, X2, Y2,
                    Frame, the first line of a frame being the long axis. All A4C. Each video is of another person, by
                    the data set's own description: the file is the patient.
EchoNet-Pediatric:  [pediatric_echo_avi/[pediatric_echo_avi/]]{A4C,PSAX}/; FileName (.avi), Split 0-9 (a fold);
                    tracings FileName, X, Y, Frame, the Frame "No Systolic" or "No Diastolic" where there is none. No
                    table names the children. What stands before the first "-" of a file's name is taken for the
                    child: too many cines held together cost power, too few would let a split share a child.

Frames of the tracings are 0-based, as the authors' loader takes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from echo_plugin.anatomy import View
from echo_plugin.errors import DataSetError
from echo_plugin.io.datasets.source_cine import (
    PARTS,
    DataSet,
    LeftOut,
    NotTakenError,
    SourceCine,
    WeakBoxes,
    folder_in,
    named_file,
    read_table,
)
from echo_plugin.io.datasets.weak_boxes import septum_left_of_ventricle

Tracings = Mapping[str, Mapping[str, list[tuple[float, float]]]]
"""Points by file name without suffix, then by what the table calls the frame."""

LARGEST_FOLD = 9


def read_echonet_dynamic(src: Path) -> DataSet:
    """Return the cines of EchoNet-Dynamic.

    Raises
    ------
    DataSetError
        If a table or the folder of videos is missing, or a table lacks a column.
    """
    layout = "FileList.csv, VolumeTracings.csv and Videos/*.avi"
    root = folder_in(src, ("", "EchoNet-Dynamic"), "FileList.csv", layout)
    rows = read_table(root / "FileList.csv", ("FileName", "Split"))
    _require_split(rows, "FileList.csv", set(PARTS))
    tracings, notes = _tracings(root, (("X1", "Y1"), ("X2", "Y2")))

    def items() -> Iterator[SourceCine | LeftOut]:
        for row in rows:
            row["FileName"] = row["FileName"].removesuffix(".avi") + ".avi"
        yield from _videos(
            root, rows, View.A4C, tracings, parts=PARTS, place=PurePosixPath("A4C"), is_patient_per_file=True
        )

    return DataSet(items(), notes)


def read_echonet_pediatric(
    src: Path, *, validation_folds: Sequence[int] = (8,), test_folds: Sequence[int] = (9,)
) -> DataSet:
    """Return the cines of EchoNet-Pediatric; of its ten folds those not named are for training.

    Raises
    ------
    DataSetError
        If both views are missing, a table lacks a column, or a fold is named twice or out of 0 to 9.
    """
    folds = [*validation_folds, *test_folds]
    if len(set(folds)) < len(folds) or not set(folds) <= set(range(LARGEST_FOLD + 1)):
        msg = f"Folds {folds} for validation and test; different ones of 0 to {LARGEST_FOLD} are accepted."
        raise DataSetError(msg)
    parts = {str(fold): "train" for fold in range(LARGEST_FOLD + 1)}
    parts |= {str(fold): "validation" for fold in validation_folds} | {str(fold): "test" for fold in test_folds}
    places = ("", "pediatric_echo_avi", "pediatric_echo_avi/pediatric_echo_avi")
    root = folder_in(src, places, "*/FileList.csv", "A4C and PSAX, each with FileList.csv and Videos/*.avi,")
    views = {"A4C": View.A4C, "PSAX": View.PSAX_PM}
    found: list[tuple[str, list[dict[str, str]], Tracings]] = []
    notes: list[str] = ["PSAX is taken as PSAX-PM: volumes are traced at the level of the papillary muscles."]
    for name in views:
        if (root / name / "FileList.csv").is_file():
            rows = read_table(root / name / "FileList.csv", ("FileName", "Split"))
            _require_split(rows, f"{name}/FileList.csv", set(parts))
            traced: tuple[Tracings, tuple[str, ...]] = ({}, ())
            if name == "A4C":  # a short axis does not tell from the cavity's outline where the septum is
                traced = _tracings(root / name, (("X", "Y"),))
            notes += traced[1]
            found.append((name, rows, traced[0]))
    if not found:
        msg = f"Folder {src.name!r} has neither A4C/FileList.csv nor PSAX/FileList.csv; one at least is accepted."
        raise DataSetError(msg)

    def items() -> Iterator[SourceCine | LeftOut]:
        for name, rows, tracings in found:
            yield from _videos(
                root / name,
                rows,
                views[name],
                tracings,
                parts=parts,
                place=PurePosixPath(name),
                is_patient_per_file=False,
            )

    return DataSet(items(), tuple(notes))


def _videos(
    root: Path,
    rows: Sequence[Mapping[str, str]],
    view: View,
    tracings: Tracings,
    *,
    parts: Mapping[str, str],
    place: PurePosixPath,
    is_patient_per_file: bool,
) -> Iterator[SourceCine | LeftOut]:
    named = set()
    for row in rows:
        name = row["FileName"]
        try:
            if name in named:
                msg = "FileList.csv names it twice"
                raise NotTakenError(msg)
            named.add(name)
            source = named_file(root / "Videos", name)
        except NotTakenError as exc:
            yield LeftOut(f"{place}/{name}", str(exc))
            continue
        stem = PurePosixPath(name).stem
        traced = tracings.get(stem)
        yield SourceCine(
            place / name,
            source,
            stem if is_patient_per_file else stem.split("-")[0],
            view,
            part=parts[row["Split"].lower()],
            weak_boxes=None if traced is None else lambda traced=traced: _boxes(traced),  # type: ignore[misc]
        )
    for path in sorted((root / "Videos").glob("*.avi")):
        if path.name not in named:
            yield LeftOut(f"{place}/{path.name}", "FileList.csv does not name it")


def _boxes(traced: Mapping[str, list[tuple[float, float]]]) -> WeakBoxes:
    boxes = []
    for frame, points in traced.items():
        if frame.startswith("No "):
            continue
        try:
            boxes.append(septum_left_of_ventricle(np.array(points), int(frame)))
        except ValueError as exc:
            return WeakBoxes(problem=f"tracing not understood: {exc}")
    return WeakBoxes(tuple(boxes), None if boxes else "no frame is traced")


def _tracings(root: Path, pairs: Sequence[tuple[str, str]]) -> tuple[Tracings, tuple[str, ...]]:
    """Return the traced points; of lines (X1, Y1, X2, Y2) both ends. Without the table: none, and a note."""
    path = root / "VolumeTracings.csv"
    if not path.is_file():
        return {}, (f"{root.name} has no VolumeTracings.csv, so there are no boxes from tracings.",)
    tracings: dict[str, dict[str, list[tuple[float, float]]]] = {}
    columns = [column for pair in pairs for column in pair]
    for number, row in enumerate(read_table(path, ("FileName", *columns, "Frame")), start=2):
        frame = row["Frame"]
        if frame.startswith("No "):
            continue
        try:
            points = [(float(row[x]), float(row[y])) for x, y in pairs]
        except ValueError as exc:
            msg = f"Table VolumeTracings.csv: line {number} has a coordinate that is no number."
            raise DataSetError(msg) from exc
        tracings.setdefault(PurePosixPath(row["FileName"]).stem, {}).setdefault(frame, []).extend(points)
    return tracings, ("Boxes follow from tracings of the left ventricle and suppose the septum on its left.",)


def _require_split(rows: Sequence[Mapping[str, str]], table: str, accepted: set[str]) -> None:
    for number, row in enumerate(rows, start=2):
        if row["Split"].lower() not in accepted:
            words = ", ".join(sorted(accepted))
            msg = f"Table {table}: line {number} has the Split {row['Split']!r}; {words} are accepted."
            raise DataSetError(msg)
