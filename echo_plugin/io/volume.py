# SPDX-License-Identifier: Apache-2.0
"""Volumes of axes (column, row, frame): the rendition of a cine that 3D Slicer opens, and NIfTI or NRRD files as cines.

A rendition is a grey uint8 NRRD. Columns run to the patient's left and rows to posterior, so that an axial slice shows
the picture upright. In the plane the spacing is that of the tissue region in mm, 1 where it is not calibrated; along
the frames it is always 1. The origin is the centre of the first pixel. Written raw: packing costs more than it saves.

Of a file that is read, the first axis runs along a row of the picture from left to right, the second down its columns,
as stored; direction cosines are not applied, for they say how a probe was held and not how the picture is shown. A
single 2-D picture is a still, a 4-D file must have one slice, an RGB volume stays in colour. Whole numbers within
0..255 are shown as they are, and so are fractions with a maximum above 1; everything else is scaled by one straight
line from the minimum of the whole cine to 0 and its maximum to 255.

References
----------
https://teem.sourceforge.net/nrrd/format.html
"""

from __future__ import annotations

import gzip
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echo_plugin.cine import ByteArray, Cine, FramesInMemory, UltrasoundRegion, to_grey
from echo_plugin.durable import replace_atomically
from echo_plugin.errors import UnreadableCineError
from echo_plugin.io.sector import find_sector, header_tissue_region
from echo_plugin.io.stored_bytes import StoredBytes, damage_named, unreadable

_FRAMES_AT_ONCE = 32
LARGEST_RENDITION_BYTES = 1 << 32
"""A viewer holds all of it in memory; a small file of black pictures can unpack to any size."""
LARGEST_VOLUME_BYTES = 1 << 32
"""Volumes are held in memory as a whole."""
_MS_OF_NIFTI_TIME = {8: 1000.0, 16: 1000.0, 24: 1000.0}
"""Units s, ms, us of ``xyzt_units``; ITK hands the step out in seconds for each of them."""


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

    def write(partial: Path) -> None:
        with partial.open("xb") as file:
            file.write(_nrrd_header(geometry))
            for start in range(0, T, _FRAMES_AT_ONCE):
                frames = cine.read_frames(range(start, min(start + _FRAMES_AT_ONCE, T)))
                file.write(np.ascontiguousarray(to_grey(frames)).data)

    replace_atomically(path, write)
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


def read_volume_cine(path: Path, image_id: str) -> Cine:
    """Return the cine of a NIfTI or NRRD file.

    A spacing in the plane other than exactly 1 x 1, which is what files without one say, calibrates the sector; the
    time of a frame is known only from the fourth axis of a NIfTI file that states its unit.

    Raises
    ------
    UnreadableCineError
        If the file is damaged, points to another file, is too large, a solid volume over time or not finite.
    """
    stored = StoredBytes.of(path)
    _refuse_detached(stored)
    with damage_named(path, "no NIfTI volume that can be unpacked"):
        _refuse_cut_off_nifti(stored)
    with damage_named(path, "no NIfTI or NRRD volume that can be read"):
        image, sizes, spacing, unit = _itk_image(path)
        samples = _frames_first(path, image, sizes)
        pixels = _to_bytes(path, samples)
    T, H, W, _ = pixels.shape
    frames = FramesInMemory(pixels)
    times = None
    if len(sizes) == 4 and T > 1 and unit in _MS_OF_NIFTI_TIME and spacing[3] > 0:
        times = np.arange(T, dtype=np.float64) * spacing[3] * _MS_OF_NIFTI_TIME[unit]
    regions: tuple[UltrasoundRegion, ...] = ()
    if tuple(spacing[:2]) != (1.0, 1.0):
        found = find_sector(to_grey(pixels[np.linspace(0, T - 1, min(T, 8)).astype(int)]))
        box = (found.x1, found.y1, found.x2, found.y2) if found else (0.0, 0.0, float(W), float(H))
        regions = (UltrasoundRegion(*box, mm_per_px_x=spacing[0], mm_per_px_y=spacing[1]),)
    return Cine(image_id=image_id, frames=frames, frame_times_ms=times, regions=regions)


def _refuse_detached(stored: StoredBytes) -> None:
    """Refuse an NRRD header that names another file: it could name any file of this machine."""
    with stored.open() as file:
        head = file.read(1 << 16)
    if not head.startswith(b"NRRD"):
        return
    head, blank, _ = head.partition(b"\n\n") if b"\r\n\r\n" not in head else head.partition(b"\r\n\r\n")
    names = {line.partition(b":")[0].strip().lower().replace(b" ", b"") for line in head.splitlines()}
    if b"datafile" in names or not blank:
        raise unreadable(stored.path, "is an NRRD header without its data; one file with both is accepted.")


