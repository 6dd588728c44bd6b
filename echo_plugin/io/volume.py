# SPDX-License-Identifier: Apache-2.0
"""The rendition of a cine that 3D Slicer opens: a grey uint8 NRRD with the axes (x, y, frame).

Columns run to the patient's left and rows to posterior, so that an axial slice shows the picture upright. In the plane
the spacing is that of the tissue region in mm, 1 where it is not calibrated; along the frames it is always 1. The
origin is the centre of the first pixel. Written raw: packing costs more than it saves on the same machine.

References
----------
https://teem.sourceforge.net/nrrd/format.html
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from echo_plugin.cine import Cine
from echo_plugin.errors import UnreadableCineError
from echo_plugin.io.luma import to_grey
from echo_plugin.io.sector import header_tissue_region
from echo_plugin.io.stored_bytes import damage_named, unreadable

_FRAMES_AT_ONCE = 32
_LONGEST_HEADER = 1 << 16
LARGEST_RENDITION_BYTES = 1 << 32
"""A viewer holds all of it in memory; a small file of black pictures can unpack to any size."""


@dataclass(frozen=True)
class RenditionGeometry:
    """How the voxels of a rendition lie in space.

    ``ijk_to_lps`` : (4, 4) float64, from the index (column, row, frame) of a voxel's centre to LPS mm.
    ``shape`` : (W, H, T).
    """

    ijk_to_lps: NDArray[np.float64]
    shape: tuple[int, int, int]

    def __post_init__(self) -> None:
        if self.ijk_to_lps.shape != (4, 4) or not np.all(np.isfinite(self.ijk_to_lps)):
            msg = f"Rendition has an affine of shape {self.ijk_to_lps.shape}; a finite (4, 4) matrix is accepted."
            raise ValueError(msg)
        if abs(np.linalg.det(self.ijk_to_lps[:3, :3])) < 1e-12:
            msg = "Rendition has an affine that cannot be inverted; three independent directions are accepted."
            raise ValueError(msg)
        if len(self.shape) != 3 or min(self.shape) < 1:
            msg = f"Rendition has the shape {self.shape}; (W, H, T) of at least 1 each is accepted."
            raise ValueError(msg)


def rendition_geometry(cine: Cine) -> RenditionGeometry:
    """Return the geometry that the rendition of a cine has; decodes nothing."""
    region = header_tissue_region(cine)
    mm_x, mm_y = 1.0, 1.0
    if region is not None and region.mm_per_px_x is not None and region.mm_per_px_y is not None:
        mm_x, mm_y = region.mm_per_px_x, region.mm_per_px_y
    return RenditionGeometry(np.diag([mm_x, mm_y, 1.0, 1.0]), (cine.width, cine.height, cine.frame_count))


def write_rendition(cine: Cine, path: Path) -> RenditionGeometry:
    """Write the rendition of a cine, whole or not at all, and return its geometry.

    Raises
    ------
    UnreadableCineError
        If a frame cannot be decoded, or the rendition would be too large; nothing is left behind then.
    """
    T, H, W, _ = cine.frames.shape
    if T * H * W > LARGEST_RENDITION_BYTES:
        msg = (
            f"Cine {cine.image_id} has {T} frames of {H} x {W} px; up to {LARGEST_RENDITION_BYTES} grey bytes together"
            " can be shown in 3D Slicer."
        )
        raise UnreadableCineError(msg)
    geometry = rendition_geometry(cine)
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(_nrrd_header(geometry))
            for start in range(0, cine.frame_count, _FRAMES_AT_ONCE):
                frames = cine.read_frames(range(start, min(start + _FRAMES_AT_ONCE, cine.frame_count)))
                file.write(np.ascontiguousarray(to_grey(frames)).data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return geometry


def _nrrd_header(geometry: RenditionGeometry) -> bytes:
    def vector(values: NDArray[np.float64]) -> str:
        return "(" + ",".join(repr(float(value)) for value in values) + ")"

    affine = geometry.ijk_to_lps
    fields = {
        "type": "uint8",
        "dimension": "3",
        "space": "left-posterior-superior",
        "sizes": " ".join(map(str, geometry.shape)),
        "space directions": " ".join(vector(affine[:3, axis]) for axis in range(3)),
        "kinds": "domain domain domain",
        "encoding": "raw",
        "space origin": vector(affine[:3, 3]),
    }
    lines = ["NRRD0004", *(f"{name}: {value}" for name, value in fields.items())]
    return ("\n".join(lines) + "\n\n").encode("ascii")


def read_rendition_geometry(path: Path) -> RenditionGeometry:
    """Return the geometry of a rendition as its file states it.

    Raises
    ------
    UnreadableCineError
        If the file is not a three-dimensional NRRD volume with a space.
    """
    with damage_named(path, "no NRRD header of a volume"):
        with path.open("rb") as file:
            head, blank, _ = file.read(_LONGEST_HEADER).partition(b"\n\n")
        if not head.startswith(b"NRRD") or not blank:
            raise unreadable(path, "is not NRRD; a rendition written for Slicer is accepted.")
        fields = dict(line.split(": ", 1) for line in head.decode("ascii").splitlines()[1:] if ": " in line)
        columns = [_vector(text) for text in fields["space directions"].split()]
        affine = np.eye(4)
        affine[:3, :3] = np.stack(columns, axis=1)
        affine[:3, 3] = _vector(fields["space origin"])
        affine = np.diag([*_SIGNS_TO_LPS[fields["space"].lower()], 1.0, 1.0]) @ affine
        width, height, frames = (int(size) for size in fields["sizes"].split())
        return RenditionGeometry(affine, (width, height, frames))


_SIGNS_TO_LPS = {
    "left-posterior-superior": (1.0, 1.0),
    "lps": (1.0, 1.0),
    "right-anterior-superior": (-1.0, -1.0),
    "ras": (-1.0, -1.0),
}


def _vector(text: str) -> NDArray[np.float64]:
    return np.array([float(number) for number in text.strip("()").split(",")], dtype=np.float64)
