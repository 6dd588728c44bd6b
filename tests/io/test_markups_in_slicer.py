# SPDX-License-Identifier: Apache-2.0
"""What 3D Slicer's own core reads and writes: its coordinates are RAS, so x and y change sign."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from echo_plugin.anatomy import Septum
from echo_plugin.annotations import SeptalBox
from echo_plugin.io.markups import PointLabel, boxes_from_markups, boxes_to_markups
from echo_plugin.io.volume import RenditionGeometry

slicer = pytest.importorskip("slicer", reason="needs 3D Slicer's core (slicer-core)")
pytestmark = pytest.mark.slicer

BOXES = [
    SeptalBox(3, 10.25, 20.5, 30.75, 28.125, Septum.INTERVENTRICULAR, 0.875),
    SeptalBox(9, 0.1, 0.2, 7.3, 30.4, Septum.INTERATRIAL),
    SeptalBox(0, 40.0, 3.0, 55.5, 11.0, Septum.UNSPECIFIED),
]


def geometry(spacing_mm: tuple[float, float, float], angle_deg: float = 0.0, flip: float = 1.0) -> RenditionGeometry:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler(
        "zyx", [angle_deg, angle_deg / 2, 7 * (angle_deg > 0)], degrees=True
    ).as_matrix()
    affine[:3, :3] *= np.array([1.0, flip, 1.0]) * spacing_mm
    affine[:3, 3] = [12.5, -340.25, 77.0]
    return RenditionGeometry(ijk_to_lps=affine, shape=(64, 48, 10))


GEOMETRIES = [geometry((1.0, 1.0, 1.0)), geometry((0.31, 0.17, 1.0)), geometry((0.31, 0.17, 1.0), 33.0, -1.0)]


def load(text: str, folder: Path) -> list:
    """Load a document as the MONAI Label module does and return its nodes."""
    path = folder / "in.mrk.json"
    path.write_text(text)
    scene = slicer.vtkMRMLScene()
    logic = slicer.vtkSlicerMarkupsLogic()
    logic.SetMRMLScene(scene)
    assert logic.LoadMarkups(str(path))
    nodes = [scene.GetNthNode(n) for n in range(scene.GetNumberOfNodes())]
    return [scene, *(node for node in nodes if node.IsA("vtkMRMLMarkupsNode"))]


def submit(scene: object, nodes: list, folder: Path) -> str:
    """Return what the stock module uploads: every ROI of the scene, saved by Slicer and gathered in one document."""
    markups = []
    for node in nodes:
        storage = slicer.vtkMRMLMarkupsROIJsonStorageNode()
        scene.AddNode(storage)
        storage.SetFileName(str(folder / "out.mrk.json"))
        assert storage.WriteData(node)
        markups += json.loads((folder / "out.mrk.json").read_text())["markups"]
    return json.dumps({"@schema": "markups-schema-v1.0.3.json#", "markups": markups})


def test_slicer_shows_the_box_where_it_lies(tmp_path: Path) -> None:
    affine = np.diag([0.5, 0.25, 1.0, 1.0])
    affine[:3, 3] = [100.0, -20.0, 7.0]
    shown_on = RenditionGeometry(ijk_to_lps=affine, shape=(64, 48, 10))

    _, roi = load(boxes_to_markups(BOXES[:1], shown_on), tmp_path)

    bounds = [0.0] * 6
    roi.GetRASBounds(bounds)
    left, right = 100 + 0.5 * (10.25 - 0.5), 100 + 0.5 * (30.75 - 0.5)
    top, bottom = -20 + 0.25 * (20.5 - 0.5), -20 + 0.25 * (28.125 - 0.5)
    np.testing.assert_allclose(bounds, [-right, -left, -bottom, -top, 9.5, 10.5], atol=1e-9)
    assert roi.GetNthControlPointLabel(0) == "IVS 0.88"
    assert roi.GetDisplayNode().GetPointLabelsVisibility()


@pytest.mark.parametrize("shown_on", GEOMETRIES, ids=["1 mm", "0.31 x 0.17 mm", "turned and flipped"])
def test_what_slicer_submits_comes_back_to_the_pixel(shown_on: RenditionGeometry, tmp_path: Path) -> None:
    scene, *nodes = load(boxes_to_markups(BOXES, shown_on), tmp_path)
    ghost = slicer.vtkMRMLMarkupsROINode()  # 'SAM2 ROI', which the stock module always has and submits
    scene.AddNode(ghost)
    for number, node in enumerate([*nodes, ghost]):
        node.SetName(f"Detection ROI - {number}")

    found = boxes_from_markups(submit(scene, [*nodes, ghost], tmp_path), shown_on)

    assert [(b.frame_index, b.septum, b.score) for b in found] == [(b.frame_index, b.septum, None) for b in BOXES]
    np.testing.assert_allclose([b.xyxy for b in found], [b.xyxy for b in BOXES], rtol=0, atol=1e-6)


def test_box_moved_in_slicer_replaces_the_proposal_made_again(tmp_path: Path) -> None:
    text = boxes_to_markups(BOXES[:1], GEOMETRIES[0])
    scene, moved = load(text, tmp_path)
    again_scene, again = load(text, tmp_path)
    x, y, z = moved.GetCenter()
    moved.SetCenter(x - 1.0, y, z)  # RAS: one column to the right

    both = [json.loads(submit(*pair, tmp_path))["markups"][0] for pair in ((again_scene, [again]), (scene, [moved]))]
    (found,) = boxes_from_markups(json.dumps({"markups": both}), GEOMETRIES[0])

    np.testing.assert_allclose(found.xyxy, np.add(BOXES[0].xyxy, [1, 0, 1, 0]), atol=1e-6)


def test_roi_drawn_in_a_slice_view_is_a_box_on_that_frame(tmp_path: Path) -> None:
    """Slicer makes it as thick as its shorter side; the frame stays that of the slice."""
    scene = slicer.vtkMRMLScene()
    drawn = slicer.vtkMRMLMarkupsROINode()
    scene.AddNode(drawn)
    drawn.AddControlPoint(-19.5, -23.5, 3.0)
    drawn.SetSize(20.0, 8.0, 8.0)

    (box,) = boxes_from_markups(submit(scene, [drawn], tmp_path), RenditionGeometry(np.eye(4), (64, 48, 10)))

    assert (box.frame_index, box.septum) == (3, Septum.UNSPECIFIED)
    np.testing.assert_allclose(box.xyxy, [10, 20, 30, 28], atol=1e-9)


def test_class_text_loads_as_a_point_list_which_is_not_submitted(tmp_path: Path) -> None:
    label = PointLabel("ASD 0.91 (41 deg)", 4, 1.5, 2.5)

    _, roi, points = load(boxes_to_markups(BOXES[:1], GEOMETRIES[0], point_labels=[label]), tmp_path)

    assert (roi.GetClassName(), points.GetClassName()) == ("vtkMRMLMarkupsROINode", "vtkMRMLMarkupsFiducialNode")
    assert points.GetNthControlPointLabel(0) == label.text
    position = points.GetNthControlPointPosition(0)
    np.testing.assert_allclose(position, [-(12.5 + 1.0), 340.25 - 2.0, 77.0 + 4.0])
