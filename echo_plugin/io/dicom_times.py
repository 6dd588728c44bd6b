# SPDX-License-Identifier: Apache-2.0
"""When the frames of a DICOM cine were taken, and how old the patient was: from the header, or None, never a guess.

References
----------
PS3.3 C.7.6.5 (Cine), C.7.6.6 (Multi-frame: (0028,0009) *Frame Increment Pointer*), C.7.2.2 (patient's age)
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import date
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

_FRAME_TIME = 0x00181063
_FRAME_TIME_VECTOR = 0x00181065
_DAYS_IN = {"D": 1.0, "W": 7.0, "M": 365.25 / 12, "Y": 365.25}
_OLDEST_DAYS = 130 * 366


def stated(header: Dataset, keyword: str) -> Any:
    """Return the value of an element that a cine can be read without; None: absent, empty, or not of its VR."""
    try:
        value = header.get(keyword)
    except (ValueError, TypeError, OverflowError, NotImplementedError, LookupError):
        return None
    return None if value == "" else value


def positive_number(value: object) -> float | None:
    """Return the value as a float if it is a finite number above zero, else None: not known."""
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if math.isfinite(number) and number > 0 else None


def frame_times_ms(header: Dataset, frames: int) -> NDArray[np.float64] | None:
    """Return the (T,) times of the frames in ms, 0 for the first; None: not known, or a still.

    (0028,0009) *Frame Increment Pointer* says which of *Frame Time* and *Frame Time Vector* holds; without it the
    first that is given of them, then *Cine Rate* (frames/s). *Recommended Display Frame Rate* is not looked at: it
    says how fast to play the frames, which for a slowed-down cine is not how fast they were taken.
    """
    if frames < 2:
        return None
    vector = _times_of_vector(stated(header, "FrameTimeVector"), frames)
    step_ms = positive_number(stated(header, "FrameTime"))
    pointer = stated(header, "FrameIncrementPointer")
    pointers = {int(tag) for tag in pointer} if isinstance(pointer, Sequence) else {int(pointer or 0)}
    if vector is not None and (step_ms is None or (_FRAME_TIME_VECTOR in pointers and _FRAME_TIME not in pointers)):
        return vector
    if step_ms is None:
        rate = positive_number(stated(header, "CineRate"))
        step_ms = None if rate is None else 1000.0 / rate
    return None if step_ms is None else np.arange(frames, dtype=np.float64) * step_ms


def _times_of_vector(vector: object, frames: int) -> NDArray[np.float64] | None:
    """Return the running sum of (0018,1065) *Frame Time Vector*: increments in ms, the first for the first frame."""
    if isinstance(vector, str) or not isinstance(vector, Sequence) or len(vector) != frames:
        return None
    increments = np.array([float(str(step)) for step in vector], dtype=np.float64)
    if not np.all(np.isfinite(increments)) or np.any(increments[1:] <= 0):
        return None
    increments[0] = 0.0  # "the first frame always has a time increment of 0"; some writers repeat the step here
    return np.cumsum(increments)


def age_days(header: Dataset) -> int | None:
    """Return the patient's age at the study in days; None: not known.

    From birth and study date where these do not contradict (0010,1010) *Patient's Age* by more than one of its
    units (a de-identified date does), else from the age as it is stated.
    """
    age = re.fullmatch(r"([0-9]{3})([DWMY])", str(stated(header, "PatientAge") or "").strip())
    born, examined = _day(stated(header, "PatientBirthDate")), _day(stated(header, "StudyDate"))
    counted = (examined - born).days if born and examined else None
    if counted is not None and not 0 <= counted <= _OLDEST_DAYS:
        counted = None
    if age is None:
        return counted
    unit = _DAYS_IN[age[2]]
    stated_days = int(age[1]) * unit
    if counted is not None and stated_days - unit <= counted <= stated_days + 2 * unit:
        return counted
    return round(stated_days)


def _day(value: object) -> date | None:
    text = str(value or "").strip().replace(".", "")
    try:
        return date(int(text[:4]), int(text[4:6]), int(text[6:8])) if len(text) == 8 else None
    except ValueError:
        return None
