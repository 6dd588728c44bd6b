# SPDX-License-Identifier: Apache-2.0
"""What happens in 3D Slicer, with its own core and no screen; its process ends before another one looks at the result.

    python slicer_session.py SESSION.json

SESSION.json names ``volume`` and ``markups`` (files from the server), ``picture`` and ``submission`` (files to write),
``frame_index`` to show, and ``move_mm``: how the annotator drags the first box there, in mm to the left and back.
Printed is what Slicer holds: voxels, and every ROI as continuous pixels of the volume.

The steps are those of the stock module: ``slicer.util.loadMarkups`` calls ``vtkSlicerMarkupsLogic.LoadMarkups``, and
``onGenerateJSONFromMulipltROIs`` writes every ROI of the scene with its storage node into one file.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import slicer
from trame_slicer.core import SlicerApp
from trame_slicer.views import SliceView
from vtkmodules.util.numpy_support import vtk_to_numpy
from vtkmodules.vtkCommonMath import vtkMatrix4x4
from vtkmodules.vtkIOImage import vtkPNGWriter
from vtkmodules.vtkRenderingCore import vtkWindowToImageFilter


def main(session: dict[str, Any]) -> dict[str, Any]:
    """Load, look, drag, write; return what Slicer held before and after the drag."""
    app = SlicerApp()
    volume = app.io_manager.load_volumes([session["volume"]])[0]
    load_markups(app, session["markups"])
    add_what_the_stock_module_always_adds(app)
    rois = [roi for roi in nodes(app, "vtkMRMLMarkupsROINode") if roi.GetNumberOfControlPoints()]
    before = [pixels_of(roi, volume) for roi in rois]
    points = nodes(app, "vtkMRMLMarkupsFiducialNode")

    dragged = next(i for i, box in enumerate(before) if box["frame_index"] == session["frame_index"])
    centre = [0.0, 0.0, 0.0]
    rois[dragged].GetCenter(centre)
    left_mm, back_mm = session["move_mm"]
    rois[dragged].SetCenter(centre[0] - left_mm, centre[1] - back_mm, centre[2])  # RAS: left and back are negative

    drawn = draw(app, volume, rois[dragged], session["frame_index"], session["picture"])
    write_as_the_stock_module_does(app, session["submission"])
    voxels = vtk_to_numpy(volume.GetImageData().GetPointData().GetScalars())
    return {
        "dimensions": list(volume.GetImageData().GetDimensions()),
        "voxels": voxels.reshape(-1)[:: max(1, len(voxels) // 4096)].tolist(),
        "rois": before,
        "dragged": dragged,
        "after_drag": pixels_of(rois[dragged], volume),
        "drawn": drawn,
        "captions": [
            node.GetNthControlPointLabel(i) for node in points for i in range(node.GetNumberOfControlPoints())
        ],
        "caption_frames": [
            voxel_of(volume, node.GetNthControlPointPosition(i))[2]
            for node in points
            for i in range(node.GetNumberOfControlPoints())
        ],
    }


def nodes(app: SlicerApp, kind: str) -> list[Any]:
    """Return the nodes of a class in the order of the scene."""
    found = app.scene.GetNodesByClass(kind)
    return [found.GetItemAsObject(i) for i in range(found.GetNumberOfItems())]


def load_markups(app: SlicerApp, path: str) -> None:
    """Load a markups file as ``slicer.util.loadMarkups`` does, and rename its ROIs as the stock module does."""
    logic = slicer.vtkSlicerMarkupsLogic()
    logic.SetMRMLApplicationLogic(app.app_logic)
    logic.SetMRMLScene(app.scene)
    if not logic.LoadMarkups(path, "prediction"):
        message = f"Slicer could not load {path}"
        raise RuntimeError(message)
    for number, roi in enumerate(nodes(app, "vtkMRMLMarkupsROINode")):
        roi.SetName(f"Detection ROI - {number}")


def add_what_the_stock_module_always_adds(app: SlicerApp) -> None:
    """Add the ROI of the SAM2 tool: empty, in every scene of the stock module, and submitted with the others."""
    roi = slicer.vtkMRMLMarkupsROINode()
    roi.SetName("SAM2 ROI")
    app.scene.AddNode(roi)
    roi.CreateDefaultDisplayNodes()


def voxel_of(volume: Any, ras: Any) -> list[float]:
    """Return the continuous index (column, row, frame) of a point; whole numbers are voxel centres."""
    to_ijk = vtkMatrix4x4()
    volume.GetRASToIJKMatrix(to_ijk)
    return list(to_ijk.MultiplyPoint([*ras, 1.0])[:3])


def pixels_of(roi: Any, volume: Any) -> dict[str, float]:
    """Return a ROI as corners in px from the outer corner of the first pixel (index + 0.5) on the nearest frame."""
    bounds = [0.0] * 6
    roi.GetRASBounds(bounds)
    ends = [voxel_of(volume, bounds[i::2]) for i in (0, 1)]
    xs, ys, ks = (sorted(end[axis] for end in ends) for axis in range(3))
    return {
        "frame_index": round(sum(ks) / 2),
        "x1": xs[0] + 0.5,
        "y1": ys[0] + 0.5,
        "x2": xs[1] + 0.5,
        "y2": ys[1] + 0.5,
        "label": roi.GetNthControlPointLabel(0),
    }


def write_as_the_stock_module_does(app: SlicerApp, path: str) -> None:
    """Write every ROI of the scene with Slicer's own writer, joined into one document."""
    markups = []
    with tempfile.TemporaryDirectory() as folder:
        for number, roi in enumerate(nodes(app, "vtkMRMLMarkupsROINode")):
            storage = slicer.vtkMRMLMarkupsROIJsonStorageNode()
            app.scene.AddNode(storage)
            storage.SetFileName(str(Path(folder) / f"{number}.json"))
            if not storage.WriteData(roi):
                message = f"Slicer could not write ROI {number}"
                raise RuntimeError(message)
            markups.append(json.loads(Path(storage.GetFileName()).read_text())["markups"][0])
            app.scene.RemoveNode(storage)
    schema = "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    Path(path).write_text(json.dumps({"@schema": f"{schema}markups-schema-v1.0.3.json#", "markups": markups}))


