# SPDX-License-Identifier: Apache-2.0
"""The views of many files as one table, a row a file, for a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from echo_plugin.io.atomic_file import write_atomically

COLUMNS = ("path", "image_id", "frames", "view", "probability", "is_standard", "is_still", "error")
"""The first columns; the probability of each view follows as ``p(A4C)``. Empty: not known."""


def write_view_table(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the entries of ``predict --json`` as comma-separated text, whole or not at all; failed files have a row."""
    said = [result["view"] for result in results if result.get("view") is not None]
    views = dict.fromkeys(name for view in said for name in view["probabilities"])
    text = io.StringIO(newline="")
    rows = csv.DictWriter(text, [*COLUMNS, *(f"p({name})" for name in views)], restval="", lineterminator="\n")
    rows.writeheader()
    rows.writerows(_row(result) for result in results)
    write_atomically(path, text.getvalue().encode())


def _row(result: Mapping[str, Any]) -> dict[str, Any]:
    row = {name: result[name] for name in ("path", "image_id", "frames", "error") if name in result}
    view = result.get("view")
    if view is None:
        return row
    row |= {name: view[name] for name in ("view", "is_standard", "is_still") if view[name] is not None}
    row["probability"] = f"{view['probability']:.4f}"
    return row | {f"p({name})": f"{p:.4f}" for name, p in view["probabilities"].items()}
