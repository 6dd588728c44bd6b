# SPDX-License-Identifier: Apache-2.0
"""Where each frame of a DICOM cine lies in its file, found without reading the frames.

Native pixel data are cut by arithmetic. Encapsulated ones are items; which of them make a frame is said by the
extended or the basic offset table where one is there and true, else by one item a frame, else by where a compressed
stream begins.

References
----------
PS3.5 A.4 (encapsulation), PS3.3 C.7.6.3.1.8 (Extended Offset Table)
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np

from echo_plugin.io.dicom_header import UNDEFINED_LENGTH, DicomHeader
from echo_plugin.io.stored_bytes import StoredBytes, unreadable

Span = tuple[int, int]
"""Offset and length in bytes."""

_ITEM, _DELIMITER = (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)
_STREAM_STARTS = (b"\xff\xd8", b"\xff\x4f", b"\x00\x00\x00\x0c")
"""JPEG and JPEG-LS SOI, JPEG 2000 SOC, JP2 signature box."""


def native_spans(header: DicomHeader, stored: StoredBytes, frame_length: int) -> list[tuple[Span, ...]]:
    """Return the one span of each of T frames of uncompressed pixel data.

    Raises
    ------
    UnreadableCineError
        If the file holds fewer bytes than the frames need, or a whole frame more.
    """
    if header.pixel_length == UNDEFINED_LENGTH:
        raise unreadable(stored.path, "is uncompressed by its transfer syntax but has encapsulated pixel data.")
    needed = frame_length * header.frames
    if not needed <= header.pixel_length < needed + frame_length + (frame_length == 1):
        raise unreadable(
            stored.path,
            f"states {header.frames} frames of {frame_length} bytes but has {header.pixel_length} bytes of pixel data.",
        )
    if header.pixel_offset + needed > stored.length:
        raise unreadable(
            stored.path, f"is truncated: it ends at byte {stored.length}, pixels at {header.pixel_offset + needed}."
        )
    return [((header.pixel_offset + index * frame_length, frame_length),) for index in range(header.frames)]


def encapsulated_spans(header: DicomHeader, stored: StoredBytes) -> list[tuple[Span, ...]]:
    """Return the spans of the fragments of each of T compressed frames.

    Raises
    ------
    UnreadableCineError
        If the items are damaged or cut off, or do not make the stated number of frames.
    """
    if header.pixel_length != UNDEFINED_LENGTH:
        raise unreadable(stored.path, "is compressed by its transfer syntax but its pixel data are not encapsulated.")
    with stored.open() as file:
        items = _items(header.pixel_offset, stored, file)
        if not items:
            raise unreadable(stored.path, "has encapsulated pixel data without any item.")
        (table_offset, table_length), fragments = items[0], items[1:]
        while fragments and fragments[-1][1] == 0:
            fragments.pop()
        if len(fragments) < header.frames:
            raise unreadable(stored.path, f"states {header.frames} frames but holds {len(fragments)} fragments.")
        basic = stored.exactly(file, table_offset, table_length // 4 * 4)
        starts = (
            _starts_by_table(_extended_table(header), fragments, header.frames)
            or _starts_by_table([entry for (entry,) in struct.iter_unpack("<I", basic)], fragments, header.frames)
            or _starts_by_count(len(fragments), header.frames)
            or _starts_by_stream(stored, file, fragments)
        )
    if len(starts) != header.frames:
        raise unreadable(stored.path, f"states {header.frames} frames but its pixel data hold {len(starts)}.")
    ends = [*starts[1:], len(fragments)]
    return [tuple(fragments[start:end]) for start, end in zip(starts, ends, strict=True)]


def frame_bytes(header: DicomHeader, stored: StoredBytes, file: BinaryIO, spans: Sequence[Span]) -> bytes:
    """Return the stored bytes of one frame, its fragments joined, in the order of its samples."""
    if header.is_little_endian or header.bits_allocated != 8 or header.pixel_vr != "OW":
        return b"".join(stored.exactly(file, *span) for span in spans)
    # 8-bit samples in big endian 16-bit words, PS3.5 annex D: whole words are read, then their bytes swapped
    ((offset, length),) = spans
    lead = (offset - header.pixel_offset) % 2
    words = stored.exactly(file, offset - lead, lead + length + (lead + length) % 2)
    return np.frombuffer(words, dtype=np.uint16).byteswap().tobytes()[lead : lead + length]


def _items(offset: int, stored: StoredBytes, file: BinaryIO) -> list[Span]:
    """Return the spans of the values of all items up to the delimiter or, where that is missing, the end."""
    items: list[Span] = []
    while offset + 8 <= stored.length:
        file.seek(offset)
        group, element, length = struct.unpack("<HHI", file.read(8))
        if (group, element) == _DELIMITER:
            return items
        if (group, element) != _ITEM or length == UNDEFINED_LENGTH:
            raise unreadable(stored.path, f"has damaged pixel data: no item begins at byte {offset}.")
        if offset + 8 + length > stored.length:
            raise unreadable(
                stored.path,
                f"is truncated: it ends at byte {stored.length}, item {len(items)} at {offset + 8 + length}.",
            )
        items.append((offset + 8, length))
        offset += 8 + length
    return items


def _extended_table(header: DicomHeader) -> list[int]:
    raw = header.dataset.get("ExtendedOffsetTable") or b""
    return [entry for (entry,) in struct.iter_unpack("<Q", raw[: len(raw) // 8 * 8])]


def _starts_by_table(table: Sequence[int], fragments: Sequence[Span], frames: int) -> list[int]:
    """Return the index of the first fragment of each frame by an offset table; empty: none, or it is wrong."""
    if len(table) != frames or table[0] != 0:
        return []
    first_item = fragments[0][0] - 8
    index_of = {offset - 8 - first_item: index for index, (offset, _) in enumerate(fragments)}
    starts = [index_of.get(entry, -1) for entry in table]
    ascending = all(one < other for one, other in itertools.pairwise(starts))
    return starts if ascending and min(starts) >= 0 else []


def _starts_by_count(fragment_count: int, frames: int) -> list[int]:
    """Return the starts where the count alone tells them: an item for each frame; empty: it does not."""
    return list(range(frames)) if fragment_count == frames else []


def _starts_by_stream(stored: StoredBytes, file: BinaryIO, fragments: Sequence[Span]) -> list[int]:
    """Return the fragments in which a compressed stream begins."""
    starts = []
    for index, (offset, length) in enumerate(fragments):
        if stored.exactly(file, offset, min(length, 4)).startswith(_STREAM_STARTS):
            starts.append(index)
    return starts if starts[:1] == [0] else []
