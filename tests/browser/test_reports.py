# SPDX-License-Identifier: Apache-2.0
"""Reports in the viewer without our panel: OHIF's own mode reads them, makes boxes editable and saves them again."""

from __future__ import annotations

import numpy as np
import pytest

from tests.browser.reader import BOXES

pytestmark = [pytest.mark.browser, pytest.mark.server, pytest.mark.heavy]

CORNERS = ("x1", "y1", "x2", "y2")
YELLOW, SELECTED = (255, 255, 0), (0, 220, 0)
"""How OHIF draws boxes, and the one that it goes to."""


def places(boxes) -> np.ndarray:
    """(N, 5) frame index and corners in px, in the order of frames."""
    return np.array(sorted((box["frame_index"], *(box[corner] for corner in CORNERS)) for box in boxes))


def test_reports_are_read_made_editable_and_saved_again_without_the_panel(served, reader_at_work, keep_picture):
    """Of a cine whose pixels are higher than wide, as they are not in the phantoms."""
    reader, image_id = reader_at_work(), served.new[1]
    page, study = reader.page, served.ask(f"echo/cines/{image_id}")["study_instance_uid"]
    predicted = served.ask(f"echo/predictions/{image_id}", "POST")
    before = served.studies.annotation(image_id)
    stored = served.ask(f"echo/reports?image={image_id}&what=prediction", "POST")["stored"]
    assert len(stored) == 2

    page.goto(f"{served.url}/ohif/viewer?StudyInstanceUIDs={study}")
    reader.wait_for_picture(image_id)
    reports = page.locator("[data-cy=study-browser-thumbnail-no-image]")
    reports.filter(has_text="AI view and defect").dblclick()
    page.get_by_text(f"View: {predicted['view']['view']} (probabilities:").wait_for()
    page.get_by_text(f"Septal defect: {predicted['defect']['defect']} (probabilities:").wait_for()
    page.get_by_text("Research only: not for clinical use.").wait_for()
    keep_picture(page, "text_report")

    reports.filter(has_text="AI boxes").dblclick()
    page.locator("[data-cy=yes-hydrate-btn]").click()
    page.wait_for_function(f"(count) => ({BOXES})().length === count", arg=len(predicted["boxes"]))
    hydrated = page.evaluate(BOXES)
    assert {(box["tool"], box["image_id"]) for box in hydrated} == {("RectangleROI", image_id)}
    np.testing.assert_allclose(places(hydrated), places(predicted["boxes"]), atol=0.01)
    assert {box["label"][:3] for box in hydrated} <= {"IAS", "IVS"}
    page.mouse.move(1, 1)  # a box under the mouse is drawn in another colour
    reader.wait_for_outline(hydrated, (YELLOW, SELECTED), 0.9)
    keep_picture(page, "boxes_report")

    page.evaluate("""() => {
      const { panelService } = window.services;
      const { id } = panelService.getPanels('right').find((panel) => panel.id.includes('easurement'));
      panelService.activatePanel(id, true);
    }""")
    page.get_by_role("button", name="Create SR").click()
    with page.expect_response(
        lambda answer: answer.request.method == "POST" and "/dicom-web/studies" in answer.url
    ) as saved:
        page.get_by_role("dialog").get_by_role("button", name="Save").click()
    assert saved.value.ok
    reader.forgive("Unspecified units")  # OHIF's own remark on what it measured in a calibrated region

    annotation = served.studies.annotation(image_id)
    assert annotation.revision == (before.revision if before else 0) + 1
    kept = [{"frame_index": box.frame_index, **dict(zip(CORNERS, box.xyxy, strict=True))} for box in annotation.boxes]
    replaced = {box["frame_index"] for box in predicted["boxes"]}
    np.testing.assert_allclose(
        places([box for box in kept if box["frame_index"] in replaced]), places(predicted["boxes"]), atol=0.01
    )
    assert all(box.score is None for box in annotation.boxes)
    assert annotation.author == "OHIF report"  # that viewer knows no reader's name
    assert sorted(box.septum.value for box in annotation.boxes if box.frame_index in replaced) == sorted(
        box["septum"] for box in predicted["boxes"]
    )
