# SPDX-License-Identifier: Apache-2.0
"""A rendition is read back by ITK and by Slicer's core as it was written."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from echo_plugin.cine import ByteArray, Cine, FramesInMemory, RegionDataType, UltrasoundRegion, to_grey
from echo_plugin.errors import UnreadableCineError
from echo_plugin.io.volume import RenditionGeometry, rendition_geometry, write_rendition


@pytest.fixture
def cine() -> Cine:
    """35 frames of 12 x 20 px, a calibrated region over part of them, after one of flow with another spacing."""
    rgb = np.random.default_rng(5).integers(0, 256, (35, 12, 20, 3), dtype=np.uint8)
    flow = UltrasoundRegion(0, 0, 4, 4, 9.0, 9.0, RegionDataType.COLOUR_FLOW)
    return Cine("a4c", FramesInMemory(rgb), regions=(flow, UltrasoundRegion(2, 1, 18, 11, 0.25, 0.3)))


def test_itk_reads_the_frames_with_the_spacing_of_the_tissue(cine: Cine, tmp_path: Path) -> None:
    import itk

    written = write_rendition(cine, tmp_path / "a4c.nrrd")

    assert written.shape == (20, 12, 35)
    np.testing.assert_array_equal(written.ijk_to_lps, np.diag([0.25, 0.3, 1.0, 1.0]))
    image = itk.imread(str(tmp_path / "a4c.nrrd"))
    np.testing.assert_array_equal(itk.array_from_image(image), to_grey(cine.pixels))
    assert list(image.GetSpacing()) == [0.25, 0.3, 1.0]
    assert list(image.GetOrigin()) == [0.0, 0.0, 0.0]
    np.testing.assert_array_equal(itk.array_from_matrix(image.GetDirection()), np.eye(3))


@pytest.mark.slicer
def test_slicer_reads_the_frames_upright_in_mm(cine: Cine, tmp_path: Path) -> None:
    slicer = pytest.importorskip("slicer")
    vtk_numpy = pytest.importorskip("vtkmodules.util.numpy_support")
    import vtk

    write_rendition(cine, tmp_path / "a4c.nrrd")
    scene = slicer.vtkMRMLScene()
    storage, node = slicer.vtkMRMLNRRDStorageNode(), slicer.vtkMRMLScalarVolumeNode()
    for item in (storage, node):
        scene.AddNode(item)
    storage.SetFileName(str(tmp_path / "a4c.nrrd"))
    assert storage.ReadData(node)

    image = node.GetImageData()
    voxels = vtk_numpy.vtk_to_numpy(image.GetPointData().GetScalars()).reshape(image.GetDimensions()[::-1])
    np.testing.assert_array_equal(voxels, to_grey(cine.pixels))
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    to_ras = np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])
    np.testing.assert_allclose(to_ras, np.diag([-1, -1, 1, 1]) @ rendition_geometry(cine).ijk_to_lps, atol=1e-9)


def test_uncalibrated_cine_has_pixels_of_1(tmp_path: Path) -> None:
    cine = Cine("a", FramesInMemory(np.zeros((1, 3, 4, 1), np.uint8)))

    np.testing.assert_array_equal(write_rendition(cine, tmp_path / "a.nrrd").ijk_to_lps, np.eye(4))


class BrokenFrames:
    """Frames of which the later ones cannot be decoded."""

    shape = (40, 3, 4, 1)

    def read(self, frame_indices: Sequence[int]) -> ByteArray:
        if max(frame_indices) >= 32:
            msg = "File 'x.dcm' has a frame at index 32 that cannot be decoded."
            raise UnreadableCineError(msg)
        return np.zeros((len(frame_indices), 3, 4, 1), np.uint8)


def test_broken_frame_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.nrrd"
    path.write_bytes(b"old")

    with pytest.raises(UnreadableCineError, match="index 32"):
        write_rendition(Cine("a", BrokenFrames()), path)

    assert [entry.name for entry in tmp_path.iterdir()] == ["a.nrrd"]
    assert path.read_bytes() == b"old"


class EndlessFrames(BrokenFrames):
    """More frames than any rendition can hold."""

    shape = (1_000_000, 4096, 4096, 1)


def test_rendition_that_would_fill_the_disk_is_refused_before_it_is_begun(tmp_path: Path) -> None:
    with pytest.raises(UnreadableCineError, match=r"Cine a has 1000000 frames of 4096 x 4096 px; up to 4294967296"):
        write_rendition(Cine("a", EndlessFrames()), tmp_path / "a.nrrd")

    assert not list(tmp_path.iterdir())


def test_affine_that_cannot_be_inverted_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be inverted"):
        RenditionGeometry(np.diag([1.0, 0.0, 1.0, 1.0]), (2, 2, 2))