def draw(app: SlicerApp, volume: Any, dragged: Any, frame_index: int, path: str) -> list[float]:
    """Write the slice view of a frame as PNG, outlines only, to see the wall in its box.

    Returned is where Slicer's view puts the dragged ROI: left, top, right, bottom in px of the PNG.
    """
    for roi in nodes(app, "vtkMRMLMarkupsROINode"):
        roi.GetDisplayNode().SetFillVisibility(False)
    view = SliceView(app.scene, app.app_logic, "Red")
    window = view.render_window()
    view.set_orientation("Axial")
    view.set_background_volume_id(volume.GetID())
    view.update_size(960, 720)
    view.fit_view_to_content()
    view.set_slice_value(float(frame_index))  # along the frames the rendition has one mm for each
    view.render()
    window.Render()
    grab = vtkWindowToImageFilter()
    grab.SetInput(window)
    grab.ReadFrontBufferOff()
    grab.Update()
    writer = vtkPNGWriter()
    writer.SetFileName(path)
    writer.SetInputConnection(grab.GetOutputPort())
    writer.Write()
    to_xy = vtkMatrix4x4()
    vtkMatrix4x4.Invert(view.get_view_node().GetXYToRAS(), to_xy)
    bounds = [0.0] * 6
    dragged.GetRASBounds(bounds)
    ends = [to_xy.MultiplyPoint([*bounds[i::2], 1.0])[:2] for i in (0, 1)]
    height = window.GetSize()[1]  # the window counts rows from below
    xs, ys = sorted(end[0] for end in ends), sorted(height - end[1] for end in ends)
    return [xs[0], ys[0], xs[1], ys[1]]


if __name__ == "__main__":
    result = main(json.loads(Path(sys.argv[1]).read_text()))
    Path(sys.argv[1]).with_suffix(".result.json").write_text(json.dumps(result))
