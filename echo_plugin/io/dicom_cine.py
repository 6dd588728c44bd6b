# SPDX-License-Identifier: Apache-2.0
"""A DICOM ultrasound file as a cine: where each frame lies in the file, and its decoding when it is asked for.

The header is in ``dicom_header``, the decoders and colours in ``frame_codecs``. Frames are found without reading them.
Native pixel data are cut by arithmetic. Encapsulated ones are items; which of them make a frame is said by the extended
or the basic offset table where one is there and true, else by one item a frame, else by where a compressed stream
begins.

References
----------
PS3.5 A.4 (encapsulation), PS3.3 C.7.6.3.1.8 (Extended Offset Table)
"""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
from pydicom import uid

from echo_plugin.cine import ByteArray, Cine, escape_path, is_uid
from echo_plugin.io import frame_codecs
from echo_plugin.io.dicom_header import UNDEFINED_LENGTH, DicomHeader, read_header_and_bytes
from echo_plugin.io.frame_codecs import JPEG_LS, Samples, ybr_to_rgb
from echo_plugin.io.stored_bytes import StoredBytes, damage_named, unreadable

Span = tuple[int, int]
"""Offset and length in bytes."""

_ITEM, _DELIMITER = (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)
_STREAM_STARTS = (b"\xff\xd8", b"\xff\x4f", b"\x00\x00\x00\x0c")
"""JPEG and JPEG-LS SOI, JPEG 2000 SOC, JP2 signature box."""
_NATIVE = frozenset(
    {
        uid.ImplicitVRLittleEndian,
        uid.ExplicitVRLittleEndian,
        uid.DeflatedExplicitVRLittleEndian,
        uid.ExplicitVRBigEndian,
    }
)
_JPEG = frozenset(
    {"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"}
)
_JPEG_2000 = frozenset(
    {"1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"}
    | {"1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.203"}  # high throughput
)
_GREY = frozenset({"MONOCHROME1", "MONOCHROME2"})
_COLOUR = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT"})
_THREADS = min(4, os.cpu_count() or 1)
_FRAMES_WORTH_A_THREAD = 12
_BYTES_PER_STORED_BYTE = 1000
"""More decoded bytes a stored byte than any lossy JPEG (512) or RLE (64) stream can have."""


def read_dicom_cine(path: Path) -> Cine:
    """Return the cine of a DICOM file; only its header has been read.

    Raises
    ------
    UnreadableCineError
        If the file is no DICOM image, is cut off, contradicts itself or is encoded in a way that is not supported.
    """
    header, stored = read_header_and_bytes(path)
    return Cine(
        image_id=header.sop_instance_uid or escape_path(PurePosixPath(path.name)),
        frames=_frames(header, stored),
        frame_times_ms=header.frame_times_ms,
        regions=header.regions,
        patient_id=header.patient_id,
        study_instance_uid=header.study_instance_uid,
        series_instance_uid=header.series_instance_uid,
        sop_instance_uid=header.sop_instance_uid,
        patient_age_days=header.patient_age_days,
        heart_rate_bpm=header.heart_rate_bpm,
    )


