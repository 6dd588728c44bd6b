# SPDX-License-Identifier: Apache-2.0
"""One patient from two sources: the header of a DICOM file, and what the data set says of the file.

A study folder always believes a header before patients.csv. So a file whose header is silent must be given the id that
the headers of its patient have: with the data set's own id one patient would be two, and could be in training and test.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

TwoSources = tuple[str | None, str | None]
"""The patient of one cine by its header and by the data set; None: not said."""


def contradictions(sources: Sequence[TwoSources]) -> list[int]:
    """Return the indices of the cines whose header's patients and the data set's do not stand one to one."""
    of_set, of_header = _headers_by_set_id(sources), _headers_by_set_id([(own, header) for header, own in sources])
    return [
        index
        for index, (header, own) in enumerate(sources)
        if header and own and (len(of_set[own]) > 1 or len(of_header[header]) > 1)
    ]


def one_patient_each(sources: Sequence[TwoSources]) -> tuple[list[str | None], tuple[str, ...]]:
    """Return the patient of every cine, in order, and notes of what was joined.

    A header says it; else the headers of the other files that the data set gives to the same patient, if they agree;
    else the data set, if there are none. Where they do not agree nobody knows, and None keeps the cine from learning.

    >>> one_patient_each([("anna", "p1"), (None, "p1"), (None, "p2")])[0]
    ['anna', 'anna', 'p2']
    """
    headers = _headers_by_set_id(sources)
    patients: list[str | None] = []
    joined = unknown = 0
    for header, own in sources:
        found = headers.get(own, set()) if own else set()
        is_silent = bool(own) and not header
        joined += is_silent and found not in (set(), {own}) and len(found) == 1
        unknown += is_silent and len(found) > 1
        patients.append(header or (own if not found else next(iter(found)) if len(found) == 1 else None))
    notes = []
    if joined:
        notes.append(f"{joined} cines without a patient in the header have the id that headers give their patient.")
    if unknown:
        notes.append(
            f"{unknown} cines have no patient: their own header is silent, and those of the files that the data set"
            " holds together with them name several."
        )
    return patients, tuple(notes)


def _headers_by_set_id(sources: Sequence[TwoSources]) -> Mapping[str, set[str]]:
    found: defaultdict[str, set[str]] = defaultdict(set)
    for header, own in sources:
        if header and own:
            found[own].add(header)
    return found
