# SPDX-License-Identifier: Apache-2.0
"""What an import took and what it left out: for a person a table, for programs JSON. No patient is named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from echo_plugin.io.datasets.source_cine import LeftOut

IMPORT_FILE = "import.json"
MOST_NAMED = 20000
"""So many things that were left out are named in the JSON; the counts by reason are of all."""


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
