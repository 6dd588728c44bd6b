# SPDX-License-Identifier: Apache-2.0
"""The header of a DICOM file as DICOM JSON without its bulk data (PS3.18 F.2.7): large values become addresses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset

from echo_plugin.io.stored_bytes import damage_named, unreadable

LARGEST_INLINE_BYTES = 4096
"""A palette of 16 bit and 256 entries has 512; an ECG or a private preview has more and is fetched when asked for."""


def read_metadata(path: Path, bulk_url: str) -> dict[str, Any]:
    """Return the DICOM JSON of a file; pixel data are left out.

    ``bulk_url`` : where large values are found; their path (``00189999/0/00281201``) is appended.

    Raises
    ------
    UnreadableCineError
        If the header cannot be parsed.
    """
    with damage_named(path, "a DICOM header that cannot be parsed"):
        dataset = dcmread(path, stop_before_pixels=True, force=True)
        return _without_bulk(dataset.to_json_dict(suppress_invalid_tags=True), bulk_url)


def read_bulk_value(path: Path, place: Sequence[str]) -> bytes:
    """Return the bytes of the element at ``place``: tags, each but the last followed by the number of an item.

    Raises
    ------
    UnreadableCineError
        If there is no such element, or it holds no bytes.
    """
    with damage_named(path, f"no bulk data at {'/'.join(place)[:80]!r}"):
        dataset: Any = dcmread(path, stop_before_pixels=True, force=True)
        for part in place:
            dataset = dataset[int(part, 16)].value if isinstance(dataset, Dataset) else dataset[int(part)]
        if not isinstance(dataset, bytes):
            raise unreadable(path, f"has no bulk data at {'/'.join(place)[:80]!r}.")
        return dataset


def _with_nulls(values: list[Any] | None) -> dict[str, list[Any]]:
    """Return the values as PS3.18 F.2.5 has them: one that is empty among several is null."""
    return {} if values is None else {"Value": [None if value == "" else value for value in values]}


def _without_bulk(attributes: dict[str, Any], url: str) -> dict[str, Any]:
    answer = {}
    for tag, element in attributes.items():
        here = f"{url}/{tag}"
        if len(element.get("InlineBinary", "")) * 3 // 4 > LARGEST_INLINE_BYTES:
            answer[tag] = {"vr": element["vr"], "BulkDataURI": here}
        elif element.get("vr") == "SQ":
            items = [_without_bulk(item, f"{here}/{n}") for n, item in enumerate(element.get("Value") or ())]
            answer[tag] = {"vr": "SQ", "Value": items} if items else {"vr": "SQ"}
        else:
            answer[tag] = {**element, **_with_nulls(element.get("Value"))}
    return answer
