# SPDX-License-Identifier: Apache-2.0
"""What of a study folder the phantom made, and the command that made it: no figure on phantoms is called another."""

from __future__ import annotations

import csv
import json
from pathlib import Path


def phantom_ids(studies: Path) -> frozenset[str]:
    """Return the image ids that the folder's phantom.csv lists; none without that file."""
    try:
        with (studies / "phantom.csv").open(encoding="utf-8", newline="") as table:
            return frozenset(row["image_id"] for row in csv.DictReader(table) if row.get("image_id"))
    except FileNotFoundError:
        return frozenset()


def phantom_command(studies: Path) -> str | None:
    """Return the command that makes the phantoms of the folder again; None: its phantom.json does not say."""
    try:
        made = json.loads((studies / "phantom.json").read_text(encoding="utf-8"))
        command = f"monailabel-echo phantom DIR --patients {made['patients']} --seed {made['seed']}"
        command += f" --frames {made['frames']}"
        if made.get("kind") == "fetal":
            return f"{command} --fetal"
        return command + (f" --views {','.join(made['views'])}" if made["views"] else "")
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