def _refuse_cut_off_nifti(stored: StoredBytes) -> None:
    """Refuse a NIfTI file with fewer bytes than its header promises: ITK would show the missing frames as noise."""
    if not stored.path.name.lower().endswith((".nii", ".nii.gz")):
        return
    with stored.open() as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        voxels = gzip.GzipFile(fileobj=file) if packed else file
        needed = _nifti_bytes(stored.path, voxels.read(540))
        if needed > LARGEST_VOLUME_BYTES:
            raise unreadable(stored.path, f"promises {needed} bytes; up to {LARGEST_VOLUME_BYTES} are accepted.")
        found = voxels.seek(needed)
        if not packed:
            found = min(found, stored.length)
    if found < needed:
        raise unreadable(stored.path, f"is truncated: {found} of {needed} bytes are there.")


def _nifti_bytes(path: Path, head: bytes) -> int:
    """Return the length of an unpacked NIfTI-1 or NIfTI-2 file by its header (nifti1.h, nifti2.h)."""
    for order in "<>":
        if head[:4] == struct.pack(order + "i", 348) and len(head) >= 348:
            dim, bits = struct.unpack_from(order + "8h", head, 40), struct.unpack_from(order + "h", head, 72)[0]
            start = int(struct.unpack_from(order + "f", head, 108)[0])
        elif head[:4] == struct.pack(order + "i", 540) and len(head) >= 540:
            dim, bits = struct.unpack_from(order + "8q", head, 16), struct.unpack_from(order + "h", head, 14)[0]
            start = int(struct.unpack_from(order + "q", head, 168)[0])
        else:
            continue
        return start + math.prod(max(size, 1) for size in dim[1 : 1 + dim[0]]) * bits // 8
    raise unreadable(path, "is no NIfTI volume.")


def _itk_image(path: Path) -> tuple[Any, list[int], list[float], int]:
    """Return the ITK image, its sizes and spacing without trailing axes of 1, and the NIfTI code of its time unit."""
    import itk

    mode = itk.CommonEnums.IOFileMode_ReadMode
    reader = itk.ImageIOFactory.CreateImageIO(str(path), mode)
    if reader is None:
        raise unreadable(path, "is no NIfTI or NRRD volume.")
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    dimensions = reader.GetNumberOfDimensions()
    sizes = [int(reader.GetDimensions(axis)) for axis in range(dimensions)]
    voxel_bytes = reader.GetNumberOfComponents() * reader.GetComponentSize()
    if math.prod(sizes) * voxel_bytes > LARGEST_VOLUME_BYTES:
        found = f"{' x '.join(map(str, sizes))} voxels of {voxel_bytes} bytes"
        raise unreadable(path, f"has {found}; up to {LARGEST_VOLUME_BYTES} bytes are accepted.")
    if reader.GetNumberOfComponents() not in (1, 3):
        components = reader.GetNumberOfComponents()
        raise unreadable(path, f"has {components} components per voxel; 1 (grey) or 3 (RGB) are accepted.")
    spacing = [float(reader.GetSpacing(axis)) for axis in range(dimensions)]
    image = itk.imread(str(path))
    metadata = dict(image)
    return image, sizes, spacing, int(metadata.get("xyzt_units") or 0) & 0x38


def _frames_first(path: Path, image: Any, sizes: list[int]) -> NDArray[Any]:
    """Return the samples as (T, H, W, C)."""
    import itk

    samples = itk.array_from_image(image)
    if image.GetNumberOfComponentsPerPixel() == 1:
        samples = samples.reshape(*samples.shape[: len(sizes)], 1)
    if len(sizes) == 4:
        if sizes[2] != 1:
            raise unreadable(path, f"is a solid volume of {sizes[2]} slices over time; one slice is accepted.")
        samples = samples[:, 0]
    if samples.ndim == 3:
        samples = samples[None]
    if samples.ndim != 4:
        raise unreadable(path, f"has {len(sizes)} axes; (column, row, frame) is accepted.")
    return samples


def _to_bytes(path: Path, samples: NDArray[Any]) -> ByteArray:
    """Return uint8 by the rule in the module's first lines."""
    if samples.dtype == np.uint8:
        return samples
    if not np.all(np.isfinite(samples)):
        raise unreadable(path, "has voxels that are not finite numbers; finite ones are accepted.")
    low, high = float(samples.min()), float(samples.max())
    as_they_are = low >= 0 and high <= 255 and (np.issubdtype(samples.dtype, np.integer) or high > 1)
    if not as_they_are:
        span = high - low if high > low else 1.0
        samples = (samples.astype(np.float64) - low) / span * 255.0
    return np.rint(samples).astype(np.uint8)