@dataclass(frozen=True)
class DicomFrames:
    """The frames of a DICOM file, read and decoded on demand; safe in threads, holds no open file.

    ``spans`` : where each of the T frames lies.
    ``table`` : (2 ** bits_stored, C) uint8 for grey and palette, None for colour.
    """

    header: DicomHeader
    stored: StoredBytes
    spans: Sequence[tuple[Span, ...]] = field(repr=False)
    table: ByteArray | None = field(repr=False)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        C = 3 if self.table is None else self.table.shape[1]
        return self.header.frames, self.header.height, self.header.width, C

    def read(self, frame_indices: Sequence[int]) -> ByteArray:
        """Return the (N, H, W, C) uint8 frames asked for.

        Raises
        ------
        UnreadableCineError
            If the file has been changed or a frame is damaged; the message names both.
        """
        frames = np.empty((len(frame_indices), *self.shape[1:]), dtype=np.uint8)
        share = max(_FRAMES_WORTH_A_THREAD, -(-len(frames) // _THREADS))
        shares = [slice(start, start + share) for start in range(0, len(frames), share)]
        if len(shares) <= 1:
            self._read_into(frames, frame_indices)
            return frames
        with ThreadPoolExecutor(len(shares)) as pool:  # the JPEG decoder lets other threads run
            for done in [pool.submit(self._read_into, frames[part], frame_indices[part]) for part in shares]:
                done.result()
        return frames

    def stored_frame(self, frame_index: int) -> bytes:
        """Return one frame as it is stored: its compressed stream, or its samples in little endian.

        Raises
        ------
        IndexError
            If there is no such frame.
        UnreadableCineError
            If the file has been changed or is cut off.
        """
        if not 0 <= frame_index < self.header.frames:
            msg = f"Frame number {frame_index + 1} does not exist; 1 to {self.header.frames} are accepted."
            raise IndexError(msg)
        with self.stored.open() as file:
            raw = frame_bytes(self.header, self.stored, file, self.spans[frame_index])
        if self.header.is_little_endian or self.header.bits_allocated == 8:
            return raw
        return np.frombuffer(raw, dtype=np.uint16).byteswap().tobytes()

    def _read_into(self, frames: ByteArray, frame_indices: Sequence[int]) -> None:
        with self.stored.open() as file:
            for frame_index, frame in zip(frame_indices, frames, strict=True):
                raw = frame_bytes(self.header, self.stored, file, self.spans[frame_index])
                with damage_named(self.stored.path, f"a frame at index {frame_index} that cannot be decoded"):
                    self._decode(raw, frame)

    def _decode(self, raw: bytes, frame: ByteArray) -> None:
        header = self.header
        syntax, tag = header.transfer_syntax_uid, header.photometric_interpretation
        is_ybr = tag.startswith("YBR_FULL")
        if syntax in _JPEG or syntax in JPEG_LS:
            markers = frame_codecs.read_markers(raw)
            frame_codecs.require_shape(markers, header.height, header.width, header.samples_per_pixel)
            if frame_codecs.is_8_bit(markers) and self.table is None:
                frame_codecs.decode_8_bit(raw, markers, tag, frame)
                return
            if frame_codecs.is_8_bit(markers):
                grey = np.empty((*frame.shape[:2], 1), dtype=np.uint8)
                frame_codecs.decode_8_bit(raw, markers, tag, grey)
                samples: Samples = grey
            else:
                frame_codecs.require_precision(markers, header.bits_allocated)
                samples = frame_codecs.gdcm_samples(raw, header)
                is_ybr = markers.holds_ybr(tag) if syntax in _JPEG else is_ybr
        else:
            samples = _decoder(syntax)(raw, header)
            is_ybr = is_ybr and not (syntax in _JPEG_2000 and frame_codecs.undoes_colour_transform(raw))
        self._show(samples, frame, is_ybr=is_ybr)

    def _show(self, samples: Samples, frame: ByteArray, *, is_ybr: bool) -> None:
        samples = frame_codecs.aligned(samples, self.header)
        if self.table is not None:
            np.take(self.table, samples[..., 0], axis=0, out=frame)
            return
        eight_bit = (samples >> max(self.header.bits_stored - 8, 0)).astype(np.uint8)
        frame[...] = ybr_to_rgb(eight_bit) if is_ybr else eight_bit


def _decoder(syntax: str) -> Callable[[bytes, DicomHeader], Samples]:
    if syntax in _NATIVE:
        return frame_codecs.native_samples
    return frame_codecs.rle_samples if syntax == uid.RLELossless else frame_codecs.jpeg2000_samples


def _frames(header: DicomHeader, stored: StoredBytes) -> DicomFrames:
    """Return the frames after everything has been refused that the header alone shows to be wrong."""
    path, syntax, tag = stored.path, header.transfer_syntax_uid, header.photometric_interpretation
    if syntax not in _NATIVE | _JPEG | JPEG_LS | _JPEG_2000 | {uid.RLELossless}:
        # a damaged header may hold anything here, the patient's name included
        name = uid.UID(syntax).name if is_uid(syntax) else "that is no UID"
        raise unreadable(path, f"has transfer syntax {name}; native, RLE, JPEG, JPEG-LS and JPEG 2000 are accepted.")
    if tag not in _GREY | _COLOUR | {"PALETTE COLOR"}:
        raise unreadable(
            path, f"has (0028,0004) 'Photometric Interpretation' {tag[:20]!r}; grey, palette, RGB, YBR are accepted."
        )
    if (header.samples_per_pixel == 3) != (tag in _COLOUR):
        raise unreadable(path, f"has {header.samples_per_pixel} samples per pixel, which {tag} cannot have.")
    if syntax in _NATIVE:
        spans = native_spans(header, stored, _native_frame_bytes(path, header))
    else:
        spans = encapsulated_spans(header, stored)
    if syntax not in _JPEG_2000:
        _refuse_bombs(header, path, spans)
    with damage_named(path, "a header whose grey levels or colours cannot be read"):
        frame_codecs.aligned(np.zeros(1, dtype=np.uint16), header)
        return DicomFrames(header, stored, spans, _table(header))


def _table(header: DicomHeader) -> ByteArray | None:
    if header.photometric_interpretation in _GREY:
        return frame_codecs.grey_table(header)[:, None]
    return frame_codecs.palette_table(header) if header.photometric_interpretation == "PALETTE COLOR" else None


def _native_frame_bytes(path: Path, header: DicomHeader) -> int:
    full = header.height * header.width * header.samples_per_pixel * header.bits_allocated // 8
    if header.photometric_interpretation != "YBR_FULL_422" or header.pixel_length >= full * header.frames:
        return full  # files that say 4:2:2 above full chroma are met
    if header.width % 2 or header.bits_allocated != 8:
        raise unreadable(
            path,
            f"is YBR_FULL_422 of {header.width} columns and {header.bits_allocated} bits; even and 8 are accepted.",
        )
    return header.height * header.width * 2


def _refuse_bombs(header: DicomHeader, path: Path, spans: Sequence[tuple[Span, ...]]) -> None:
    frame_length = header.height * header.width * header.samples_per_pixel
    for index, pieces in enumerate(spans):
        if frame_length > _BYTES_PER_STORED_BYTE * sum(length for _, length in pieces):
            raise unreadable(
                path, f"states {header.height} x {header.width} px for a frame (index {index}) of too few bytes."
            )


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
