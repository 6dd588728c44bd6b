# SPDX-License-Identifier: Apache-2.0
"""The panel with a foreign archive behind the server: Debian's Orthanc, in a network of its own."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from dicomweb_client.api import DICOMwebClient
from pydicom import dcmread

from echo_plugin.io.study_folder import StudyFolder
from tests import orthanc_server
from tests.browser.conftest import Served

pytestmark = [pytest.mark.browser, pytest.mark.server, pytest.mark.heavy, pytest.mark.orthanc]


@pytest.fixture(scope="module")
def archive(phantoms, tmp_path_factory) -> Iterator[DICOMwebClient]:
    """An archive with two studies that nobody has labelled, one of them with two cines."""
    if orthanc_server.program() is None:
        pytest.skip("no Orthanc with DICOMweb (Debian: orthanc, orthanc-dicomweb), or no right to make it a network")
    server = orthanc_server.Orthanc(tmp_path_factory.mktemp("orthanc"))
    client = DICOMwebClient(server.url)
    for path in [*sorted((phantoms / "several").glob("*.dcm")), phantoms / "new" / "cine_4.dcm"]:
        client.store_instances([dcmread(path)])
    yield client
    server.stop()


@pytest.fixture(scope="module")
def behind(archive, start_serving, tmp_path_factory) -> Served:
    """The server in front of it, which stores a report of all that is said."""
    beside = tmp_path_factory.mktemp("beside") / "annotations"
    url = start_serving("--pacs", archive.base_url, "--studies", beside, "--sr", "auto")
    return Served(url, StudyFolder(beside), [], [])


def test_a_cine_of_an_archive_is_opened_played_predicted_corrected_and_reported(archive, behind, at_work):
    reader = at_work(behind.url, "Dr Archive")
    page = reader.page
    page.goto(f"{behind.url}/ohif/")
    listed = page.locator("tbody tr").filter(has_text="US")
    listed.nth(1).wait_for()
    assert listed.count() == 2
    (study,) = [
        item["0020000D"]["Value"][0]
        for item in archive.search_for_studies(fields=["NumberOfStudyRelatedInstances"])
        if item["00201208"]["Value"] == [2]
    ]
    one, other = [item["00080018"]["Value"][0] for item in archive.search_for_instances(study)]

    reader.open(study, one)
    page.keyboard.press(" ")
    page.wait_for_function("() => Object.values(window.services.cineService.getState().cines).some((c) => c.isPlaying)")
    page.keyboard.press(" ")
    boxes = reader.predict(one)
    box = max(boxes, key=lambda b: b["y2"] - b["y1"])
    reader.go_to(box["frame_index"])
    assert 0.3 < reader.outline_share(box) < 0.9  # dashed
    page.keyboard.press("a")
    reader.submit()

    saved = StudyFolder(behind.studies.root).annotation(one)
    assert (saved.author, saved.annotated_frames) == ("Dr Archive", (box["frame_index"],))
    kept = next(b for b in saved.boxes if b.septum.value == box["septum"])
    np.testing.assert_allclose(kept.xyxy, [box[end] for end in ("x1", "y1", "x2", "y2")], atol=0.01)
    reports = archive.search_for_instances(study, search_filters={"Modality": "SR"}, fields=["SeriesDescription"])
    said = sorted(item["0008103E"]["Value"][0] for item in reports)
    assert said == ["AI boxes: septa", "AI view and defect", "Boxes: septa"]

    reader.part("strategy").select_option("first")
    reader.part("next").click()
    reader.part("reason").wait_for()
    shown = page.evaluate("() => new URLSearchParams(location.search).get('cine')") or other
    reader.wait_for_cine(reader.part("status").get_attribute("data-image"))
    assert reader.part("status").get_attribute("data-image") != one
    assert shown != one
