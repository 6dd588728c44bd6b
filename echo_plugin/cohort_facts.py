# SPDX-License-Identifier: Apache-2.0
"""What is known of measured children beside their labels, and the ranges in which reports group them."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np

DAYS_OF_YEAR = 365.25

Ranges = tuple[tuple[str, float, float], ...]
"""(words, from, below) of each group."""

AGES: Ranges = (("below 1 year", 0.0, 1.0), ("1 to 5 years", 1.0, 5.0), ("5 years and more", 5.0, np.inf))
"""In years."""

QUALITIES: Ranges = (("below 0.4", 0.0, 0.4), ("0.4 to 0.7", 0.4, 0.7), ("0.7 and more", 0.7, np.inf))
"""Of a phantom's picture, 0 to 1."""


def phantom_facts(studies: Path) -> dict[str, Mapping[str, str]]:
    """Return the rows of phantom.csv by image id; none without that file."""
    try:
        with (studies / "phantom.csv").open(encoding="utf-8", newline="") as table:
            return {row["image_id"]: row for row in csv.DictReader(table) if row.get("image_id")}
    except FileNotFoundError:
        return {}


def number_in(row: Mapping[str, str], name: str) -> float | None:
    """Return a number of a row; None: it is not there."""
    text = row.get(name)
    return float(text) if text else None
