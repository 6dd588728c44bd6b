# SPDX-License-Identifier: Apache-2.0
"""What the readers of data sets share: cines to take, things to leave out, tables; and the report of an import.

The report is a table for a person and JSON for programs. No patient is named in it.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from echo_plugin.anatomy import Defect, View
from echo_plugin.annotations import SeptalBox
from echo_plugin.errors import DataSetError

PARTS = {"train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation"}
PARTS |= {"test": "test", "testing": "test"}
"""What data sets call the parts of their split, in lower case, and what we call them."""

IMPORT_FILE = "import.json"
MOST_NAMED = 20000
"""So many things that were left out are named in the JSON; the counts by reason are of all."""
WEAK_SCORE = 0.5
"""Score of a box that was worked out from a mask or a tracing: no person drew it, no detector saw it."""


@dataclass(frozen=True)
class WeakBoxes:
    """Boxes of one cine that follow from its mask or tracing.

    ``problem`` : why there are none, one phrase; None: nothing went wrong. ``is_transposed`` : the mask shows that the
    file holds rows where columns belong.
    """

    boxes: tuple[SeptalBox, ...] = ()
    problem: str | None = None
    is_transposed: bool = False


@dataclass(frozen=True)
class SourceCine:
    """A cine of a data set.

    ``place`` : where it goes in the study folder. ``source`` : its file; of a cine in ``frames``, one picture each,
    their folder. ``patient_id`` : None where the data set does not say. ``part`` : train, validation or test of the
    data set's own split. ``weak_boxes`` : works them out when asked; None: the data set has nothing to do it with.
    """

    place: PurePosixPath
    source: Path
    patient_id: str | None = field(repr=False)
    view: View | None = None
    defect: Defect | None = None
    part: str | None = None
    frames: tuple[Path, ...] = ()
    weak_boxes: Callable[[], WeakBoxes] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class LeftOut:
    """What of a data set is not taken, and why; ``count`` : how many things of the kind."""

    what: str
    reason: str
    count: int = 1


@dataclass(frozen=True)
class DataSet:
    """What a reader found.

    ``notes`` : what a person must know of how labels were taken, one sentence each. ``is_header_first`` : a DICOM
    header knows the patient better than ``patient_id``; else a header that groups files otherwise is a contradiction.
    """

    items: Iterator[SourceCine | LeftOut]
    notes: tuple[str, ...] = ()
    is_header_first: bool = False


class NotTakenError(ValueError):
    """Raised for one file that cannot be taken; its text is the reason."""


class AbsentFileError(NotTakenError):
    """Raised for a file that a table names and that is not there."""


def read_table(path: Path, columns: Sequence[str], *, label: str | None = None) -> list[dict[str, str]]:
    """Return the rows of a comma-separated table; every value is stripped, an absent one is "".

    ``label`` : what messages call it; None: by its name.

    Raises
    ------
    DataSetError
        If the table is missing, cannot be read, or lacks one of ``columns``.
    """
    name = label or path.name
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            found = [column.strip() for column in rows.fieldnames or ()]
            missing = [column for column in columns if column not in found]
            if missing:
                msg = f"Table {name} lacks the column {missing[0]!r}; its first line has {found}."
                raise DataSetError(msg)
            rows.fieldnames = found
            return [{key: (value or "").strip() for key, value in row.items() if key in found} for row in rows]
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        msg = f"Table {name} cannot be read ({type(exc).__name__}); a comma-separated UTF-8 file is accepted."
        raise DataSetError(msg) from exc


def named_file(root: Path, name: str) -> Path:
    """Return the file that a table names below ``root``; the name may not lead out of it.

    Raises
    ------
    NotTakenError
        If the name is absolute, climbs or is hidden.
    AbsentFileError
        If no file is there.
    """
    relative = PurePosixPath(name)
    is_plain = name.isprintable() and not set(name) & {"\\", ":"}
    if not relative.parts or not is_plain or relative.is_absolute() or ".." in relative.parts:
        msg = "the table names a path that leads out of the data set"
        raise NotTakenError(msg)
    if any(part.startswith(".") for part in relative.parts):
        msg = "its name begins with a dot"
        raise NotTakenError(msg)
    path = root.joinpath(*relative.parts)
    if not path.is_file():
        msg = "the table names it, but the file is not there"
        raise AbsentFileError(msg)
    return path


def folder_in(src: Path, places: Sequence[str], marker: str, layout: str) -> Path:
    """Return the first of ``places`` in ``src`` that holds ``marker`` (a pattern); "" is ``src`` itself.

    Raises
    ------
    DataSetError
        If none does; ``layout`` says in words what is accepted.
    """
    for place in places:
        if next((src / place).glob(marker), None) is not None:
            return src / place
    msg = f"Folder {src.name!r} has no {marker} where it is looked for; {layout} is accepted."
    raise DataSetError(msg)


@dataclass(frozen=True)
class ClassCount:
    """How many cines, of how many patients, a class has."""

    cines: int
    patients: int


@dataclass(frozen=True)
class ImportReport:
    """The outcome of one import.

    ``views, defects, parts`` : counts by name, "" for cines without. ``boxes`` : weak boxes carried, on
    ``boxed_cines``. ``without_patient`` : cines that cannot be learned from before somebody names their patient.
    """

    data_set: str
    source: str
    is_copy: bool
    cines: int
    patients: int
    views: Mapping[str, ClassCount]
    defects: Mapping[str, ClassCount]
    parts: Mapping[str, ClassCount]
    boxes: int
    boxed_cines: int
    without_patient: int
    left_out: Sequence[LeftOut]
    notes: Sequence[str]

    @property
    def left_out_by_reason(self) -> dict[str, int]:
        """How many things were left out for each reason, the commonest first."""
        counts: Counter[str] = Counter()
        for item in self.left_out:
            counts[item.reason] += item.count
        return dict(counts.most_common())

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON-ready values."""
        named = [asdict(item) for item in self.left_out[:MOST_NAMED]]
        return {**asdict(self), "left_out": named, "left_out_by_reason": self.left_out_by_reason}

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Return (kind, name, cines, patients) lines of a table."""
        lines = []
        for kind, counts in (("view", self.views), ("defect", self.defects), ("split", self.parts)):
            if set(counts) == {""}:
                continue
            lines += [(kind, n or "(none)", str(c.cines), str(c.patients)) for n, c in sorted(counts.items())]
        lines.append(("weak boxes", str(self.boxes), str(self.boxed_cines), ""))
        return [*lines, ("all", "", str(self.cines), str(self.patients))]
