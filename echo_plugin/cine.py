# SPDX-License-Identifier: Apache-2.0
"""A cine: frames of one ultrasound recording with their times, regions and identity; image ids made of paths; grey.

Only what a sonographer would call by name; no file format, no model. Reading is in ``io``.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from pathlib import PurePosixPath
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from echo_plugin.annotations import require_image_id

ByteArray = NDArray[np.uint8]


class RegionDataType(IntEnum):
    """(0018,6014) *Region Data Type*, PS3.3 C.8.5.5.1.3; only what a heart study meets is named."""

    NONE = 0
    TISSUE = 1
    COLOUR_FLOW = 2
    PW_SPECTRAL = 3
    CW_SPECTRAL = 4
    OTHER = 255
    """Any other value of the Standard: waveforms, tables, graphics."""


@dataclass(frozen=True)
class UltrasoundRegion:
    """A rectangle of the pixel matrix that shows one kind of ultrasound data.

    ``x1, y1, x2, y2`` in px, outer corners (a header's inclusive maximum + 1).
    ``mm_per_px_x, mm_per_px_y`` are positive, or None: not calibrated.
    """

    x1: float
    y1: float
    x2: float
    y2: float
    mm_per_px_x: float | None = None
    mm_per_px_y: float | None = None
    data_type: RegionDataType = RegionDataType.TISSUE

    def __post_init__(self) -> None:
        corners = (self.x1, self.y1, self.x2, self.y2)
        if not all(math.isfinite(c) for c in corners):
            msg = f"Ultrasound region {corners} has a corner that is not finite; pixels are accepted."
            raise ValueError(msg)
        if not (0 <= self.x1 < self.x2 and 0 <= self.y1 < self.y2):
            msg = f"Ultrasound region {corners} is empty or negative; 0 <= x1 < x2 and 0 <= y1 < y2 are accepted."
            raise ValueError(msg)
        for name, spacing in (("mm_per_px_x", self.mm_per_px_x), ("mm_per_px_y", self.mm_per_px_y)):
            if spacing is not None and not (math.isfinite(spacing) and spacing > 0):
                msg = f"Ultrasound region {corners}: {name} is {spacing}; a positive number or None is accepted."
                raise ValueError(msg)
        if not isinstance(self.data_type, RegionDataType):
            msg = f"Ultrasound region {corners}: data_type is {self.data_type!r}; a RegionDataType is accepted."
            raise ValueError(msg)

    @property
    def is_calibrated(self) -> bool:
        """Whether lengths in both directions are known in mm."""
        return self.mm_per_px_x is not None and self.mm_per_px_y is not None


class Frames(Protocol):
    """Frames of a cine, decoded one at a time when asked for."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(T, H, W, C) with C = 1 (grey) or 3 (RGB)."""
        ...

    def read(self, frame_indices: Sequence[int]) -> ByteArray:
        """Return the (N, H, W, C) uint8 frames of the given 0-based indices, each in 0..T-1."""
        ...


@dataclass(frozen=True)
class FramesInMemory:
    """Frames that are already decoded: ``pixels`` is (T, H, W, C) uint8, C = 1 or 3."""

    pixels: ByteArray

    def __post_init__(self) -> None:
        if self.pixels.ndim != 4 or self.pixels.dtype != np.uint8:
            msg = f"Frames are {self.pixels.dtype} of shape {self.pixels.shape}; (T, H, W, C) uint8 is accepted."
            raise ValueError(msg)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        T, H, W, C = self.pixels.shape
        return T, H, W, C

    def read(self, frame_indices: Sequence[int]) -> ByteArray:
        return self.pixels[np.asarray(frame_indices, dtype=np.intp)]


@dataclass(frozen=True)
class Cine:
    """One ultrasound recording: a still is a cine of one frame.

    ``image_id`` : SOP Instance UID for DICOM, else the escaped path in the study folder.
    ``frame_times_ms`` : (T,) float64, ascending from the first frame; None: not known.
    ``regions`` : the valid ultrasound regions of the header; empty: none given, or none that fits the pixels.
    ``patient_id``, the UIDs, ``patient_age_days``, ``heart_rate_bpm``: None where not known.
    """

    image_id: str
    frames: Frames = field(repr=False)
    frame_times_ms: NDArray[np.float64] | None = field(default=None, repr=False)
    regions: tuple[UltrasoundRegion, ...] = ()
    patient_id: str | None = field(default=None, repr=False)
    study_instance_uid: str | None = None
    series_instance_uid: str | None = None
    sop_instance_uid: str | None = None
    patient_age_days: int | None = None
    heart_rate_bpm: float | None = None

    def __post_init__(self) -> None:
        require_image_id(self.image_id)
        self._require_a_possible_patient()
        T, H, W, C = self.frames.shape
        if T < 1 or H < 1 or W < 1:
            msg = f"Cine {self.image_id} has {T} frames of {H} x {W} px; at least one frame of one pixel is accepted."
            raise ValueError(msg)
        if C not in (1, 3):
            msg = f"Cine {self.image_id} has {C} samples per pixel; 1 (grey) or 3 (RGB) are accepted."
            raise ValueError(msg)
        times = self.frame_times_ms
        if times is not None:
            if times.shape != (T,):
                msg = f"Cine {self.image_id} has {T} frames but {times.shape} frame times; one for each is accepted."
                raise ValueError(msg)
            if not np.all(np.isfinite(times)) or np.any(np.diff(times) <= 0):
                msg = f"Cine {self.image_id} has frame times that do not ascend; ascending ms are accepted."
                raise ValueError(msg)
        for region in self.regions:
            if region.x2 > W or region.y2 > H:
                msg = f"Cine {self.image_id}: region to ({region.x2}, {region.y2}) exceeds its {W} x {H} px."
                raise ValueError(msg)

    def _require_a_possible_patient(self) -> None:
        rate, age = self.heart_rate_bpm, self.patient_age_days
        if rate is not None and not (math.isfinite(rate) and rate > 0):
            msg = f"Cine {self.image_id} has heart_rate_bpm {rate}; a positive number or None is accepted."
            raise ValueError(msg)
        if age is not None and age < 0:
            msg = f"Cine {self.image_id} has patient_age_days {age}; 0 or more, or None is accepted."
            raise ValueError(msg)

    @property
    def frame_count(self) -> int:
        """T, the number of frames."""
        return self.frames.shape[0]

    @property
    def height(self) -> int:
        """H, (0028,0010) *Rows*."""
        return self.frames.shape[1]

    @property
    def width(self) -> int:
        """W, (0028,0011) *Columns*."""
        return self.frames.shape[2]

    @property
    def frame_time_ms(self) -> float | None:
        """The mean time between frames in ms; None when it is not known or there is one frame."""
        if self.frame_times_ms is None or self.frame_count < 2:
            return None
        return float((self.frame_times_ms[-1] - self.frame_times_ms[0]) / (self.frame_count - 1))

    @cached_property
    def pixels(self) -> ByteArray:
        """All frames, (T, H, W, C) uint8: decodes the whole cine."""
        return self.frames.read(range(self.frame_count))

    def read_frames(self, frame_indices: Sequence[int]) -> ByteArray:
        """Return the (N, H, W, C) uint8 frames asked for, decoding no other.

        Raises
        ------
        IndexError
            If an index is not in 0..T-1; the message names it.
        """
        for frame_index in frame_indices:
            if not 0 <= frame_index < self.frame_count:
                msg = (
                    f"Cine {self.image_id} has no frame {frame_index} (0-based);"
                    f" 0 to {self.frame_count - 1} are accepted."
                )
                raise IndexError(msg)
        return self.frames.read(frame_indices)


LONGEST_ID = 200
_KEPT = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
_HASH_MARK = "%-"
_UID = re.compile(r"(?:0|[1-9][0-9]*)(?:\.(?:0|[1-9][0-9]*))+")


def is_uid(text: str) -> bool:
    """Whether the text is a UID as PS3.5 section 9.1 has it: up to 64 digits and dots, no leading zeros.

    Examples
    --------
    >>> is_uid("1.2.840.10008.1.2"), is_uid("1..2"), is_uid("1.02"), is_uid("")
    (True, False, False, False)
    """
    return len(text) <= 64 and _UID.fullmatch(text) is not None


def escape_path(relative: PurePosixPath) -> str:
    """Return the image id of a path relative to its study folder, escaped so that it can name a file on every system.

    Letters, digits, ``_``, ``-`` and single inner dots stay, every other byte of the UTF-8 text becomes ``%XX``. What
    would begin otherwise than with a letter or digit, or would look like a UID, gets ``_`` in front. Text of more than
    200 characters is cut and ends in ``%-`` and its SHA-256: unique still, but no longer reversible.

    Examples
    --------
    >>> escape_path(PurePosixPath("Müller 3/a4c.mp4"))
    'M%C3%BCller%203%2Fa4c.mp4'
    """
    raw = str(relative).encode("utf-8", "surrogatepass")
    pieces = []
    for place, byte in enumerate(raw):
        inner_dot = byte == ord(".") and 0 < place < len(raw) - 1 and raw[place - 1] != ord(".")
        pieces.append(chr(byte) if byte in _KEPT or inner_dot else f"%{byte:02X}")
    escaped = "".join(pieces)
    if raw.startswith(b"_"):
        escaped = "%5F" + escaped[1:]  # so that a leading "_" always is the one put in front
    if not escaped[:1].isalnum() or _UID.fullmatch(escaped):
        escaped = "_" + escaped
    if len(escaped) > LONGEST_ID:
        digest = hashlib.sha256(raw).hexdigest()
        escaped = escaped[: LONGEST_ID - len(_HASH_MARK) - len(digest)] + _HASH_MARK + digest
    return escaped


_WEIGHTS = (19595, 38470, 7471)  # 0.299, 0.587, 0.114 in 16-bit fixed point; their sum is 2 ** 16: grey stays grey


def to_grey(frames: ByteArray) -> ByteArray:
    """Return (N, H, W) uint8 grey, the luma of Rec. 601 as JPEG has it, of (N, H, W, C) frames, C = 1 or 3."""
    if frames.shape[-1] == 1:
        return frames[..., 0]
    grey = np.empty(frames.shape[:-1], dtype=np.uint8)
    for frame, out in zip(frames, grey, strict=True):
        red, green, blue = (frame[..., channel].astype(np.uint32) for channel in range(3))
        weighted = red * _WEIGHTS[0] + green * _WEIGHTS[1] + blue * _WEIGHTS[2]
        out[...] = (weighted + 32768) >> 16
    return grey
